"""The one table from names in TOML and on the command line to values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from wellposed.core.activations import ACTIVATIONS, Activation
from wellposed.errors import ConfigError
from wellposed.gradients.base import Gradient
from wellposed.gradients.implicit import Implicit
from wellposed.gradients.random_depth import RandomDepth
from wellposed.gradients.truncated import Neumann, OneStep, Phantom, Unrolled
from wellposed.solvers.anderson import Anderson
from wellposed.solvers.auto import Auto
from wellposed.solvers.base import Solver
from wellposed.solvers.broyden import Broyden
from wellposed.solvers.newton import Newton
from wellposed.solvers.picard import Averaged, Jacobi, Picard
from wellposed.solvers.splitting import DouglasRachford, ForwardBackward, PeacemanRachford

T = TypeVar("T")


SOLVERS: Mapping[str, Callable[[], Solver]] = {
    "auto": Auto,
    "jacobi": Jacobi,
    "picard": Picard,
    "averaged": Averaged,
    "averaged-per-neuron": lambda: Averaged(per_neuron=True),
    "anderson": Anderson,
    "broyden": Broyden,
    "newton": Newton,
    "forward-backward": ForwardBackward,
    "peaceman-rachford": PeacemanRachford,
    "douglas-rachford": DouglasRachford,
}

GRADIENTS: Mapping[str, Callable[[], Gradient]] = {
    "implicit": Implicit,
    "one-step": OneStep,
    "random-depth": RandomDepth,
    "neumann": Neumann,
    "phantom": Phantom,
    "unrolled": Unrolled,
}


def activation(name: str) -> Activation:
    """The activation of a name."""
    return known(name, ACTIVATIONS, "activation")()


def solver(name: str) -> Solver | None:
    """The solver of a name; `None` for ``"default"``, which leaves it to the layer."""
    return None if name == "default" else known(name, SOLVERS, "solver")()


def gradient(name: str) -> Gradient:
    """The gradient of a name."""
    return known(name, GRADIENTS, "gradient")()


def known(name: str, table: Mapping[str, T], what: str) -> T:
    """The entry of a table.

    Raises:
        ConfigError: There is none of this name.
    """
    if name not in table:
        raise ConfigError(
            f"There is no {what} `{name}`; expected one of "
            f"{', '.join(f'`{entry}`' for entry in table)}.",
            hint=nearest(name, table),
        )
    return table[name]


def nearest(name: str, table: object) -> str:
    """A hint that names the entries that are spelt alike."""
    from difflib import get_close_matches

    close = get_close_matches(name, [str(entry) for entry in table], n=3)  # type: ignore[attr-defined]
    return f"did you mean {' or '.join(f'`{entry}`' for entry in close)}?" if close else ""
