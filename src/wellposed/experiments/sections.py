"""The sections of a configuration file."""

from __future__ import annotations

from typing import final

from pydantic import Field

from wellposed.errors import ConfigError
from wellposed.experiments.families import Model
from wellposed.experiments.families.dense import Nemon
from wellposed.experiments.families.layer import Solve
from wellposed.experiments.penalties import PenaltySection, PenaltyTerm
from wellposed.experiments.robust import Plain, Robust
from wellposed.training.recipe import Recipe
from wellposed.training.settings import Settings


@final
class Data(Settings):
    """Which images.

    Args:
        name: Of the image set.
        folder: Where its files lie; the usual places by default.
        validation: Images held out of training to choose by; 0 trains on all and chooses nothing.
        split_seed: Of the choice of the held-out images.
        train_limit: Use the first so many training images; 0 for all.
        test_limit: Use the first so many test images; 0 for all.
    """

    name: str = "mnist"
    folder: str | None = None
    validation: int = Field(default=0, ge=0)
    split_seed: int = 0
    train_limit: int = Field(default=0, ge=0)
    test_limit: int = Field(default=0, ge=0)


@final
class Certified(Settings):
    """Which radii are certified on the test images.

    Args:
        eps: Radii in pixels of [0, 1], none by default; the first is the one to publish.
        samples: The first so many test images; 0 for all.
    """

    eps: tuple[float, ...] = ()
    samples: int = Field(default=0, ge=0)

    def model_post_init(self, context: object, /) -> None:
        """Check the radii."""
        if any(not e >= 0 for e in self.eps) or len(set(self.eps)) != len(self.eps):
            raise ConfigError(
                f"`certified.eps` must be different radii, none negative, got {self.eps}."
            )


@final
class Verified(Settings):
    """Which test images are verified after training, as `wellposed verify` does.

    Args:
        eps: Radii in the max norm, in pixels of [0, 1]; none by default.
        radii: Radii in the 2-norm; none by default.
        samples: The first so many test images; 0 for all.
        seconds: Of the search over phases, an image; 0 for no search.
        nodes: Limit of the same search in cases.
        steps: Gradient steps of the attack; 0 for none.
    """

    eps: tuple[float, ...] = ()
    radii: tuple[float, ...] = ()
    samples: int = Field(default=200, ge=0)
    seconds: float = Field(default=1.0, ge=0)
    nodes: int = Field(default=100_000, ge=0)
    steps: int = Field(default=20, ge=0)

    def model_post_init(self, context: object, /) -> None:
        """Check the radii."""
        for name, given in (("eps", self.eps), ("radii", self.radii)):
            if any(not e >= 0 for e in given) or len(set(given)) != len(given):
                raise ConfigError(
                    f"`verified.{name}` must be different radii, none negative, got {given}."
                )


@final
class Attacks(Settings):
    """What the trained network is attacked with.

    Args:
        eps: Radii in pixels of [0, 1], increasing.
        radii: Radii in the 2-norm, increasing; none by default.
        samples: Test images.
        steps: Of projected gradient descent.
        restarts: Of projected gradient descent.
    """

    eps: tuple[float, ...] = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
    radii: tuple[float, ...] = ()
    samples: int = Field(default=500, ge=1)
    steps: int = Field(default=20, ge=1)
    restarts: int = Field(default=1, ge=1)

    def model_post_init(self, context: object, /) -> None:
        """Check the radii."""
        for name, given in (("eps", self.eps), ("radii", self.radii)):
            if any(not e >= 0 for e in given) or list(given) != sorted(given):
                raise ConfigError(
                    f"`attacks.{name}` must be increasing and not negative, got {given}."
                )
        if not self.eps:
            raise ConfigError("`attacks.eps` must be increasing and not negative, got ().")


@final
class Variant(Settings):
    """One network and how it is trained.

    Args:
        model: The network.
        solve: Its solver and gradient.
        training: The recipe.
        penalty: A term of the loss.
        robust: What is minimised instead of the clean cross entropy.
    """

    model: Model = Nemon()
    solve: Solve = Solve()
    training: Recipe = Recipe()
    penalty: PenaltySection = PenaltyTerm()
    robust: Robust = Plain()
