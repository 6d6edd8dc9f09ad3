"""Nested lists in parentheses, with the line on which everything stands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from wellposed.errors import DataError

_DEPTH = 100
_TOKEN = re.compile(r"[()]|[^\s()]+")


@final
@dataclass(frozen=True)
class Atom:
    """A word or a number."""

    text: str
    line: int


@final
@dataclass(frozen=True)
class Form:
    """A list; `line` is that of its opening parenthesis."""

    items: tuple[Atom | Form, ...]
    line: int

    @property
    def head(self) -> str:
        """The first word; empty if there is none."""
        first = self.items[0] if self.items else None
        return first.text if isinstance(first, Atom) else ""


def read_forms(text: str) -> list[Form]:
    """All lists of a text; ``;`` starts a comment.

    Raises:
        DataError: A parenthesis is missing or too many, or a word stands outside of every list.
    """
    stack: list[tuple[int, list[Atom | Form]]] = []
    done: list[Form] = []
    for token, line in _tokens(text):
        if len(stack) > _DEPTH:
            raise wrong(line, f"more than {_DEPTH} nested lists", "fewer")
        if token == "(":
            stack.append((line, []))
        elif not stack:
            raise wrong(line, f"{token!r} stands outside of every list", "an opening parenthesis")
        elif token == ")":
            start, items = stack.pop()
            form = Form(tuple(items), start)
            if stack:
                stack[-1][1].append(form)
            else:
                done.append(form)
        else:
            stack[-1][1].append(Atom(token, line))
    if stack:
        raise wrong(stack[-1][0], "a list is never closed", "a closing parenthesis")
    return done


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    for number, line in enumerate(text.splitlines(), start=1):
        for match in _TOKEN.finditer(line.partition(";")[0]):
            yield match.group(), number


def wrong(line: int, what: str, expected: str, hint: str = "") -> DataError:
    """The error for a place in a text."""
    return DataError(f"line {line}: {what}; expected {expected}.", hint=hint)
