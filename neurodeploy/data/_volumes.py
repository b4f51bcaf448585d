"""Which volumes a run learns from: written into its checkpoints, held to on resume."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from neurodeploy._errors import CheckpointError
from neurodeploy.data._dataset import NEURITE, SKELETON, AnnotatedVolume

#: What a run has done with an image: learned from it, chosen its checkpoint and
#: threshold by it, or neither.
Part = Literal["training", "validation", "unseen"]

#: Volumes as they are written down: name, digest of the image, digest of the labels.
Listed = list[dict[str, str]]
_KEYS = ("name", "image", "labels")

#: A digest reads at most about this many voxels, evenly spread.
_MANY = 1 << 20


def listed(volumes: Iterable[AnnotatedVolume]) -> Listed:
    """Names and digests of volumes, in their order."""
    return [
        {
            "name": volume.name,
            "image": image_digest(volume.image),
            # Centre lines are marked, or not, by what the loss looks at.
            "labels": _digest(volume.labels, {SKELETON: NEURITE}),
        }
        for volume in volumes
    ]


def image_digest(image: NDArray[Any]) -> str:
    """What tells an image (z, y, x) from others: 16 digits, of up to 2²⁰ voxels."""
    return _digest(image, {})


def _digest(values: NDArray[Any], same: Mapping[int, int]) -> str:
    # An odd step: one of a row's length would read a single column.
    some = values.reshape(-1)[:: max(1, values.size // _MANY) | 1].copy()
    for value, other in same.items():
        some[some == value] = other
    head = f"{values.shape} {values.dtype.str}".encode()
    return hashlib.sha256(head + some.tobytes()).hexdigest()[:16]


def require_same(
    folder: Path, then: Mapping[str, Listed], now: Mapping[str, Listed]
) -> None:
    """Refuse to resume a run on other volumes, or with others held out.

    Raises
    ------
    CheckpointError
        Where images, labels or the volumes that are held out differ; names them.
    """
    if not then:  # written before checkpoints said it
        return
    for part, does in (("training", "trains on"), ("validation", "holds out")):
        was, is_ = then.get(part, []), now.get(part, [])
        if _marks(was) == _marks(is_):
            continue
        new = _named(is_, was)
        gone = _named(was, is_)
        what = ", ".join(
            text
            for text in (
                f"{_some(new)} not among those of then" if new else "",
                f"{_some(gone)} not among those of now" if gone else "",
            )
            if text
        )
        raise CheckpointError(
            f"{folder} was trained with other volumes than this run {does}: "
            f"{what or 'they come in another order'}; resume with the images and "
            "labels that it began with, or start another run"
        )


def read_listed(values: Any, where: str) -> dict[str, Listed]:
    """The volumes that a file names, which anybody may have written.

    Raises
    ------
    CheckpointError
        Where they are not lists of names and digests.
    """
    good = isinstance(values, dict) and all(
        isinstance(entries, list)
        and all(
            isinstance(entry, dict)
            and all(isinstance(entry.get(key), str) for key in _KEYS)
            for entry in entries
        )
        for entries in values.values()
    )
    if not good:
        raise CheckpointError(
            f"{where} has volumes that are not lists of names and digests: it was "
            "changed by hand, or is damaged"
        )
    return dict(values)


def part_of(image: NDArray[Any], volumes: Mapping[str, Listed]) -> Part | None:
    """What a run, and those that it began from, did with an image; None: unknown."""
    if not volumes:
        return None
    mark = image_digest(image)
    marks = {
        part: {entry["image"] for entry in entries} for part, entries in volumes.items()
    }
    if mark in marks.get("training", set()) | marks.get("before", set()):
        return "training"
    if mark in marks.get("validation", set()) | marks.get("chosen before", set()):
        return "validation"
    return "unseen" if "before" in volumes else None


def _marks(entries: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    return [(entry["image"], entry["labels"]) for entry in entries]


def _named(entries: Listed, others: Listed) -> list[str]:
    """The names of those that are not among others, with what differs."""
    marks, images = set(_marks(others)), {entry["image"] for entry in others}
    return [
        f"{e['name']} (with other labels)" if e["image"] in images else e["name"]
        for e in entries
        if (e["image"], e["labels"]) not in marks
    ]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
