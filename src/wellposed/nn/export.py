"""Plain layers of torch.nn in place of parametrised ones, for shipping a trained network."""

from __future__ import annotations

from copy import deepcopy
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from typing_extensions import override

from wellposed.nn.monotone import MonotoneResidual


@final
class Tilted(nn.Module):
    """``y = body(x) + skip(x)`` with a linear `skip`: a `MonotoneResidual` without its checks.

    Args:
        body: Any module.
        skip: From the features along the last axis to one output or to all.
    """

    def __init__(self, body: nn.Module, skip: nn.Linear) -> None:
        super().__init__()
        self.body, self.skip = body, skip

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.skip(x)


@torch.no_grad()
def export(module: nn.Module) -> nn.Sequential:
    """The same function with every weight computed once and kept in plain layers.

    Parametrizations (bounds of vectors, spectral and orthogonal ones, those of torch) are replaced
    by the weights that they give in evaluation mode, so that the copy can be pickled, scripted,
    compiled and handed to other runtimes; a `MonotoneResidual` becomes its body and one linear
    layer side by side. The copy is no longer bounded while it is trained. `nn.BatchNorm` and other
    modules stay what they are.

    Args:
        module: Any module; it is not changed.

    Returns:
        A copy in evaluation mode.
    """
    plain = _plain(deepcopy(module).eval())
    return (plain if isinstance(plain, nn.Sequential) else nn.Sequential(plain)).eval()


def _plain(module: nn.Module) -> nn.Module:
    if parametrize.is_parametrized(module):
        module = _bare(module)
    for name, child in module.named_children():
        setattr(module, name, _plain(child))
    return _tilted(module) if isinstance(module, MonotoneResidual) else module


def _bare(module: nn.Module) -> nn.Module:
    """The module as it was before its tensors were parametrised, with their present values.

    `remove_parametrizations` would change the class, which copies of the module share.
    """
    kind = parametrize.type_before_parametrizations(module)
    bare: nn.Module = object.__new__(kind)
    state = dict(vars(module))
    for store in ("_parameters", "_buffers", "_modules"):
        state[store] = dict(state[store])
    chains = state["_modules"].pop("parametrizations")
    bare.__dict__.update(state)
    for name in chains:
        value = getattr(module, name).detach().clone()
        bare.register_parameter(name, nn.Parameter(value))
    return bare


def _tilted(module: MonotoneResidual) -> Tilted:
    signs = module.signs.reshape(-1, module.signs.shape[-1])
    skip = nn.Linear(signs.shape[1], len(signs), bias=False, device=signs.device, dtype=signs.dtype)
    skip.weight.copy_(module.constant * signs)
    return Tilted(module.body, skip)
