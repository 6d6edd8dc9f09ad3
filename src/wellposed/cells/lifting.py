"""Modules as functions of explicit tensors, so that gradients reach their parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from wellposed.core.maps import FunctionMap
from wellposed.errors import ConfigError, ShapeError


def module_map(
    module: nn.Module, args: tuple[Tensor, ...], batched: tuple[bool, ...] | None = None
) -> FunctionMap:
    """The map ``z -> module(z, *args)`` with the module's parameters as explicit tensors.

    Buffers are constants of the map. Under automatic mixed precision the result is brought back to
    the precision of the state.

    Args:
        module: Called as ``module(z, *args)``; deterministic, and one sample at a time.
        args: Further tensors.
        batched: Which of `args` have one row a sample; `None` if unknown.

    Raises:
        ConfigError: The module draws random numbers, changes its buffers or mixes samples.
    """
    refuse_unsteady(module)
    names = [name for name, _ in module.named_parameters()]
    parameters = tuple(module.parameters())
    count = len(args)

    def call(z: Tensor, *tensors: Tensor) -> Tensor:
        values = dict(zip(names, tensors[count:], strict=True))
        return functional_call(module, values, (z, *tensors[:count]))

    flags = None if batched is None else (*batched, *[False] * len(parameters))
    return FunctionMap(steady(call), (*args, *parameters), flags)


def steady(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`f` with a check that it maps states to states."""

    def call(z: Tensor, *tensors: Tensor) -> Tensor:
        fz = f(z, *tensors)
        if fz.shape != z.shape:
            raise ShapeError(
                f"The function maps a state of shape {tuple(z.shape)} to one of shape "
                f"{tuple(fz.shape)}; both must be equal.",
                hint="give `start` (a cell) or `z0` (`fixed_point`) the shape of the state.",
            )
        if fz.dtype == z.dtype:
            return fz
        if torch.is_autocast_enabled(z.device.type):
            return fz.to(z.dtype)
        raise ShapeError(
            f"The function maps a state of dtype {z.dtype} to {fz.dtype}; both must be equal.",
            hint="convert the inputs or the module with `.to(dtype)`.",
        )

    return call


def refuse_unsteady(module: nn.Module) -> None:
    """Refuse modules whose result changes from call to call or depends on other samples.

    Raises:
        ConfigError: Names the first such module.
    """
    for name, part in module.named_modules():
        why = _fault(part)
        if why:
            where = f"`{name}` ({type(part).__name__})" if name else f"`{type(part).__name__}`"
            raise ConfigError(
                f"{where} {why}, so z = f(z, x) is not one equation for each sample.",
                hint="move it in front of the layer or behind it, use LayerNorm or GroupNorm "
                "instead, or call `.eval()` on the part inside.",
            )


# public classes: torch keeps their common bases private
_BATCH = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
_INSTANCE = nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d
_DROPOUT = (
    nn.Dropout
    | nn.Dropout1d
    | nn.Dropout2d
    | nn.Dropout3d
    | nn.AlphaDropout
    | nn.FeatureAlphaDropout
)


def _fault(part: nn.Module) -> str:
    if isinstance(part, _BATCH):
        if part.training:
            return "is in training mode: it mixes the samples of a batch and changes its buffers"
        return "" if part.running_mean is not None else "mixes the samples of a batch"
    if not part.training:
        return ""
    if isinstance(part, _INSTANCE) and part.track_running_stats:
        return "is in training mode: it changes its buffers at every evaluation"
    random = isinstance(part, _DROPOUT) and part.p > 0
    random |= isinstance(part, nn.RNNBase | nn.MultiheadAttention) and part.dropout > 0
    if random or isinstance(part, nn.RReLU):
        return "is in training mode: it draws new random numbers at every evaluation"
    return ""
