"""Being told of every pass through an equilibrium layer."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from torch import Tensor, nn

from wellposed.nn.equilibrium import Equilibrium


@contextmanager
def watching(
    model: nn.Module, note: Callable[[Equilibrium, tuple[Tensor, ...], Tensor], None]
) -> Generator[None]:
    """Inside this block `note` is called with layer, inputs and output after every pass.

    Args:
        model: All equilibrium layers in it are watched.
        note: Must change nothing.
    """

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, Equilibrium)
        note(layer, inputs, output)

    layers = [layer for layer in model.modules() if isinstance(layer, Equilibrium)]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
