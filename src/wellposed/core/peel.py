"""Reading the numbers of a tensor that a function transform has wrapped."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

# called often in every solve, where a function of our own around them would be felt
wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor  # pyright: ignore
"""Whether a tensor belongs to a `torch.func` transform (vmap, grad, jvp)."""
transforming: Callable[[], bool] = torch._C._are_functorch_transforms_active  # pyright: ignore
"""Whether a `torch.func` transform surrounds the caller."""

AS_IT_IS = nullcontext()
"""Changes nothing: a context for where there is nothing to switch off."""


def plain(x: Tensor) -> Tensor:
    """The tensor under all transforms, hidden batch dimensions included; for decisions only."""
    if not transforming():
        return x.detach()
    while wrapped(x):
        x = torch._C._functorch.get_unwrapped(x)  # pyright: ignore
    # an operation under a live transform would wrap its result again
    with torch._C._DisableFuncTorch():  # pyright: ignore
        return x.detach()


def forward_mode() -> bool:
    """Whether a level of forward-mode differentiation surrounds the caller."""
    return forward_ad._current_level >= 0  # pyright: ignore


def on_tape() -> bool:
    """Whether gradients are recorded, and by nothing but reverse mode outside all transforms.

    Only there a backward pass that is written by hand may replace autograd's own.
    """
    return torch.is_grad_enabled() and not transforming() and not forward_mode()


class Outside(torch.autograd.Function):
    """A Function for use outside of function transforms, where it is called with less ado."""

    @classmethod
    def call(cls, *args: Any) -> Any:
        """`apply`, without looking for transforms that nobody is in."""
        return super(torch.autograd.Function, cls).apply(*args)  # pyright: ignore
