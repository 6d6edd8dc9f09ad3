"""Configurations: TOML, frozen models and command-line flags, with errors that name the key."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Self, TypeVar, Union, final, get_args, get_origin

from pydantic import Field, ValidationError, model_validator

from wellposed.errors import ConfigError
from wellposed.experiments import families
from wellposed.experiments.families import Model
from wellposed.experiments.families.dense import Nemon
from wellposed.experiments.families.layer import Solve
from wellposed.experiments.names import nearest
from wellposed.experiments.penalties import PenaltySection, PenaltyTerm
from wellposed.experiments.retention import check_teachers
from wellposed.experiments.robust import Plain, Robust
from wellposed.experiments.sections import Attacks, Certified, Data, Variant, Verified
from wellposed.experiments.toml import to_toml
from wellposed.training.recipe import Recipe
from wellposed.training.settings import Settings

T = TypeVar("T", bound=Settings)
_SHARED = ("model", "solve", "training", "penalty", "robust")


@final
class Config(Settings):
    """A whole experiment.

    Args:
        name: Of the run folder.
        seeds: One run each.
        threads: Of the processor; results are bit-identical only for the same number.
        data: The images.
        model: The network.
        solve: Its solver and gradient.
        training: The recipe.
        penalty: A term of the loss.
        robust: What is minimised instead of the clean cross entropy.
        certified: Radii that are certified on the test images.
        attacks: What the trained network is attacked with.
        verified: Which test images are verified after training.
        variants: Named overrides of `model`, `solve`, `training`, `penalty` and `robust`; each is
            trained. One that names another `kind` starts that section anew.
    """

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    threads: int = Field(default=1, ge=1)
    data: Data = Data()
    model: Model = Nemon()
    solve: Solve = Solve()
    training: Recipe = Recipe()
    penalty: PenaltySection = PenaltyTerm()
    robust: Robust = Plain()
    certified: Certified = Certified()
    attacks: Attacks = Attacks()
    verified: Verified = Verified()
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _variants_are_valid(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"`seeds` must differ, got {self.seeds}.")
        check_teachers({name: v.penalty for name, v in self.resolved().items()})
        return self

    def resolved(self) -> dict[str, Variant]:
        """Every network to train, by name.

        Raises:
            ConfigError: An override is not valid.
        """
        base = {name: getattr(self, name).model_dump() for name in _SHARED}
        if not self.variants:
            return {families.kind(self.model): _checked(Variant, base)}
        for name in self.variants:
            if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
                raise ConfigError(
                    f"`variants.{name}` must be made of letters, digits, '-', '_' and '.': it "
                    "names a folder."
                )
        return {
            name: _checked(Variant, merge(base, change), f"variants.{name}.")
            for name, change in self.variants.items()
        }

    def to_toml(self) -> str:
        """The configuration with every default written out."""
        return to_toml(self.model_dump(mode="json"))


def parse(content: Mapping[str, Any], source: str = "") -> Config:
    """A configuration from nested mappings.

    Args:
        content: As TOML gives it.
        source: Where it came from, for messages.

    Raises:
        ConfigError: A key is unknown or a value is not what was expected.
    """
    return _checked(Config, content, source=source)


def load(path: Path | str, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a TOML file; the name of the file is the default name of the run.

    Args:
        path: Of the file.
        overrides: Nested mappings that win over the file.

    Raises:
        ConfigError: The file is absent, is not TOML, or is not a valid configuration.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        near = sorted(p.name for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        raise ConfigError(
            f"The configuration `{path}` cannot be read: {error}.",
            hint=f"in that folder there are {', '.join(near)}." if near else "",
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"`{path}` is not valid TOML: {error}.") from error
    return parse(merge({"name": path.stem, **content}, overrides or {}), str(path))


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


def flags(tokens: Sequence[str]) -> dict[str, Any]:
    """Nested mappings from ``--training.epochs 3 --seeds=0,1 --model.kind mlp``.

    The last part of a key is enough where only one section has it: ``--epochs 3``.

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
        *sections, last = _full_key(key).split(".")
        place = out
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = _literal(value)
    return out


def keys() -> dict[str, str]:
    """Every key of a configuration with a description of what it takes."""
    return dict(_leaves(Config, ""))


def _full_key(key: str) -> str:
    key = key.replace("-", "_")
    table = keys()
    if key in table or key.startswith("variants."):
        return key
    ends = [full for full in table if full.rpartition(".")[2] == key]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise ConfigError(f"The flag `--{key}` could be {' or '.join(f'`--{e}`' for e in ends)}.")
    short = {full.rpartition(".")[2] for full in table}
    raise ConfigError(
        f"There is no key `{key}`.", hint=nearest(key, sorted({*table, *short})) or _sections()
    )


def _sections() -> str:
    return f"the sections are {', '.join(Config.model_fields)}."


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
            out.append((f"{prefix}{name}", f"{shown}, default {info.default!r}"))
    return out


def _models(annotation: Any) -> list[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []


def _checked(kind: type[T], content: Mapping[str, Any], prefix: str = "", source: str = "") -> T:
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
        found = _models(fields.model_fields[step].annotation) if step in fields.model_fields else []
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
