"""Writing TOML: the standard library only reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from wellposed.errors import ConfigError


def to_toml(content: Mapping[str, Any], prefix: str = "") -> str:
    """Nested mappings of plain values as TOML; keys whose value is `None` are left out.

    A list of mappings becomes an array of tables, ``[[key]]``.

    Raises:
        ConfigError: TOML has no form for a value.
    """
    arrays = {k: v for k, v in content.items() if _is_array(v)}
    tables = {k: v for k, v in content.items() if isinstance(v, Mapping)}
    plain = {
        k: v for k, v in content.items() if k not in arrays and k not in tables and v is not None
    }
    lines = [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    text = "\n".join(lines) + ("\n" if lines else "")
    for key, table in tables.items():
        name = f"{prefix}{_key(key)}"
        body = to_toml(table, name + ".")
        text += f"\n[{name}]\n{body}"
    for key, entries in arrays.items():
        name = f"{prefix}{_key(key)}"
        for entry in entries:
            text += f"\n[[{name}]]\n{to_toml(entry, name + '.')}"
    return text


def _is_array(value: Any) -> bool:
    found = isinstance(value, (list, tuple)) and bool(value)
    return found and all(isinstance(entry, Mapping) for entry in value)


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
