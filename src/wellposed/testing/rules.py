"""`check_rule`: is a Lipschitz rule sound, tight where it can be, and does it refuse the rest?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from wellposed.attacks.pairs import lipschitz_lower
from wellposed.certify.lipschitz import lipschitz
from wellposed.core.norms import MaxNorm, Norm, OneNorm, TwoNorm
from wellposed.core.records import Certificate
from wellposed.errors import NotCertifiableError, WellposedError
from wellposed.verify.audit import audit

Rule = Callable[[nn.Module, Norm], Certificate]


@final
@dataclass(frozen=True)
class RuleReport:
    """What `check_rule` saw.

    Args:
        checked: Certificates that were compared with attacks.
        refused: Parameter draws for which the rule refused.
        tightest: The smallest ratio of a certificate to its attack.
        witness: That ratio for the witness, one a norm.
    """

    checked: int
    refused: int
    tightest: float
    witness: tuple[float, ...] = ()


def certify_module(module: nn.Module, norm: Norm) -> Certificate:
    """The rule that composition uses: `lipschitz` in one norm."""
    return lipschitz(module, norm_in=norm, norm_out=type(norm)())


def check_rule(
    module_factory: Callable[[], nn.Module],
    sample: Tensor,
    *,
    rule: Rule = certify_module,
    norms: Sequence[Norm] = (MaxNorm(), OneNorm(), TwoNorm()),
    witness: Callable[[], nn.Module] | None = None,
    outside: Sequence[Callable[[], nn.Module]] = (),
    may_refuse: bool = False,
    tightness: float = 1 + 1e-6,
    rounds: int = 3,
    seed: int = 0,
) -> RuleReport:
    """Check a Lipschitz rule on its module type.

    - *Sound*: at ugly parameters (scaled by 1e-3 to 1e3, all positive, signs flipped, one row
      dominating, a few training steps taken) no Jacobian and no attacked pair exceeds it.
    - *Tight*: on `witness` it is attained, up to `tightness`.
    - *Careful*: it refuses every module of `outside`, with a hint.

    Args:
        module_factory: Makes a freshly initialised module.
        sample: A batch of inputs to attack from.
        rule: From a module and a norm to a certificate; by default `lipschitz`.
        norms: Norms of inputs that are tried.
        witness: Makes a module on which the bound is attained at `sample`, in the max norm.
        outside: Make modules outside the rule's hypothesis.
        may_refuse: Whether the rule may refuse some of the ugly parameters.
        tightness: Largest ratio of certificate to attack that counts as attained.
        rounds: Effort of the attacks.
        seed: Of the parameter draws.

    Raises:
        AuditError: An attack exceeds a certificate.
        AssertionError: The rule is not attained on its witness, refuses where it must not, or
            certifies what is outside its hypothesis.
    """
    torch.manual_seed(seed)
    checked, refused, tightest = 0, 0, float("inf")
    for name, spoil in SPOILERS.items():
        module = module_factory().eval()
        spoil(module, sample)
        for norm in norms:
            try:
                certificate = rule(module, norm)
            except NotCertifiableError as error:
                if not may_refuse:
                    raise AssertionError(f"The rule refuses parameters that are {name}.") from error
                refused += 1
                continue
            estimate = lipschitz_lower(
                module, sample, norm_in=norm, norm_out=type(norm)(), rounds=rounds, seed=seed
            )
            summary = audit([certificate], [estimate])
            tightest = min(tightest, summary.comparisons[0].ratio)
            checked += 1
    ratios = () if witness is None else (_attained(rule, witness(), sample, tightness),)
    for make in outside:
        _must_refuse(rule, make())
    return RuleReport(checked, refused, tightest, ratios)


def _attained(rule: Rule, module: nn.Module, sample: Tensor, tightness: float) -> float:
    certificate = rule(module.eval(), MaxNorm())
    ratio = audit([certificate], [lipschitz_lower(module, sample)]).comparisons[0].ratio
    if ratio > tightness:
        raise AssertionError(
            f"The bound {certificate.value:.9g} is {ratio:.6g} times what is attained on the "
            f"witness, expected at most {tightness:.9g} times."
        )
    return ratio


def _must_refuse(rule: Rule, module: nn.Module) -> None:
    try:
        certificate = rule(module, MaxNorm())
    except WellposedError as error:
        if not error.hint:
            raise AssertionError(f"The refusal {error} carries no hint.") from error
        return
    raise AssertionError(
        f"{type(module).__name__} is outside the rule's hypothesis but was certified with "
        f"{certificate.value:.6g}."
    )


Spoiler = Callable[[nn.Module, Tensor], None]


def _scale(factor: float) -> Spoiler:
    def spoil(module: nn.Module, sample: Tensor) -> None:
        del sample
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim > 1:  # vectors may be logarithms of weights
                    parameter.mul_(factor)

    return spoil


def _positive(module: nn.Module, sample: Tensor) -> None:
    del sample
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.abs_()


def _flipped(module: nn.Module, sample: Tensor) -> None:
    del sample
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(torch.randint(0, 2, parameter.shape).to(parameter) * 2 - 1)


def _skewed(module: nn.Module, sample: Tensor) -> None:
    del sample
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter[0] *= 50.0
            else:
                parameter.add_(torch.randn_like(parameter))


def _trained(module: nn.Module, sample: Tensor) -> None:
    """A few steps that try to make the module steep."""
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    first = next(module.parameters())
    for _ in range(5):
        optimiser.zero_grad()
        out = module(sample.to(first.dtype))
        (-out.square().mean()).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()


SPOILERS: dict[str, Spoiler] = {
    "fresh": _scale(1.0),
    "ten times larger": _scale(10.0),
    "a thousand times larger": _scale(1e3),
    "a thousand times smaller": _scale(1e-3),
    "all positive": _positive,
    "random in sign": _flipped,
    "skewed": _skewed,
    "trained to be steep": _trained,
}
