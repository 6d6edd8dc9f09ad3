"""When a solve looks at its residuals, and when rows that are done leave the batch."""

from __future__ import annotations

from torch import Tensor


def all_at_most(x: Tensor, bound: float) -> bool:
    """Whether no entry is above `bound` or NaN."""
    # the largest of anything and NaN is NaN, which is at most nothing
    return float(x.amax()) <= bound


def next_look(count: int, stride: int = 1) -> int:
    """The evaluation after which residuals are looked at next.

    After each of the first 64 (each `stride`-th), then ever more rarely: a twentieth of the
    evaluations at most is made in vain. The count alone decides, as what a sample returns must not
    depend on its batch mates. The stride is odd, for methods whose steps alternate between two.
    """
    return count + max(stride, count // 24 | 1 if count >= 64 else 1)


def worthwhile(z: Tensor, room: int, since: int) -> bool:
    """Whether dropping the rows beyond `room` saves more than the copying costs.

    On large states a row costs far more than the few kernels that move it; on small ones the
    kernels count, so that many rows have to go and the solve has to be a long one.
    """
    if room >= len(z):
        return False
    if z.numel() >= _LARGE:
        return 8 * room <= 7 * len(z)
    return since >= _LONG and 2 * room <= len(z)


_LARGE, _LONG = 1 << 17, 12
