"""Binary convolutional networks, and the same networks in full precision as their teachers."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, final

from pydantic import Field
from torch import nn

from wellposed.errors import ConfigError
from wellposed.experiments.families.layer import Shape, Solve
from wellposed.nn.binary import BinaryConv2d, MeanSize, PowerOfTwo, Scale
from wellposed.nn.link import Link
from wellposed.nn.residual import Residual
from wellposed.nn.signs import EDE, STE, Estimator, ReSTE
from wellposed.training.settings import Settings

_Positive = Annotated[float, Field(gt=0)]


@final
class SteSection(Settings):
    """The clamp's derivative.

    Args:
        kind: ``"ste"``.
        reach: Where it ends.
    """

    kind: Literal["ste"] = "ste"
    reach: _Positive = 1.0


@final
class EdeSection(Settings):
    """The derivative of a hyperbolic tangent that grows steeper over the run.

    Args:
        kind: ``"ede"``.
        first: Steepness at the start.
        last: Steepness at the end.
    """

    kind: Literal["ede"] = "ede"
    first: _Positive = 1e-3
    last: _Positive = 10.0


@final
class ResteSection(Settings):
    """The derivative of a root whose order grows over the run.

    Args:
        kind: ``"reste"``.
        first: Order at the start.
        last: Order at the end.
    """

    kind: Literal["reste"] = "reste"
    first: float = Field(default=1.0, ge=1)
    last: float = Field(default=3.0, ge=1)


EstimatorSection = Annotated[SteSection | EdeSection | ResteSection, Field(discriminator="kind")]


@final
class BinaryConv(Settings):
    """A real convolution, binary ones with normalisation, and a linear readout of the means.

    A block whose channels differ from those before it halves the image; the others have a
    shortcut. Each block is a link, so that a teacher can be compared with.

    Args:
        kind: ``"binary-conv"``.
        channels: Of the real convolution in front, then of the blocks.
        kernel: Odd side of all kernels.
        shrink: Side of the squares of pixels that are averaged first; 1 for none.
        binary: Whether the blocks are binary; the same network in full precision otherwise.
        estimator: Stands for the derivative of the sign.
        scale: Of a filter's signs.
    """

    kind: Literal["binary-conv"] = "binary-conv"
    channels: tuple[int, ...] = Field(default=(16, 32, 32, 64, 64), min_length=2)
    kernel: int = Field(default=3, ge=1)
    shrink: int = Field(default=1, ge=1)
    binary: bool = True
    estimator: EstimatorSection = ResteSection()
    scale: Literal["power-of-two", "mean"] = "power-of-two"


def build(section: BinaryConv, solve: Solve, shape: Shape, classes: int) -> list[nn.Module]:
    """The layers after the scaling of the pixels.

    Raises:
        ConfigError: A number of channels is not positive, the kernel is even, or `shrink` does not
            divide the image.
    """
    if min(section.channels) < 1 or section.kernel % 2 == 0:
        raise ConfigError(
            f"`model.channels` is {section.channels} and `model.kernel` {section.kernel}; expected "
            "positive numbers and an odd one."
        )
    if any(side % section.shrink for side in shape[1:]):
        raise ConfigError(
            f"`model.shrink` is {section.shrink}, expected a divisor of both sides of images of "
            f"{shape[1]} x {shape[2]} pixels."
        )
    first = section.channels[0]
    front: list[nn.Module] = [nn.AvgPool2d(section.shrink)] if section.shrink > 1 else []
    stem = nn.Conv2d(shape[0], first, section.kernel, padding=section.kernel // 2, bias=False)
    front += [stem, nn.BatchNorm2d(first), nn.Hardtanh()]
    blocks = [_block(section, into, out) for into, out in pairwise(section.channels)]
    last = section.channels[-1]
    return [*front, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes)]


def _block(section: BinaryConv, into: int, out: int) -> Link:
    side, stride = section.kernel, 1 if into == out else 2
    convolution: nn.Module
    if section.binary:
        convolution = BinaryConv2d(
            into, out, side, stride=stride, padding=side // 2,
            estimator=_estimator(section.estimator), scale=_SCALES[section.scale],
        )  # fmt: skip
    else:
        convolution = nn.Conv2d(into, out, side, stride, side // 2, bias=False)
    inner = nn.Sequential(convolution, nn.BatchNorm2d(out))
    body = Residual(inner) if stride == 1 else inner
    return Link(nn.Sequential(body, nn.Hardtanh()), out)


_SCALES: dict[str, Scale] = {"power-of-two": PowerOfTwo(), "mean": MeanSize()}


def _estimator(section: SteSection | EdeSection | ResteSection) -> Estimator:
    match section:
        case SteSection():
            return STE(section.reach)
        case EdeSection():
            return EDE(section.first, section.last)
        case ResteSection():
            return ReSTE(section.first, section.last)
