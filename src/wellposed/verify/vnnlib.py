"""Properties in the VNN-LIB format: boxes of inputs, each with outputs that must not be reached.

The subset read here is that of VNN-COMP: inputs ``X_i`` and outputs ``Y_j``, declared as constants,
and assertions built of ``and``, ``or``, ``<=``, ``>=`` over linear expressions. All assertions
together describe the *unsafe* inputs and outputs; the property holds if there are none.

Decimal numbers are read exactly. Bounds of inputs are rounded outward to float64, inequalities of
outputs are scaled to whole coefficients and their constant rounded to the unsafe side.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from itertools import product
from math import inf, lcm, nextafter
from pathlib import Path
from typing import final

import numpy as np
import torch

from wellposed.core.sets import Box
from wellposed.errors import DataError
from wellposed.verify.sexpr import Atom, Form, read_forms, wrong
from wellposed.verify.statement import Statement

_ZERO, _ONE = Fraction(0), Fraction(1)
_DIGITS = 300
_NAME = re.compile(r"([XY])_(\d+)$")
_LIMIT = 100_000
"""Conjunctions up to which nested assertions are multiplied out."""


@final
@dataclass(frozen=True, eq=False)
class Task:
    """One box of inputs on which a statement is to be proved.

    Args:
        region: Shape (1, d).
        statement: If it holds at an input, the output there is not unsafe.
    """

    region: Box
    statement: Statement


@final
@dataclass(frozen=True)
class _Linear:
    """``sum of weights[name] * name + constant``, names are ("X", i) or ("Y", j)."""

    weights: dict[tuple[str, int], Fraction]
    constant: Fraction
    line: int


_Conjunction = tuple[_Linear, ...]


def load_property(path: Path, inputs: int, outputs: int) -> tuple[Task, ...]:
    """The tasks of a property file; the property holds if all their statements do.

    Args:
        path: Of the file.
        inputs: That the network has.
        outputs: That the network has.

    Raises:
        DataError: The file cannot be read or parsed (the line is named), declares other inputs or
            outputs, leaves an input unbounded, or mixes inputs and outputs in one inequality.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"`{path}` cannot be read: {error}.", hint="check the path.") from error
    try:
        return parse_property(text, inputs, outputs)
    except DataError as error:
        raise DataError(f"`{path}`: {error.message}", hint=error.hint) from error


def parse_property(text: str, inputs: int, outputs: int) -> tuple[Task, ...]:
    """The tasks of a property; see `load_property`.

    Raises:
        DataError: As there, without a file's name.
    """
    declared: dict[tuple[str, int], int] = {}
    unsafe: list[_Conjunction] = [()]
    last = 1
    for form in read_forms(text):
        last = form.line
        match form.head:
            case "declare-const" | "declare-fun":
                declared[_declared(form)] = form.line
            case "assert" if len(form.items) == 2:
                options = _disjunction(form.items[1], declared)
                unsafe = _multiply([unsafe, options], form.line)
            case "assert":
                raise wrong(form.line, f"`assert` has {len(form.items) - 1} parts", "one")
            case _:
                raise wrong(
                    form.line, f"a list that starts with {form.head!r}", "declare-const or assert"
                )
    for letter, count, what in (("X", inputs, "inputs"), ("Y", outputs, "outputs")):
        found = {i for kind, i in declared if kind == letter}
        if found != set(range(count)):
            raise wrong(
                last,
                f"the property declares {len(found)} {what} {letter}_i",
                f"{letter}_0 to {letter}_{count - 1}, as the network has {count} {what}",
            )
    return _tasks(unsafe, inputs, outputs, last)


def _declared(form: Form) -> tuple[str, int]:
    words = [item.text if isinstance(item, Atom) else "" for item in form.items]
    match = _NAME.match(words[1]) if len(words) >= 3 else None
    if match is None or words[-1] != "Real":
        raise wrong(form.line, f"declaration {' '.join(words)!r}", "(declare-const X_0 Real)")
    return match.group(1), int(match.group(2))


def _disjunction(item: Atom | Form, declared: dict[tuple[str, int], int]) -> list[_Conjunction]:
    """An assertion as a list of alternatives, each a conjunction of ``linear <= 0``."""
    if isinstance(item, Atom):
        raise wrong(item.line, f"{item.text!r} is no assertion", "and, or, <= or >=")
    parts = item.items[1:]
    match item.head:
        case "or":
            return [option for part in parts for option in _disjunction(part, declared)]
        case "and":
            return _multiply([_disjunction(part, declared) for part in parts], item.line)
        case "<=" | ">=" if len(parts) == 2:
            left, right = (_linear(part, declared) for part in parts)
            sign = Fraction(1 if item.head == "<=" else -1)
            return [(_add([(sign, left), (-sign, right)], item.line),)]
        case "<=" | ">=":
            raise wrong(item.line, f"`{item.head}` has {len(parts)} sides", "two")
        case _:
            raise wrong(item.line, f"the assertion {item.head!r}", "and, or, <= or >=")


def _multiply(groups: Sequence[list[_Conjunction]], line: int) -> list[_Conjunction]:
    size = 1
    for group in groups:
        size *= len(group)
        if size > _LIMIT:
            raise wrong(line, f"more than {_LIMIT:,} alternatives", "fewer nested `or`s")
    return [tuple(part for option in choice for part in option) for choice in product(*groups)]


def _linear(item: Atom | Form, declared: dict[tuple[str, int], int]) -> _Linear:
    if isinstance(item, Atom):
        match = _NAME.match(item.text)
        if match is not None:
            key = match.group(1), int(match.group(2))
            if key not in declared:
                raise wrong(item.line, f"`{item.text}` is not declared", "a declared constant")
            return _Linear({key: _ONE}, _ZERO, item.line)
        return _Linear({}, _number(item), item.line)
    parts = [_linear(part, declared) for part in item.items[1:]]
    match item.head:
        case "+" if parts:
            return _add([(_ONE, part) for part in parts], item.line)
        case "-" if len(parts) == 1:
            return _add([(-_ONE, parts[0])], item.line)
        case "-" if parts:
            return _add([(_ONE, parts[0]), *((-_ONE, part) for part in parts[1:])], item.line)
        case "*" if len(parts) == 2 and any(not part.weights for part in parts):
            one, two = parts if not parts[0].weights else parts[::-1]
            return _add([(one.constant, two)], item.line)
        case _:
            raise wrong(item.line, f"the expression {item.head!r}", "a linear one of +, - and *")


def _number(item: Atom) -> Fraction:
    try:
        value = Decimal(item.text)
    except InvalidOperation:
        value = Decimal("nan")
    # an exponent beyond these has no meaning here and would take for ever
    if not value.is_finite() or not -_DIGITS < value.adjusted() < _DIGITS:
        raise wrong(item.line, f"{item.text!r}", "a finite number, X_i or Y_j")
    return Fraction(value)


def _add(terms: Sequence[tuple[Fraction, _Linear]], line: int) -> _Linear:
    weights: dict[tuple[str, int], Fraction] = {}
    constant = _ZERO
    for factor, term in terms:
        constant += factor * term.constant
        for key, weight in term.weights.items():
            weights[key] = weights.get(key, _ZERO) + factor * weight
    return _Linear({key: weight for key, weight in weights.items() if weight}, constant, line)


def _down(value: Fraction) -> float:
    """The largest float64 that is not above."""
    near = float(value)
    return near if Fraction(near) <= value else nextafter(near, -inf)


def _tasks(
    unsafe: Sequence[_Conjunction], inputs: int, outputs: int, last: int
) -> tuple[Task, ...]:
    """Alternatives with the same box of inputs become the clauses of one statement."""
    found: dict[bytes, tuple[np.ndarray, list[list[_Linear]]]] = {}
    for option in unsafe:
        bounds = np.stack([np.full(inputs, -np.inf), np.full(inputs, np.inf)])
        rows = [part for part in option if not _bounded(part, bounds)]
        if not np.isfinite(bounds).all():
            first = int(np.flatnonzero(~np.isfinite(bounds).all(0))[0])
            raise wrong(last, f"`X_{first}` has no lower or no upper bound", "bounds of all inputs")
        if (bounds[0] > bounds[1]).any():
            continue  # no input is meant
        if not rows:
            raise wrong(last, "an alternative without a condition on outputs", "one on some Y_j")
        found.setdefault(bounds.tobytes(), (bounds, []))[1].append(rows)
    if not found:
        raise wrong(last, "no input satisfies the bounds", "lower bounds below upper bounds")
    return tuple(_task(bounds, clauses, outputs) for bounds, clauses in found.values())


def _bounded(part: _Linear, bounds: np.ndarray) -> bool:
    """Whether the inequality speaks about inputs, which must then be one bound of one input."""
    kinds = {kind for kind, _ in part.weights}
    if "X" not in kinds:
        return False
    if kinds != {"X"} or len(part.weights) != 1:
        raise wrong(
            part.line,
            "an inequality between several variables with an input among them",
            "bounds of single inputs, or inequalities of outputs",
            "only boxes of inputs can be verified; enclose the set in a box.",
        )
    (((_, i), weight),) = part.weights.items()
    limit = -part.constant / weight
    if weight > 0:
        bounds[1, i] = min(bounds[1, i], -_down(-limit))
    else:
        bounds[0, i] = max(bounds[0, i], _down(limit))
    return True


def _task(bounds: np.ndarray, clauses: Sequence[Sequence[_Linear]], outputs: int) -> Task:
    count = sum(len(clause) for clause in clauses)
    rows = torch.zeros(count, outputs, dtype=torch.float64)
    offset = torch.zeros(count, dtype=torch.float64)
    number = torch.zeros(count, dtype=torch.long)
    at = 0
    for k, clause in enumerate(clauses):
        for part in clause:
            # unsafe is "linear <= 0" for all of them: safe if one of them is positive
            scale = lcm(*(weight.denominator for weight in part.weights.values()))
            for (_, j), weight in part.weights.items():
                rows[at, j] = float(scale * weight)
                if Fraction(rows[at, j].item()) != scale * weight:
                    raise wrong(part.line, f"coefficient {weight}", "one that float64 can hold")
            offset[at], number[at] = _down(scale * part.constant), k
            at += 1
    lower, upper = (torch.from_numpy(b.copy())[None] for b in bounds)
    return Task(Box(lower, upper), Statement(rows, offset, number))
