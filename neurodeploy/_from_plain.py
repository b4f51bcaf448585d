"""From plain values, as TOML and JSON hold them, to a frozen dataclass of settings."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any, Literal, Union, get_args, get_origin

from neurodeploy._errors import ConfigError


def from_plain(cls: Any, values: Any, where: str, prefix: str = "") -> Any:
    """A `cls` of these values, nested tables included; `where` names them in errors.

    `prefix` is what stands before its fields' names there.

    Raises
    ------
    ConfigError
        Where a field is unknown (the nearest one is named) or of another type, or the
        dataclass refuses a value.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where} is a table, not {values!r}")
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls) if f.init]
    given: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = (
                f": did you mean {prefix}{near[0]}?"
                if near
                else (f": it may be one of {', '.join(known)}")
            )
            raise ConfigError(f"{where} has an unknown field {prefix}{name}{hint}")
        given[name] = _value(hints[name], value, where, prefix + name)
    return cls(**given)


def _value(hint: Any, value: Any, where: str, name: str) -> Any:
    """`value` as the type that a field asks for, or a ConfigError that names it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {name} is a table, not {value!r}")
        return from_plain(hint, value, where, name + ".")
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(
                f"{where}: {name} is {value!r}; it may be "
                f"{', '.join(map(str, arguments))}"
            )
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: {name} is {value!r}, not a list")
        if arguments[-1] is Ellipsis:
            return tuple(_value(arguments[0], v, where, name) for v in value)
        if len(value) != len(arguments):
            raise ConfigError(
                f"{where}: {name} is {value!r}, not a list of {len(arguments)}"
            )
        return tuple(
            _value(h, v, where, name) for h, v in zip(arguments, value, strict=True)
        )
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {name} is a table, not {value!r}")
        return {
            str(k): _value(arguments[1], v, where, f"{name}.{k}")
            for k, v in value.items()
        }
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _value(arguments[0], value, where, name)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: {name} is {value!r}, not of type {hint.__name__}")
    return value
