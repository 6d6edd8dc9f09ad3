"""The dense equilibrium network ``z = phi(W z + U x + b)``, ``y = C z + D x + c``: one equation.

Every network of affine maps and elementwise activations has this form, feed-forward ones with a
strictly block-triangular ``W``. It is what complete verification, certificate files and the
independent checker speak about.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wellposed.core.activations import Activation, ReLU, flat_slope
from wellposed.errors import NotCertifiableError, ShapeError


@final
@dataclass(frozen=True, eq=False)
class Network:
    """Explicit float64 weights, taken as exact.

    Args:
        W: From states to preactivations, shape (n, n).
        U: From inputs to preactivations, shape (n, d).
        b: Shape (n,).
        C: From states to outputs, shape (q, n).
        c: Shape (q,).
        D: From inputs straight to outputs, shape (q, d); zero if absent.
        activation: ``phi``, elementwise.
        linear: Neurons whose ``phi`` is the identity, shape (n,), boolean; none if absent.
        metric: Diagonal ``Lam`` with which the parametrisation claims that ``Lam (I - W)`` is
            strongly monotone, shape (n,); a hint, which is no part of the network.

    Raises:
        ShapeError: The shapes do not fit.
        NotCertifiableError: A weight is not finite.
    """

    W: Tensor
    U: Tensor
    b: Tensor
    C: Tensor
    c: Tensor
    D: Tensor
    activation: Activation
    linear: Tensor
    metric: Tensor | None = None

    @classmethod
    def of(
        cls,
        W: Tensor,
        U: Tensor,
        b: Tensor,
        C: Tensor,
        c: Tensor,
        *,
        D: Tensor | None = None,
        activation: Activation | None = None,
        linear: Tensor | None = None,
        metric: Tensor | None = None,
    ) -> Network:
        """A network from weights of any precision, detached and brought to float64 exactly."""
        given = {"W": W, "U": U, "b": b, "C": C, "c": c}
        held = {name: t.detach().cpu().double() for name, t in given.items()}
        if [t.ndim for t in held.values()] != [2, 2, 1, 2, 1]:
            raise ShapeError(
                "W, U and C must be matrices, b and c vectors; got dimensions "
                f"{', '.join(f'{name}: {t.ndim}' for name, t in held.items())}."
            )
        n, d, q = len(W), U.shape[1], len(C)
        held["D"] = torch.zeros(q, d).double() if D is None else D.detach().cpu().double()
        mask = torch.zeros(n, dtype=torch.bool) if linear is None else linear.detach().cpu()
        expected = {"W": (n, n), "U": (n, d), "b": (n,), "C": (q, n), "c": (q,), "D": (q, d),
                    "linear": (n,)}  # fmt: skip
        for name, tensor in {**held, "linear": mask}.items():
            if tuple(tensor.shape) != expected[name]:
                raise ShapeError(
                    f"`{name}` has shape {tuple(tensor.shape)}, expected {expected[name]} for "
                    f"{n} states, {d} inputs and {q} outputs."
                )
            if not bool(torch.isfinite(tensor).all()):
                raise NotCertifiableError(f"`{name}` has NaN or infinite entries.")
        hint = None if metric is None else metric.detach().cpu().double().expand(n)
        return cls(**held, activation=activation or ReLU(), linear=mask, metric=hint)

    @property
    def n(self) -> int:
        """States."""
        return len(self.W)

    @property
    def d(self) -> int:
        """Inputs."""
        return self.U.shape[1]

    @property
    def q(self) -> int:
        """Outputs."""
        return len(self.C)

    @property
    def slope(self) -> Tensor:
        """``s`` of ``phi(v) = max(v, s v)``, shape (n,): 0 for ReLU, 1 for the identity.

        Raises:
            NotCertifiableError: The activation is not of this form.
        """
        s = flat_slope(self.activation)
        if s is None:
            raise NotCertifiableError(
                f"`{self.activation.name}` is not piecewise linear with one kink at zero.",
                hint="complete verification covers ReLU and leaky ReLU; linear bounds and "
                "boxes cover the others.",
            )
        # two numbers alone would meet in the default dtype and round the slope to float32
        return torch.where(self.linear, torch.ones(self.n, dtype=torch.float64), s)

    def phi(self, v: Tensor) -> Tensor:
        """The activation, elementwise on preactivations of shape (..., n)."""
        return torch.where(self.linear, v, self.activation(v))

    def preactivation(self, z: Tensor, x: Tensor) -> Tensor:
        """``W z + U x + b`` for batches (B, n) and (B, d)."""
        return torch.addmm(torch.addmm(self.b, x, self.U.mT), z, self.W.mT)

    def output(self, z: Tensor, x: Tensor) -> Tensor:
        """``C z + D x + c`` for batches (B, n) and (B, d)."""
        return torch.addmm(torch.addmm(self.c, x, self.D.mT), z, self.C.mT)

    def digest(self) -> str:
        """SHA-256 of the weights: names, shapes and little-endian float64 values in fixed order."""
        state = hashlib.sha256()
        for name in ("W", "U", "b", "C", "D", "c"):
            tensor: Tensor = getattr(self, name)
            state.update(f"{name}{list(tensor.shape)};".encode())
            state.update(tensor.contiguous().numpy().astype("<f8").tobytes())
        state.update(f"slope{[self.n]};".encode())
        state.update(self.slope.numpy().astype("<f8").tobytes())
        return state.hexdigest()
