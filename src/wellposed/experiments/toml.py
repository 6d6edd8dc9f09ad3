"""Writing TOML: the standard library only reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from wellposed.errors import ConfigError


def to_toml(content: Mapping[str, Any], prefix: str = "") -> str:
    """Nested mappings of plain values as TOML; keys whose value is `None` are left out."""
    plain = {k: v for k, v in content.items() if not isinstance(v, Mapping) and v is not None}
    tables = {k: v for k, v in content.items() if isinstance(v, Mapping)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    text = "\n".join(lines) + ("\n" if lines else "")
    for key, table in tables.items():
        name = f"{prefix}{_key(key)}"
        body = to_toml(table, name + ".")
        text += f"\n[{name}]\n{body}"
    return text


def _key(key: str) -> str:
    bare = key.replace("-", "").replace("_", "")
    return key if bare.isascii() and bare.isalnum() else json.dumps(key)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return json.dumps(value, ensure_ascii=False)
        case list() | tuple():
            return f"[{', '.join(_value(item) for item in value)}]"
        case _:
            raise ConfigError(f"TOML has no form for {value!r} of type {type(value).__name__}.")
