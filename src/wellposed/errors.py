"""Every deliberate exception and warning of the library.

A message says what is wrong, shows the offending value and names what was expected; a `hint`
then says what to do about it.
"""

from __future__ import annotations


class WellposedError(Exception):
    """Base of every exception that the library raises on purpose.

    Args:
        message: What is wrong, the offending value, what was expected.
        hint: What the reader can do about it.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n\nhint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # keyword-only arguments do not survive the default pickling of exceptions
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(kind: type[WellposedError], message: str, hint: str) -> WellposedError:
    return kind(message, hint=hint)


class ConfigError(WellposedError, ValueError):
    """An argument or a configuration value is outside what the callee accepts."""


class ShapeError(WellposedError, ValueError):
    """A tensor has a shape or a dtype that cannot be used here."""


class NotCertifiableError(WellposedError):
    """No rule proves the bound that was asked for: a hypothesis fails or no rule exists."""


class NonConvergenceError(WellposedError, ArithmeticError):
    """A solve ended without reaching its tolerance where an answer was required."""


class HigherOrderError(WellposedError, RuntimeError):
    """A second derivative was asked for where only the first one can be right."""


class DataError(WellposedError):
    """A data file is absent, damaged, or not the file that its digest promises."""


class CheckpointError(WellposedError):
    """A checkpoint is damaged or belongs to another architecture or configuration."""


class AuditError(WellposedError):
    """A measured lower bound exceeds a certificate: one of the two is wrong."""


class NonConvergenceWarning(UserWarning):
    """A solve ended before its tolerance was reached; the value is the best that it had."""
