"""SWC and ESWC files, as they are found."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neurodeploy.morphology._morphology import Morphology
from neurodeploy_runtime import InputError, OutputError

_COLUMNS = "id type x y z radius parent"

#: SNT writes the voxel size of the traced image so.
_SEPARATION = re.compile(
    r"voxel separation.*?:\s*([\d.eE+-]+)[,\s]+([\d.eE+-]+)[,\s]+([\d.eE+-]+)",
    re.IGNORECASE,
)

#: Where commas are decimal points, seven words hold them.
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")

#: Above it, neighbouring whole numbers are one float.
_LARGEST_ID = 2**53


def read_swc(path: str | Path) -> Morphology:
    """Read what can be read of an SWC or ESWC file; what was odd is in `notes`.

    Ids may start anywhere and come in any order, parents may follow their children.
    A node whose parent is absent becomes a root; a line given twice counts once; of
    a repeated id the first node is the one that others refer to; a loop is cut at
    its first node.

    Raises
    ------
    InputError
        Where the file is missing, is no text, holds no node, or a line has fewer
        than seven columns, decimal commas or a value that is not a finite number.
    """
    path = Path(path)
    try:
        # Editors of Windows begin a text with a mark of its encoding.
        text = path.read_text("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if "\0" in text:
        raise InputError(
            f"{path} is no SWC file: it holds bytes that are no text; "
            f"an SWC has lines of {_COLUMNS}"
        )
    rows: list[tuple[float, ...]] = []
    size: tuple[float, float, float] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        body, _, comment = line.partition("#")
        size = _voxel_size(comment) or size
        words = _words(body, path, number)
        if words:
            rows.append(_node(words, path, number))
    if not rows:
        raise InputError(
            f"{path} holds no node: an SWC has lines of {_COLUMNS}, not only comments"
        )
    return _build(rows, size)


def _voxel_size(comment: str) -> tuple[float, float, float] | None:
    """What SNT writes of the traced image, z, y, x; None where it is not there."""
    found = _SEPARATION.search(comment)
    if not found:
        return None
    try:
        x, y, z = (float(value) for value in found.groups())
    except ValueError:
        return None
    return (z, y, x) if all(0 < s < math.inf for s in (z, y, x)) else None


def _words(body: str, path: Path, number: int) -> list[str]:
    """The columns of a line, between blanks or commas."""
    words = body.split()
    if len(words) >= 7 and any(_DECIMAL_COMMA.fullmatch(word) for word in words):
        raise InputError(
            f"line {number} of {path} has commas in its numbers ({body.strip()!r}): "
            "write them with points"
        )
    return body.replace(",", " ").split()


def _node(words: list[str], path: Path, number: int) -> tuple[float, ...]:
    if len(words) < 7:
        raise InputError(
            f"line {number} of {path} has {len(words)} columns, an SWC has seven: "
            f"{_COLUMNS}"
        )
    try:
        values = tuple(float(word) for word in words[:7])
    except ValueError:
        values = (math.nan,) * 7
    whole = (values[0], values[1], values[-1])
    if not all(map(math.isfinite, values)) or any(
        v != int(v) or abs(v) > _LARGEST_ID for v in whole
    ):
        raise InputError(
            f"line {number} of {path} cannot be read: {' '.join(words[:7])!r} is not "
            f"seven finite numbers with whole id, type and parent ({_COLUMNS})"
        )
    return values


def _build(
    rows: list[tuple[float, ...]], size: tuple[float, float, float] | None
) -> Morphology:
    notes: list[str] = []
    once = list(dict.fromkeys(rows))
    if len(once) < len(rows):
        notes.append(f"{len(rows) - len(once)} lines given twice count once")
    table = np.asarray(once)
    row_of: dict[int, int] = {}
    repeated = []
    for row, node in enumerate(table[:, 0].astype(np.int64)):
        if row_of.setdefault(int(node), row) != row:
            repeated.append(int(node))
    if repeated:
        notes.append(
            f"ids {_some(repeated)} are repeated: the first node of each is the one "
            "that others refer to"
        )
    named = table[:, 6].astype(np.int64)
    parent = np.array([row_of.get(int(p), -1) for p in named], np.int64)
    absent = sorted(
        {int(p) for p, row in zip(named, parent, strict=True) if row < 0 and p != -1}
    )
    if absent:
        notes.append(f"parents {_some(absent)} are absent: their children are roots")
    cut = _loops(parent)
    if len(cut):
        parent[cut] = -1
        ids = table[cut, 0].astype(int).tolist()
        notes.append(f"loops are cut at the nodes {_some(ids)}")
    if (parent < 0).sum() > 1:
        notes.append(f"{int((parent < 0).sum())} roots")
    flat = int((table[:, 5] <= 0).sum())
    if flat:
        notes.append(f"{flat} nodes have no radius")
    return Morphology(
        position=table[:, [4, 3, 2]].copy(),
        radius=np.maximum(table[:, 5], 0.0),
        parent=parent,
        kind=table[:, 1].astype(np.int64),
        voxel_size_um=size,
        notes=tuple(notes),
    )


def _loops(parent: NDArray[np.int64]) -> NDArray[np.intp]:
    """The first row of every loop."""
    seen = np.full(len(parent), -1, np.int64)
    found = []
    for start in range(len(parent)):
        row = start
        while row >= 0 and seen[row] < 0:
            seen[row] = start
            row = int(parent[row])
        if row >= 0 and seen[row] == start:
            loop, at = [row], int(parent[row])
            while at != row:
                loop.append(at)
                at = int(parent[at])
            found.append(min(loop))
    return np.array(found, np.intp)


def _some(values: list[int]) -> str:
    shown = ", ".join(map(str, values[:5]))
    return f"{shown} and {len(values) - 5} more" if len(values) > 5 else shown


def write_swc(
    path: str | Path, morphology: Morphology, *, overwrite: bool = False
) -> None:
    """Write an SWC with ids from 1, every parent before its children.

    Raises
    ------
    OutputError
        Where the path exists and `overwrite` is false, or cannot be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise OutputError(
            f"{path} exists: choose another name or allow it to be overwritten"
        )
    order = _parents_first(morphology.parent)
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(1, len(order) + 1)
    lines = ["# id type x y z radius parent"]
    if morphology.voxel_size_um is not None:
        z, y, x = morphology.voxel_size_um
        lines.append(f"# Voxel separation (x,y,z): {x!r}, {y!r}, {z!r}")
    for row in order:
        z, y, x = morphology.position[row]
        up = morphology.parent[row]
        lines.append(
            f"{number[row]} {morphology.kind[row]} {_text(x)} {_text(y)} {_text(z)} "
            f"{_text(morphology.radius[row])} {number[up] if up >= 0 else -1}"
        )
    part = path.with_name(path.name + ".part")
    try:
        part.write_text("\n".join(lines) + "\n", "ascii")
        part.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def _text(value: float) -> str:
    """Six digits, and of a large number as many as keep a thousandth."""
    before = math.floor(math.log10(abs(value))) + 1 if value else 1
    return f"{value:.{max(6, before + 3)}g}"


def _parents_first(parent: NDArray[np.int64]) -> NDArray[np.intp]:
    depth = np.full(len(parent), -1, np.int64)
    for start in range(len(parent)):
        way, row = [], start
        while row >= 0 and depth[row] < 0:
            way.append(row)
            row = int(parent[row])
        level = depth[row] if row >= 0 else -1
        for at in reversed(way):
            level += 1
            depth[at] = level
    return np.argsort(depth, kind="stable")
