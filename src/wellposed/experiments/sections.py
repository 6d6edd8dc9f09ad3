"""The sections of a configuration file."""

from __future__ import annotations

from typing import Annotated, Any, Literal, final

from pydantic import AfterValidator, BeforeValidator, Field

from wellposed.core.activations import ACTIVATIONS
from wellposed.errors import ConfigError
from wellposed.experiments.names import GRADIENTS, SOLVERS, known
from wellposed.experiments.robust import Plain, Robust
from wellposed.training.recipe import Recipe
from wellposed.training.settings import Settings


def _activation(name: str) -> str:
    known(name, ACTIVATIONS, "activation")
    return name


def _solver(name: str) -> str:
    known(name, {"default": None, **SOLVERS}, "solver")
    return name


def _gradient(name: str) -> str:
    known(name, GRADIENTS, "gradient")
    return name


ActivationName = Annotated[str, AfterValidator(_activation)]
SolverName = Annotated[str, AfterValidator(_solver)]
GradientName = Annotated[str, AfterValidator(_gradient)]


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
class Nemon(Settings):
    """Equilibrium layer with a bounded logarithmic max norm, and a linear readout.

    Args:
        kind: ``"nemon"``.
        states: Neurons of the equilibrium layer.
        margin: Upper bound of the logarithmic norm; below 1.
        activation: Of the layer.
        dropout: Part of the inputs that is dropped in training.
    """

    kind: Literal["nemon"] = "nemon"
    states: int = Field(default=100, ge=1)
    margin: float = Field(default=0.0, lt=1)
    activation: ActivationName = "relu"
    dropout: float = Field(default=0.0, ge=0, lt=1)


@final
class InfNorm(Settings):
    """Equilibrium layer with ``||A||_inf <= bound`` (implicit deep learning), linear readout.

    Args:
        kind: ``"infnorm"``.
        states: Neurons of the equilibrium layer.
        bound: Upper bound of the max norm; below 1.
        activation: Of the layer.
        dropout: Part of the inputs that is dropped in training.
    """

    kind: Literal["infnorm"] = "infnorm"
    states: int = Field(default=100, ge=1)
    bound: float = Field(default=0.95, gt=0, lt=1)
    activation: ActivationName = "relu"
    dropout: float = Field(default=0.0, ge=0, lt=1)


@final
class Monotone(Settings):
    """Equilibrium layer with a strongly monotone ``I - A`` (MON), linear readout.

    Args:
        kind: ``"monotone"``.
        states: Neurons of the equilibrium layer.
        margin: Modulus of strong monotonicity; positive.
        activation: Of the layer.
        dropout: Part of the inputs that is dropped in training.
    """

    kind: Literal["monotone"] = "monotone"
    states: int = Field(default=87, ge=1)
    margin: float = Field(default=1.0, gt=0)
    activation: ActivationName = "relu"
    dropout: float = Field(default=0.0, ge=0, lt=1)


@final
class Mlp(Settings):
    """Plain network: linear, activation, linear.

    Args:
        kind: ``"mlp"``.
        states: Hidden neurons.
        dropout: Part of the inputs that is dropped in training.
    """

    kind: Literal["mlp"] = "mlp"
    states: int = Field(default=100, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


@final
class NemonConv(Settings):
    """Convolutional equilibrium layer, average pooling and a linear readout.

    Args:
        kind: ``"nemon-conv"``.
        channels: Of the state.
        kernel: Odd side of the input and state kernels.
        stride: Of the input convolution.
        padding: What lies outside the image.
        pool: Side of the averaged squares before the readout; 1 for none.
        margin: Upper bound of the logarithmic norm; below 1.
        activation: Of the layer.
    """

    kind: Literal["nemon-conv"] = "nemon-conv"
    channels: int = Field(default=32, ge=1)
    kernel: int = Field(default=3, ge=1)
    stride: int = Field(default=2, ge=1)
    padding: Literal["zeros", "circular"] = "zeros"
    pool: int = Field(default=2, ge=1)
    margin: float = Field(default=0.0, lt=1)
    activation: ActivationName = "relu"


@final
class NemonDeep(Settings):
    """Strided convolutions with ReLU, a dense equilibrium layer and a linear readout.

    Args:
        kind: ``"nemon-deep"``.
        channels: Of each convolution, in order.
        kernel: Side of the kernels.
        stride: Of the convolutions.
        padding: Zeros on each side.
        states: Neurons of the equilibrium layer.
        margin: Upper bound of the logarithmic norm; below 1.
        activation: Of the equilibrium layer.
    """

    kind: Literal["nemon-deep"] = "nemon-deep"
    channels: tuple[int, ...] = (16, 32)
    kernel: int = Field(default=4, ge=1)
    stride: int = Field(default=2, ge=1)
    padding: int = Field(default=1, ge=0)
    states: int = Field(default=100, ge=1)
    margin: float = Field(default=0.0, lt=1)
    activation: ActivationName = "relu"


def _with_kind(section: Any) -> Any:
    """A model section that names no kind is that of a dense NEMON."""
    if isinstance(section, dict):
        return {"kind": "nemon", **section}
    return section


Model = Annotated[
    Nemon | InfNorm | Monotone | Mlp | NemonConv | NemonDeep,
    Field(discriminator="kind"),
    BeforeValidator(_with_kind),
]


@final
class Solve(Settings):
    """How equilibria are found and differentiated.

    Args:
        solver: Name, or ``"default"`` for the cell's own.
        gradient: Name.
        train_rtol: Relative tolerance in training.
        eval_rtol: Relative tolerance in evaluation.
        max_evaluations: Budget a sample.
    """

    solver: SolverName = "default"
    gradient: GradientName = "implicit"
    train_rtol: float = Field(default=1e-4, gt=0, lt=1)
    eval_rtol: float = Field(default=1e-5, gt=0, lt=1)
    max_evaluations: int = Field(default=1000, ge=1)


@final
class PenaltyTerm(Settings):
    """A term of the loss that depends on the weights alone.

    Args:
        kind: ``"lipschitz"`` for the tight certified bound in the max norm.
        weight: Factor; 0 for no penalty.
    """

    kind: Literal["lipschitz"] = "lipschitz"
    weight: float = Field(default=0.0, ge=0)


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
class Attacks(Settings):
    """What the trained network is attacked with.

    Args:
        eps: Radii in pixels of [0, 1], increasing.
        samples: Test images.
        steps: Of projected gradient descent.
        restarts: Of projected gradient descent.
    """

    eps: tuple[float, ...] = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
    samples: int = Field(default=500, ge=1)
    steps: int = Field(default=20, ge=1)
    restarts: int = Field(default=1, ge=1)

    def model_post_init(self, context: object, /) -> None:
        """Check the radii."""
        if not self.eps or any(not e >= 0 for e in self.eps) or list(self.eps) != sorted(self.eps):
            raise ConfigError(f"`attacks.eps` must be increasing and not negative, got {self.eps}.")


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
    penalty: PenaltyTerm = PenaltyTerm()
    robust: Robust = Plain()
