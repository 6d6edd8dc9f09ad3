"""Confidence bounds of proportions, and what an imperfect agreement costs them."""

from __future__ import annotations

from math import floor

from wellposed.errors import ConfigError


def proportion_lower(successes: int, trials: int, alpha: float) -> float:
    """Clopper-Pearson: a lower bound of a probability that holds with confidence ``1 - alpha``.

    The ``alpha`` quantile of the beta distribution with parameters ``k, n - k + 1`` [1].

    Args:
        successes: ``k``.
        trials: ``n``, independent.
        alpha: In (0, 1).

    Raises:
        ConfigError: The counts do not go together, or `alpha` is no probability.

    References:
        [1] Clopper, Pearson. The use of confidence or fiducial limits illustrated in the case of
        the binomial. Biometrika 26, 1934.
    """
    from scipy.special import betaincinv

    if not 0 <= successes <= trials or trials < 1:
        raise ConfigError(f"Got {successes} successes of {trials} trials.")
    if not 0 < alpha < 1:
        raise ConfigError(f"`alpha` must lie in (0, 1), got {alpha}.")
    if successes == 0:
        return 0.0
    return float(betaincinv(successes, trials - successes + 1, alpha))


def agreeing_count(successes: int, rate: float) -> int:
    """How many of the successes may be counted if only a part of them is known to be right.

    The number of trials stays what it was: 9000 of 10000 at a rate of 0.9 are 8100 of 10000. To
    reduce both alike would leave the proportion, and thereby the error, as it was.

    Args:
        successes: Counted by the approximate classifier.
        rate: Lower bound of the probability that a success is one of the exact classifier too.

    Raises:
        ConfigError: The count is negative or the rate is no probability.
    """
    if successes < 0 or not 0 <= rate <= 1:
        raise ConfigError(f"Got {successes} successes and a rate of {rate}.")
    # a product that is a whole number may come out a unit below it
    return floor(successes * rate * (1 + 1e-15))


def agreement_lower(successes: int, trials: int, agreed: int, checked: int, alpha: float) -> float:
    """A lower bound for the exact classifier from counts of an approximate one.

    ``P(exact is A) >= P(approximate is A) P(exact agrees | approximate is A)``; either factor is
    bounded with confidence ``1 - alpha/2``, on independent samples.

    Args:
        successes: Samples on which the approximate classifier says A.
        trials: Of how many.
        agreed: Checked samples on which the exact classifier says A as well.
        checked: Samples with answer A of the approximate classifier that were checked.
        alpha: One minus the confidence in all.
    """
    rate = proportion_lower(agreed, checked, alpha / 2)
    return proportion_lower(agreeing_count(successes, rate), trials, alpha / 2)
