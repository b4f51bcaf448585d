"""Reading a `checkpoint.json`, which anybody may have written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, get_args

from neurodeploy._errors import CheckpointError, ConfigError
from neurodeploy.data._volumes import read_listed
from neurodeploy.networks import NetworkConfig
from neurodeploy_runtime._normalise import Kind

SCHEMA = 1

#: Larger than any honest one, of some hundred bytes a volume; looked at before it is
#: read.
_MAX_BYTES = 64_000_000

#: What the rows of a transfer hold.
_ROW = {"parameter", "rule", "shape", "note"}


def _number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def _three(value: Any, fits: Callable[[float], bool]) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(_number(n) and fits(n) for n in value)
    )


def _row(value: Any) -> bool:
    """Whether a value is what became of one parameter."""
    return (
        isinstance(value, dict)
        and set(value) >= _ROW
        and all(isinstance(value[name], str) for name in _ROW - {"shape"})
        and isinstance(value["shape"], list)
    )


def _measured(value: Any) -> bool:
    """Whether figures are those of a validation, or say nothing of one."""
    if not isinstance(value, dict):
        return False
    found = value.get("validation", {})
    return isinstance(found, dict) and (
        not found
        or (
            all(_number(found.get(name)) for name in ("average_precision", "dice"))
            and _number(found.get("step", 0))
        )
    )


#: Of each field what it has to be, and whether a value is that.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "step": (
        "a whole number, 0 or more",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0,
    ),
    "name": ("a text", lambda v: isinstance(v, str)),
    "threshold": ("a number between 0 and 1", lambda v: _number(v) and 0 < v < 1),
    "overlap": (
        "three numbers from 0 to 0.5 (z, y, x)",
        lambda v: _three(v, lambda n: 0 <= n <= 0.5),
    ),
    "normalisation": (
        " or ".join(get_args(Kind)),
        lambda v: isinstance(v, str) and v in get_args(Kind),
    ),
    "voxel_size_um": (
        "three numbers above 0 (z, y, x), or null",
        lambda v: v is None or _three(v, lambda n: n > 0),
    ),
    "transfer": (
        "a list of what became of each parameter",
        lambda v: isinstance(v, list) and all(map(_row, v)),
    ),
    "tuned": ("true or false", lambda v: isinstance(v, bool)),
    "figures": ("an object, its validation one of numbers", _measured),
    **dict.fromkeys(
        ("training", "validated_on"),
        ("an object", lambda v: isinstance(v, dict)),
    ),
}


def read_fields(
    file: Path, known: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a checkpoint, and the entries of its files.

    `known` are the fields that a checkpoint has. Fields of which the file says nothing
    are absent.

    Raises
    ------
    CheckpointError
        Where it is not readable, too large, of a newer schema, or a field is unknown,
        missing or not what it has to be.
    """
    values = _object(file)
    schema = values.pop("schema")
    if schema > SCHEMA:
        raise CheckpointError(
            f"{file} is of schema {schema}, this version reads up to {SCHEMA}: "
            "upgrade neurodeploy"
        )
    files = values.pop("files", {})
    if not isinstance(files, dict):
        raise CheckpointError(f"{file} names no files")
    if set(values) - set(known) or not {"network", "step"} <= set(values):
        raise CheckpointError(
            f"{file} has the fields {sorted(values)}, not those of a checkpoint"
        )
    for name, (wanted, fits) in _FIELDS.items():
        if name in values and not fits(values[name]):
            raise CheckpointError(
                f"{file} has {_short(values[name])} as {name}: it is not {wanted}"
            )
    try:
        values["network"] = NetworkConfig.from_json(values["network"])
    except (ConfigError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{file} has a network that cannot be built: {error}"
        ) from error
    for name in ("overlap", "voxel_size_um"):
        if values.get(name) is not None:
            values[name] = tuple(values[name])
    values["volumes"] = read_listed(values.get("volumes", {}), str(file))
    return values, files


def _object(file: Path) -> dict[str, Any]:
    """What is in the file, with a schema number."""
    try:
        size = file.stat().st_size
        if size > _MAX_BYTES:
            raise CheckpointError(
                f"{file} has {size} bytes: too many for a {file.name}"
            )
        values = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if (
        not isinstance(values, dict)
        or not isinstance(values.get("schema"), int)
        or isinstance(values["schema"], bool)
    ):
        raise CheckpointError(f"{file} has no schema number: it is not ours")
    return values


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
