"""VNN-LIB properties: what they mean, and the line that is wrong."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from wellposed.errors import DataError
from wellposed.verify.vnnlib import load_property, parse_property

HEAD = """; a comment (with parentheses
(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const Y_0 Real)
(declare-const Y_1 Real)
(declare-const Y_2 Real)
"""
BOX = """(assert (<= X_0 0.1)) (assert (>= X_0 -0.1))
(assert (and (<= X_1 1) (<= 0 X_1)))
"""


def test_a_conjunction_is_one_clause():
    (task,) = parse_property(HEAD + BOX + "(assert (<= Y_0 Y_1))(assert (<= Y_0 Y_2))", 2, 3)
    own = task.statement
    assert own.clause.tolist() == [0, 0]
    assert own.rows.tolist() == [[1, -1, 0], [1, 0, -1]]
    assert own.label is None
    assert task.region.lower.shape == (1, 2)
    # decimal numbers are enclosed
    assert Fraction(task.region.upper[0, 0].item()) >= Fraction(1, 10)
    assert Fraction(task.region.lower[0, 0].item()) <= -Fraction(1, 10)
    assert task.region.upper[0, 0].item() == pytest.approx(0.1, abs=1e-16)
    assert (task.region.lower[0, 1].item(), task.region.upper[0, 1].item()) == (0, 1)


def test_alternatives_share_a_box_or_have_their_own():
    text = HEAD + BOX + "(assert (or (and (>= Y_1 Y_0)) (and (>= Y_2 Y_0) (<= Y_1 3.25))))"
    (task,) = parse_property(text, 2, 3)
    assert task.statement.clause.tolist() == [0, 1, 1]
    assert task.statement.offset.tolist() == [0, 0, -3.25]
    text = (
        HEAD
        + """(assert (or
      (and (<= X_0 1) (>= X_0 0) (<= X_1 1) (>= X_1 0) (<= Y_0 0))
      (and (<= X_0 3) (>= X_0 2) (<= X_1 1) (>= X_1 0) (<= Y_0 0) (>= Y_1 4))
      (and (<= X_0 1) (>= X_0 2) (<= X_1 1) (>= X_1 0) (<= Y_0 0))))"""
    )
    tasks = parse_property(text, 2, 3)
    assert [t.region.lower[0].tolist() for t in tasks] == [[0, 0], [2, 0]]
    assert [len(t.statement.rows) for t in tasks] == [1, 2]


def test_statements_mean_what_the_assertions_mean():
    """Random nested assertions against their evaluation on random outputs."""
    rng = np.random.default_rng(0)

    def expression():
        w, k = rng.integers(-3, 4, 3), rng.integers(-8, 9) / 4
        text = f"(+ (* {w[0]} Y_0) (- (* {-w[1]} Y_1)) (- (* {w[2]} Y_2) {-k}))"
        return text, lambda y: w[0] * y[0] + w[1] * y[1] + w[2] * y[2] + k

    def assertion(depth):
        if depth == 0:
            (a, f), (b, g), le = expression(), expression(), bool(rng.integers(2))
            return f"({'<=' if le else '>='} {a} {b})", lambda y: (f(y) <= g(y)) if le else (
                f(y) >= g(y))  # fmt: skip
        parts = [assertion(depth - 1) for _ in range(2)]
        both = bool(rng.integers(2))
        check = all if both else any
        text = f"({'and' if both else 'or'} {' '.join(t for t, _ in parts)})"
        return text, lambda y: check(f(y) for _, f in parts)

    seen = set()
    for _ in range(40):
        text, unsafe = assertion(3)
        tasks = parse_property(HEAD + BOX + f"(assert {text})", 2, 3)
        for y in 2 * rng.standard_normal((20, 3)):
            safe = all(t.statement.margin(torch.from_numpy(y[None])).item() > 0 for t in tasks)
            assert safe == (not unsafe(y))
            seen.add(safe)
    assert seen == {True, False}


def test_constants_are_rounded_to_the_unsafe_side():
    (task,) = parse_property(HEAD + BOX + "(assert (<= Y_0 0.3))", 2, 3)
    # safe means Y_0 - 0.3 > 0; the statement must not be easier than that
    scale = Fraction(task.statement.rows[0, 0].item())
    assert Fraction(task.statement.offset[0].item()) <= -Fraction(3, 10) * scale
    (task,) = parse_property(HEAD + BOX + "(assert (<= (* 0.1 Y_0) (* 0.7 Y_1)))", 2, 3)
    assert task.statement.rows.tolist() == [[1, -7, 0]]


@pytest.mark.parametrize(
    ("text", "line", "match"),
    [
        (HEAD + BOX + "(assert (<= Y_0 Z_1))", 9, "Z_1"),
        (HEAD + BOX + "(assert (<= Y_0 Y_3))", 9, "not declared"),
        (HEAD + BOX + "\n(assert (<= Y_0 Y_1)", 10, "never closed"),
        (HEAD + BOX + "(assert (<= Y_0 Y_1)))", 9, "outside"),
        (HEAD + BOX + "word", 9, "outside"),
        (HEAD + BOX + "(assert (< Y_0 Y_1))", 9, "'<'"),
        (HEAD + BOX + "(assert (not (<= Y_0 Y_1)))", 9, "'not'"),
        (HEAD + BOX + "(assert (<= Y_0))", 9, "sides"),
        (HEAD + BOX + "(assert)", 9, "parts"),
        (HEAD + BOX + "(assert Y_0)", 9, "no assertion"),
        (HEAD + BOX + "(assert (<= (* Y_0 Y_1) 0))", 9, "linear"),
        (HEAD + BOX + "(assert (<= (/ Y_0 2) 0))", 9, "linear"),
        (HEAD + BOX + "(assert (<= Y_0 nan))", 9, "finite"),
        (HEAD + BOX + "(assert (<= Y_0 1e99999999999999))", 9, "finite"),
        (HEAD + BOX + "(assert (<= (+ X_0 X_1) 0))", 9, "several"),
        (HEAD + BOX + "(assert (<= X_0 Y_0))", 9, "several"),
        (HEAD + BOX + "(push 1)", 9, "declare-const or assert"),
        (HEAD + BOX + "()", 9, "declare-const or assert"),
        (HEAD + BOX, 8, "outputs"),
        (HEAD + "(assert (<= X_0 1))(assert (<= Y_0 0))", 7, "no lower or no upper"),
        (HEAD + BOX + "(assert (<= X_0 -5))(assert (<= Y_0 0))", 9, "no input"),
        (HEAD + BOX + "(assert (<= Y_0 (* 0.1234567890123456789 Y_1)))", 9, "float64"),
        (HEAD + "(declare-const X_2 Int)", 7, "declaration"),
        (HEAD + "(" * 500, 7, "nested"),
        ("(declare-const X_0 Real)", 1, "inputs"),
        ("", 1, "inputs"),
        (HEAD + BOX + f"(assert (and {' '.join(['(or (<= Y_0 0) (<= Y_1 0))'] * 40)}))", 9,
         "alternatives"),
    ],
)  # fmt: skip
def test_the_line_is_named(text, line, match):
    with pytest.raises(DataError, match=rf"(?s)line {line}: .*{match}"):
        parse_property(text, 2, 3)


def test_files(tmp_path):
    path = tmp_path / "p.vnnlib"
    with pytest.raises(DataError, match="cannot be read"):
        load_property(path, 2, 3)
    path.write_text(HEAD + BOX + "(assert (<= Y_0 Y_1))")
    assert len(load_property(path, 2, 3)) == 1
    with pytest.raises(DataError, match=r"p\.vnnlib.*line 9.*784 inputs"):
        load_property(path, 784, 3)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        load_property(path, 2, 3)
