"""What every kind of configuration shares: TOML and flags in, frozen models or clear errors out."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError

from wellposed.errors import ConfigError
from wellposed.experiments.names import nearest
from wellposed.training.settings import Settings

T = TypeVar("T", bound=Settings)


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        ConfigError: The file is absent or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        near = sorted(p.name for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        raise ConfigError(
            f"The configuration `{path}` cannot be read: {error}.",
            hint=f"in that folder there are {', '.join(near)}." if near else "",
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"`{path}` is not valid TOML: {error}.") from error


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `change`; a section of another `kind` is replaced as a whole."""
    out = dict(base)
    for key, value in change.items():
        old = out.get(key)
        if not isinstance(value, Mapping) or not isinstance(old, Mapping):
            out[key] = value
        elif "kind" in value and value["kind"] != old.get("kind"):
            out[key] = dict(value)
        else:
            out[key] = merge(old, value)
    return out


def flags(kind: type[Settings], tokens: Sequence[str]) -> dict[str, Any]:
    """Nested mappings from ``--training.epochs 3 --seeds=0,1 --model.kind mlp``.

    The last part of a key is enough where only one section has it: ``--epochs 3``.

    Args:
        kind: Of the configuration.
        tokens: As they stand on the command line.

    Raises:
        ConfigError: A token is not a flag, has no value, or its key is not known.
    """
    out: dict[str, Any] = {}
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--"):
            raise ConfigError(f"`{token}` is not a flag; expected `--section.key value`.")
        key, joined, value = token[2:].partition("=")
        if not joined:
            if not rest:
                raise ConfigError(f"The flag `{token}` has no value.")
            value = rest.pop(0)
        *sections, last = _full_key(kind, key).split(".")
        place = out
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = _literal(value)
    return out


def keys(kind: type[Settings]) -> dict[str, str]:
    """Every key of a configuration with a description of what it takes."""
    return dict(_leaves(kind, ""))


def _full_key(kind: type[Settings], key: str) -> str:
    key = key.replace("-", "_")
    table = keys(kind)
    if key in table or ("variants" in table and key.startswith("variants.")):
        return key
    ends = [full for full in table if full.rpartition(".")[2] == key]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise ConfigError(f"The flag `--{key}` could be {' or '.join(f'`--{e}`' for e in ends)}.")
    short = {full.rpartition(".")[2] for full in table}
    raise ConfigError(
        f"There is no key `{key}`.",
        hint=nearest(key, sorted({*table, *short}))
        or f"the sections are {', '.join(kind.model_fields)}.",
    )


def _literal(text: str) -> Any:
    """A TOML value; a bare word is a string and ``0,1,2`` a list."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return [_literal(part) for part in text.split(",") if part] if "," in text else text


def _leaves(kind: type[Settings], prefix: str) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for name, info in kind.model_fields.items():
        members = _models(info.annotation)
        for member in members:
            out += _leaves(member, f"{prefix}{name}.")
        if not members:
            shown = getattr(info.annotation, "__name__", str(info.annotation))
            default = "required" if info.is_required() else f"default {info.default!r}"
            out.append((f"{prefix}{name}", f"{shown}, {default}"))
    return out


def _models(annotation: Any) -> list[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []


def _items(annotation: Any) -> list[type[Settings]]:
    """Models of the entries of a list."""
    found = get_args(annotation) if get_origin(annotation) is tuple else ()
    return [model for part in found for model in _models(part)]


def checked(kind: type[T], content: Mapping[str, Any], prefix: str = "", source: str = "") -> T:
    """A value of a model from nested mappings.

    Args:
        kind: The model.
        content: As TOML gives it.
        prefix: Of the keys, for messages.
        source: Where it came from, for messages.

    Raises:
        ConfigError: A key is unknown or a value is not what was expected; all are told.
    """
    try:
        return kind.model_validate(dict(content))
    except ValidationError as error:
        told = [_explain(kind, problem, prefix) for problem in error.errors()]
        messages = [message for message, _ in told]
        hints = [hint for _, hint in told if hint]
        where = f"{source}: " if source else ""
        raise ConfigError(where + "; ".join(messages), hint=" ".join(hints)) from error


def _explain(kind: type[Settings], problem: Any, prefix: str) -> tuple[str, str]:
    fields, place = kind, []
    for step in problem["loc"]:
        if isinstance(step, int) and place:
            place[-1] += f"[{step}]"
            continue
        known = fields.model_fields
        found = _models(known[step].annotation) if step in known else []
        found = found or (_items(known[step].annotation) if step in known else [])
        tagged = [m for m in _members(fields, place) if _tag(m) == step]
        if tagged:
            fields = tagged[0]  # the tag of a union is not part of the key
            continue
        place.append(str(step))
        if len(found) == 1:
            fields = found[0]
    key = prefix + ".".join(place)
    match problem["type"]:
        case "extra_forbidden":
            known = list(fields.model_fields)
            close = nearest(place[-1], known)
            listing = ", ".join(f"`{name}`" for name in known)
            what = f"`{key}` is not a known key (value {problem['input']!r})"
            return f"{what}; expected one of {listing}.", close
        case "value_error":
            return str(problem["ctx"]["error"]), ""
        case "union_tag_invalid":
            tags = problem["ctx"]["expected_tags"]
            return f"`{key}.kind` is {problem['ctx']['tag']!r}; expected one of {tags}.", ""
        case _:
            return f"`{key}` is {problem['input']!r}: {problem['msg']}.", ""


def _members(fields: type[Settings], place: list[str]) -> list[type[Settings]]:
    if not place or place[-1] not in fields.model_fields:
        return []
    return _models(fields.model_fields[place[-1]].annotation)


def _tag(model: type[Settings]) -> Any:
    return model.model_fields["kind"].default if "kind" in model.model_fields else None
