"""Status: how the solve of one sample ended."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """How the solve of one sample ended."""

    CONVERGED = 0
    BUDGET = 1
    NONFINITE = 2

    @property
    def message(self) -> str:
        """One sentence for a reader."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.CONVERGED: "the residual reached its tolerance",
    Status.BUDGET: "the budget of evaluations ran out before the tolerance was reached",
    Status.NONFINITE: "an iterate or the input holds NaN or infinity",
}
