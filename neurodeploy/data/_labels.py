"""What the values of a voxel annotation mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neurodeploy._errors import DataError
from neurodeploy.data._dataset import BACKGROUND, IGNORE, NEURITE

LabelKind = Literal["mask", "slices"]
#: How voxel annotations are to be read; `auto` looks at all that lie together.
Labels = Literal["auto", "mask", "slices"]

#: What a labelled slice's values mean (TRAILMAP, Friedmann et al., PNAS 2020):
#: 0 not labelled, 1 background, 2 axon, 3 artifact, 4 an axon's edge.
_SLICE_LABELS = {0: IGNORE, 1: BACKGROUND, 2: NEURITE, 3: BACKGROUND, 4: IGNORE}

#: Values that tell what an annotation is are at most this many.
_FEW = 9

_WAY_OUT = "say it with --labels mask or --labels slices"


@dataclass(frozen=True)
class _Look:
    """What an annotation's values say of its kind.

    `kind` is what they say by themselves, None where they fit both; `unclear` is then
    why nobody may guess, and empty where a mask is what is usual.
    """

    kind: LabelKind | None
    unclear: str = ""
    fits_slices: bool = True


def kinds_of(
    paths: Sequence[Path], read: Callable[[Path], NDArray[Any]], labels: Labels
) -> dict[Path, LabelKind]:
    """How each of some voxel annotations is to be read.

    Those of a folder are looked at together: 0 and 1 alone are a mask, and beside
    slices that hold labels up to 4 they are a slice where only background was marked.

    Raises
    ------
    DataError
        Where `labels` is `auto` and the values fit both.
    """
    if labels != "auto":
        return dict.fromkeys(paths, labels)
    looks = {path: _look(read(path)) for path in paths}
    beside: dict[Path, set[LabelKind | None]] = {}
    for path, look in looks.items():
        beside.setdefault(path.parent, set()).add(look.kind)
    return {path: _decide(path, looks[path], beside[path.parent]) for path in paths}


def describe_kinds(kinds: Mapping[Path, LabelKind]) -> str:
    """How voxel annotations are read, folder by folder, a line each; may be empty."""
    counts: dict[tuple[str, LabelKind], int] = {}
    for path, kind in kinds.items():
        key = (str(path.parent), kind)
        counts[key] = counts.get(key, 0) + 1
    meaning = {
        "mask": "as masks (0 background, else neurite)",
        "slices": "as labelled slices (0 not labelled, 1 background, 2 neurite, "
        "3 artifact, 4 edge)",
    }
    return "\n".join(
        f"{folder}: {count} read {meaning[kind]}"
        for (folder, kind), count in counts.items()
    )


def labels_of(
    values: NDArray[Any],
    shape: tuple[int, ...],
    name: str | Path,
    labels: Labels = "auto",
) -> NDArray[np.uint8]:
    """What voxel annotations mean: 0 background, 1 neurite, 255 ignore.

    A mask holds 0 and one other value, or 0, 1 and 255 (ignore); asked for by
    `labels`, any whole numbers. Labelled slices hold 0 to 4: not labelled, background,
    axon, artifact (background), edge (ignored).

    Raises
    ------
    DataError
        Where the shape is another, nothing is marked, or the values do not say what
        they mean.
    """
    if values.shape != shape:
        order = sorted(values.shape) == sorted(shape)
        hint = (
            "its axes are probably in another order"
            if order
            else "they are not of one image"
        )
        raise DataError(
            f"{name} has {_extent(values.shape)} voxels and its image "
            f"{_extent(shape)}: {hint}"
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(
            f"{name} holds NaN or infinity, which is no label: replace it, by 0 where "
            "nothing is marked"
        )
    present = _values(values)
    if present == [0]:
        raise DataError(f"{name} is empty: no voxel of it is marked")
    kind = labels
    if labels == "auto":
        kind = _decide(Path(name), _look(values), set())
    if kind == "slices":
        if not set(present) <= set(_SLICE_LABELS):
            raise DataError(
                f"{name} holds {_shown(present)}, and labelled slices 0 to 4: correct "
                "it, or read it with --labels mask"
            )
        table = np.array([_SLICE_LABELS[v] for v in range(5)], np.uint8)
        return table[values.astype(np.uint8)]
    if set(present) == {0, 1, IGNORE}:
        return values.astype(np.uint8)
    if not _two_values(present) and (values != np.rint(values)).any():
        raise DataError(
            f"{name} holds fractions such as {_shown(present)}: a mask holds whole "
            "numbers; apply a threshold first"
        )
    return np.where(values != 0, np.uint8(NEURITE), np.uint8(BACKGROUND))


def _look(values: NDArray[Any]) -> _Look:
    """What a whole annotation (z, y, x) says of its kind."""
    present = _values(values)
    marks = set(present) - {0}
    if not marks <= set(_SLICE_LABELS):
        known = _two_values(present) or set(present) == {0, 1, IGNORE}
        return _Look(
            "mask" if known else None, "" if known else _no_meaning(present), False
        )
    planes = (values != 0).any(axis=(1, 2))
    filled = float((values[planes] != 0).mean()) if marks else 0.0
    if len(marks) > 1:
        # A slice is labelled throughout; objects lie in a background of zeros.
        if filled >= 0.5:
            return _Look("slices")
        return _Look(
            None,
            f"holds {_shown(present)}, mostly 0 where it is marked: slices (1 "
            f"background, 2 neurite), or a mask of numbered objects? {_WAY_OUT}",
        )
    if filled == 1 and not planes.all():
        return _Look(
            None,
            f"holds {_shown(present)}, and {int(planes.sum())} of its "
            f"{len(planes)} planes are {_shown(sorted(marks))} throughout: slices "
            f"where only background was marked, or a mask? {_WAY_OUT}",
        )
    return _Look(None)


def _decide(path: Path, look: _Look, beside: Set[LabelKind | None]) -> LabelKind:
    if look.kind is not None:
        return look.kind
    if look.fits_slices and {"mask", "slices"} <= beside:
        raise DataError(
            f"{path} fits both the masks and the labelled slices beside it: put them "
            f"into folders of their own, or {_WAY_OUT}"
        )
    if look.fits_slices and "slices" in beside:
        return "slices"
    if look.unclear:
        raise DataError(f"{path} {look.unclear}")
    return "mask"


def _values(values: NDArray[Any]) -> list[float]:
    """The lowest values that occur, one more than are shown."""
    return [float(v) for v in np.unique(values)[:_FEW]]


def _two_values(present: list[float]) -> bool:
    return len(present) <= 2 and (present[0] == 0 or len(present) == 1)


def _shown(present: Sequence[float]) -> str:
    more = " …" if len(present) >= _FEW else ""
    return ", ".join(f"{v:g}" for v in present[: _FEW - 1]) + more


def _no_meaning(present: list[float]) -> str:
    return (
        f"holds {_shown(present)}, which have no known meaning: a mask holds 0 and one "
        "other value, labelled slices 0 to 4; where all but 0 is "
        "neurite, read it with --labels mask"
    )


def _extent(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
