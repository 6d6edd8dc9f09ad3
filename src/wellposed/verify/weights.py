"""Weights of equilibrium networks trained elsewhere: reading them, and writing them exactly.

A file holds ``W, U, b, C, c`` of ``z = phi(W z + U x + b)``, ``y = C z + D x + c``, and optionally
``D``, under these names: an ``.npz`` pack, a ``.safetensors`` file, or a state-dict that
``torch.save`` wrote (``.pt`` or ``.pth``). ``phi`` is ReLU unless the file says otherwise, by

- ``activation``, text such as ``"leaky_relu"``, with ``negative_slope``; in a safetensors file both
  are metadata; and ``linear``, a mask of the neurons whose ``phi`` is the identity; or by
- ``slope``, shape (n,), with ``phi_i(v) = max(v, slope_i v)``: what `export_network` writes.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from wellposed.core.activations import ACTIVATIONS, LeakyReLU, ReLU
from wellposed.core.network import Network
from wellposed.core.scalar import Activation
from wellposed.errors import DataError, NotCertifiableError, ShapeError
from wellposed.files.atomic import write_atomic
from wellposed.files.npz import arrays

REQUIRED = ("W", "U", "b", "C", "c")
OPTIONAL = ("D", "slope", "linear", "activation", "negative_slope")
_FORM = (
    "a file holds W (n, n), U (n, d), b (n,), C (q, n), c (q,) and optionally D (q, d), slope "
    "(n,), linear (n,), activation, negative_slope; rename or reshape what differs."
)


def load_network(path: Path) -> Network:
    """The network of a weights file; float32 and float64 numbers are taken exactly.

    Raises:
        DataError: The file is absent, damaged, of an unknown kind, lacks a weight, has an unknown
            one, or a weight has the wrong shape or values.
    """
    match path.suffix:
        case ".npz":
            found = _read_npz(path)
        case ".safetensors":
            found = _read_safetensors(path)
        case ".pt" | ".pth":
            found = _read_state_dict(path)
        case _:
            raise DataError(
                f"`{path}` has the suffix {path.suffix!r}, expected .npz, .safetensors, .pt or "
                ".pth.",
                hint="name the file after its format.",
            )
    return _network(path, found)


def export_network(network: Network, path: Path) -> None:
    """Write a network as ``.npz`` or ``.safetensors``, float64, atomically; `load_network` inverts.

    Raises:
        DataError: The suffix is another one, or the file cannot be written.
    """
    tensors = {name: getattr(network, name) for name in (*REQUIRED, "D")}
    texts: dict[str, str] = {}
    try:
        tensors["slope"] = network.slope
    except NotCertifiableError:
        tensors["linear"], texts["activation"] = network.linear, network.activation.name
    held = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    if path.suffix == ".safetensors":
        write_atomic(path, save(held, texts))
    elif path.suffix == ".npz":
        packed: dict[str, NDArray[Any]] = {name: t.numpy() for name, t in held.items()}
        packed |= {name: np.array(text) for name, text in texts.items()}
        content = io.BytesIO()
        # a network of several layers is mostly zeros as one matrix
        sparse = 2 * int(torch.count_nonzero(network.W)) < network.W.numel()
        (np.savez_compressed if sparse else np.savez)(content, **packed)  # pyright: ignore[reportArgumentType]
        write_atomic(path, content.getvalue())
    else:
        raise DataError(
            f"`{path}` has the suffix {path.suffix!r}, expected .npz or .safetensors.",
            hint="name the file after the format that you want.",
        )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"`{path}` cannot be read: {error.strerror or error}.", hint="check the path."
        ) from error


def _read_npz(path: Path) -> dict[str, Tensor | str]:
    found = arrays(_bytes(path), str(path), REQUIRED)
    result: dict[str, Tensor | str] = {}
    for name, value in found.items():
        if value.dtype.kind not in "fiubU":
            raise _wrong(path, name, f"values of type {value.dtype}", "numbers")
        result[name] = str(value) if value.dtype.kind == "U" else torch.from_numpy(value.copy())
    return result


def _read_safetensors(path: Path) -> dict[str, Tensor | str]:
    _bytes(path)  # says why a file cannot be opened
    try:
        with safe_open(path, "pt") as file:
            texts = {k: v for k, v in (file.metadata() or {}).items() if k in OPTIONAL}
            return {name: file.get_tensor(name) for name in file.keys()} | texts  # noqa: SIM118
    except SafetensorError as error:
        raise DataError(
            f"`{path}` cannot be read as a safetensors file: {error}.",
            hint="the file is damaged; replace it by a fresh copy.",
        ) from error


def _read_state_dict(path: Path) -> dict[str, Tensor | str]:
    data = io.BytesIO(_bytes(path))
    try:
        found = torch.load(data, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise DataError(
            f"`{path}` cannot be read as a state-dict of plain tensors: {str(error)[:200]}.",
            hint="save `model.state_dict()`, not the model: pickled objects are refused.",
        ) from error
    if not isinstance(found, Mapping):
        raise _wrong(path, "content", f"a {type(found).__name__}", "a dictionary of tensors")
    entries = cast("Mapping[Any, Any]", found)
    result: dict[str, Tensor | str] = {}
    for name, value in entries.items():
        if isinstance(value, (int, float)):
            value = torch.tensor(value, dtype=torch.float64)  # noqa: PLW2901
        if not isinstance(value, (Tensor, str)):
            raise _wrong(path, str(name), f"a {type(value).__name__}", "a tensor")
        result[str(name)] = value.detach() if isinstance(value, Tensor) else value
    return result


def _network(path: Path, found: Mapping[str, Tensor | str]) -> Network:
    if missing := [name for name in REQUIRED if name not in found]:
        raise _wrong(path, ", ".join(missing), "missing", "among " + ", ".join(sorted(found)))
    if unknown := sorted(set(found) - {*REQUIRED, *OPTIONAL}):
        raise _wrong(path, ", ".join(unknown), "unknown", ", ".join((*REQUIRED, *OPTIONAL)))
    tensors: dict[str, Tensor] = {}
    for name in (*REQUIRED, "D", "slope", "linear"):
        value = found.get(name)
        if isinstance(value, str):
            raise _wrong(path, name, f"the text {value!r}", "numbers")
        if value is not None:
            tensors[name] = value
            if not bool(torch.isfinite(value).all()):
                count = int((~torch.isfinite(value)).sum())
                raise _wrong(path, name, f"{count} NaN or infinite entries", "finite numbers")
    activation, linear = _activation(path, found, tensors)
    weights = (tensors[name] for name in REQUIRED)
    try:
        return Network.of(*weights, D=tensors.get("D"), activation=activation, linear=linear)
    except ShapeError as error:
        raise DataError(f"`{path}`: {error.message}", hint=_FORM) from error


def _activation(
    path: Path, found: Mapping[str, Tensor | str], tensors: Mapping[str, Tensor]
) -> tuple[Activation, Tensor | None]:
    """The activation and the mask of the identity neurons."""
    linear = tensors.get("linear")
    linear = None if linear is None else linear.bool()
    name = found.get("activation")
    if "slope" in tensors:
        if name is not None or linear is not None:
            raise _wrong(path, "slope", "beside activation or linear", "one of the two forms")
        return _from_slope(path, tensors["slope"].double())
    if name is None:
        return ReLU(), linear
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise _wrong(path, "activation", repr(name), ", ".join(ACTIVATIONS))
    if name != LeakyReLU.name:
        return ACTIVATIONS[name](), linear
    try:
        steep = float(found.get("negative_slope", 0.01))
    except (ValueError, RuntimeError):
        steep = -1.0
    if not 0 <= steep < 1:
        raise _wrong(path, "negative_slope", repr(found["negative_slope"]), "a number in [0, 1)")
    return LeakyReLU(steep), linear


def _from_slope(path: Path, slope: Tensor) -> tuple[Activation, Tensor]:
    linear = slope == 1
    values = slope[~linear].unique().tolist()
    if len(values) > 1 or not all(0 <= s < 1 for s in values):
        raise _wrong(path, "slope", f"values {values[:5]}", "one value in [0, 1), and 1")
    s = values[0] if values else 0.0
    return ReLU() if s == 0 else LeakyReLU(s), linear


def _wrong(path: Path, name: str, value: str, expected: str) -> DataError:
    return DataError(f"`{path}`: `{name}`: {value}; expected {expected}.", hint=_FORM)
