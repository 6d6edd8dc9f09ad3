"""2-norms of convolutions on images of any size."""

from __future__ import annotations

from math import cos, pi, prod, sqrt

import torch
from torch import Tensor

from wellposed.core.brackets import NormBracket, bracket, check_finite
from wellposed.core.convolution_norm import top
from wellposed.core.convolutions import convolution
from wellposed.core.correlated import row_scales
from wellposed.core.gram import check_steps
from wellposed.core.spectra import UNIT
from wellposed.core.tori import torus
from wellposed.errors import ConfigError


@torch.no_grad()
def any_size_bracket(
    kernel: Tensor, *, stride: int = 1, dilation: int = 1, groups: int = 1, density: int = 8
) -> NormBracket:
    """Bounds of ``sup_w ||D(w)||``: no image of any size is stretched by more.

    It holds for zeros outside, however many, and for circular images whose sides the stride
    divides. For a unit vector ``v`` the function ``||D(w) v||^2`` is a trigonometric
    polynomial of degree ``k - 1`` in each frequency. One of degree ``m`` is at least
    ``cos(m t)`` times its maximum at a distance ``t`` from it (M. Riesz [1]), and some point of a
    grid of ``N > 2 m`` points is no further than ``pi / N``: hence

        sup_w ||D(w)|| <= prod_axes cos(pi (k - 1) / N)^(-1/2)  max_grid ||D(w)||.

    The lower bound is the norm on the grid: a large circular image comes as close to the supremum
    as one likes.

    Args:
        kernel: Shape (out, in / groups, ...), with one to three sides.
        stride: Of the result.
        dilation: Of the taps; without a stride it changes nothing.
        groups: Parts of the channels that do not see each other.
        density: ``N / (k - 1)``; above 2. In two dimensions eight is
            within 8.3 %, sixteen within 2 %.

    Raises:
        ConfigError: `density` is too small.
        NotCertifiableError: A weight is not finite.

    References:
        [1] Ehlich, Zeller. Schwankung von Polynomen zwischen Gitterpunkten. Mathematische
        Zeitschrift 86, 1964; the lemma is of 1914.
    """
    if density < 3:
        raise ConfigError(f"A grid needs a density of at least 3, got {density}.")
    axes = kernel.ndim - 2
    spread = 1 if stride == 1 else dilation
    taps = [spread * (k - 1) // stride + 1 for k in kernel.shape[2:]]
    image = [stride * max(1, density * (k - 1)) for k in taps]
    # the stride cuts the kernel into phases; degrees are those of the phases
    operator = convolution(
        kernel.detach().double(),
        image,
        outside="circular",
        stride=stride,
        dilation=spread,
        groups=groups,
    )
    on = torus(operator)
    found = top(on.kernels, on.grid).bracket
    shrink = prod(cos(pi * (k - 1) / (density * (k - 1))) for k in taps if k > 1)
    upper = found.upper / sqrt(shrink) * (1 + (8 + 8 * axes) * UNIT)
    return bracket(found.lower, upper, f"any size, {density} frequencies a tap")


@torch.no_grad()
def spatial_bound(kernel: Tensor, steps: int = 3, groups: int = 1) -> float:
    """An upper bound of the 2-norm on images of any size, from products of kernels alone [1].

    ``max_i ( sum |K^(T)_i| )^(2^-T)`` over rows of the kernel correlated with itself ``T`` times.
    For zeros outside or circular images, any stride and dilation. 20 to 30 % above at three steps;
    the kernel doubles in each, so that four are seldom worth it.

    Args:
        kernel: Shape (out, in / groups, ...), with one to three sides.
        steps: ``T``, at least one.
        groups: Parts of the channels that do not see each other.

    Raises:
        ConfigError: `steps` is not positive.
        NotCertifiableError: A weight is not finite.

    References:
        [1] Delattre, Barthelemy, Allauzen. Spectral norm of convolutional layers with circular and
        zero paddings. 2024, arXiv 2402.00240.
    """
    check_steps(steps)
    size = float(kernel.detach().abs().amax()) if kernel.numel() else 0.0
    check_finite(size)
    if size == 0:
        return 0.0
    found = [
        row_scales(_narrow(part), steps).amax()
        for part in kernel.detach().unflatten(0, (groups, -1))
        if bool(part.any())
    ]
    return float(torch.stack(found).amax())


def _narrow(kernel: Tensor) -> Tensor:
    """The kernel or that of the adjoint, whichever has fewer rows."""
    if kernel.shape[0] <= kernel.shape[1]:
        return kernel
    return kernel.transpose(0, 1).flip(*range(2, kernel.ndim))
