"""How a monotone network learns a table, as it stands in a configuration."""

from __future__ import annotations

from typing import final

from pydantic import Field

from wellposed.errors import ConfigError
from wellposed.training.settings import Settings


@final
class TableRecipe(Settings):
    """A Lipschitz monotone network and how it is trained by Adam.

    Args:
        hidden: Widths of the hidden layers, multiples of `group`.
        group: Of the sorting; 2 is MaxMin.
        lipschitz: Constant of the body; with the linear part, the network has twice it.
        lr: Learning rate.
        batch: Rows a step; all of them for 0.
        epochs: Passes, at most.
        cosine: Whether the learning rate falls to 0 over these passes.
        average: Decay of a running mean of the weights; none for 0.
        free: Factor of the inputs without a sign, which makes slopes in them steeper.
        knots: Most knots of a feature's calibrator; features are standardised instead for 0.
    """

    hidden: tuple[int, ...] = Field(min_length=1)
    group: int = Field(default=2, ge=1)
    lipschitz: float = Field(default=1.0, gt=0)
    lr: float = Field(default=1e-2, gt=0)
    batch: int = Field(default=0, ge=0)
    epochs: int = Field(default=300, ge=1)
    cosine: bool = False
    average: float = Field(default=0.0, ge=0, lt=1)
    free: float = Field(default=1.0, gt=0)
    knots: int = Field(default=0, ge=0)

    def model_post_init(self, context: object, /) -> None:
        """Check what one key alone does not tell."""
        if any(width < 1 or width % self.group for width in self.hidden):
            raise ConfigError(
                f"`hidden` must be positive multiples of `group` = {self.group}, got {self.hidden}."
            )
        if self.knots == 1:
            raise ConfigError("`knots` must be 0 for none or at least 2, got 1.")
