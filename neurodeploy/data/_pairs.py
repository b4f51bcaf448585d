"""Images and their annotations, found in a folder as it is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neurodeploy._errors import DataError
from neurodeploy.data._dataset import (
    BACKGROUND,
    NEURITE,
    AnnotatedVolume,
    measure,
)
from neurodeploy.data._labels import LabelKind, Labels, kinds_of, labels_of
from neurodeploy.data._reading import Reading
from neurodeploy.data._results import is_result
from neurodeploy.morphology import (
    AnnotationSettings,
    Morphology,
    annotate,
    read_swc,
)
from neurodeploy_runtime import Box, InputError
from neurodeploy_runtime.volumes import Source
from neurodeploy_runtime.volumes._plain import open_plain

AnnotationKind = Literal["tracing", "voxels"]
Unit = Literal["voxel", "um"]

_IMAGE_SUFFIXES = (
    ".ome.tiff",
    ".ome.tif",
    ".tiff",
    ".tif",
    ".v3draw",
    ".v3dpbd",
    ".raw",
    ".npy",
    ".ome.zarr",
    ".zarr",
    ".n5",
    ".ims",
    ".h5",
)
_TRACING_SUFFIXES = (".eswc", ".swc")
_STORES = (".zarr", ".n5")

#: Words by which people tell an annotation from its image.
_LABEL_WORD = r"(?:labels?|masks?|seg(?:mentation)?|annotations?|truth|gt|gold)"
_IMAGE_WORD = r"(?:volumes?|images?|img|raw|stack)"
_LABEL_FOLDER = re.compile(rf"^{_LABEL_WORD}$", re.IGNORECASE)
_WORDS = re.compile(
    rf"(?:^|[._ -])(?:{_LABEL_WORD}|{_IMAGE_WORD})(?=$|[._ -])", re.IGNORECASE
)
_SAYS_LABEL = re.compile(rf"(?:^|[._ -]){_LABEL_WORD}(?=$|[._ -])", re.IGNORECASE)

#: Why a segmentation is left out.
_OWN = (
    "a network's answer that neurodeploy wrote, no ground truth: if you corrected it, "
    "save it under another name, such as a_mask.tif"
)

#: A file that holds one volume needs no more.
_AS_IT_IS = Reading()

#: A training image is read whole.
_LIMIT_BYTES = 8_000_000_000


@dataclass(frozen=True)
class Pair:
    """An image and the file that annotates it."""

    image: Path
    annotation: Path
    kind: AnnotationKind

    @property
    def name(self) -> str:
        """What reports call it: folder and image."""
        return f"{self.image.parent.absolute().name}/{self.image.name}"


@dataclass(frozen=True)
class Found:
    """The pairs of a folder, and the files that belong to none and why."""

    folder: Path
    pairs: tuple[Pair, ...]
    left_out: tuple[tuple[Path, str], ...]

    def describe(self) -> str:
        """What was found, and what was left out and why, one reason a line."""
        traced = sum(pair.kind == "tracing" for pair in self.pairs)
        lines = [
            f"{self.folder}: {len(self.pairs)} annotated images "
            f"({traced} by tracings, {len(self.pairs) - traced} by voxels)"
        ]
        reasons: dict[str, list[Path]] = {}
        for path, reason in self.left_out:
            reasons.setdefault(reason, []).append(path)
        for reason, paths in reasons.items():
            shown = ", ".join(str(p.relative_to(self.folder)) for p in paths[:3])
            more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
            lines.append(f"left out: {shown}{more} — {reason}")
        return "\n".join(lines)


def find_pairs(folder: str | Path) -> Found:
    """Pair the images of a folder, and of the folders in it, with their annotations.

    An annotation belongs to the image of the same name beside it: `a.tif` with
    `a.swc`, `a.tif.ano_stamp_2015.swc` or `a_mask.tif`; `volumes/volume-3.tiff` with
    `labels/label-3.tiff`; or it is the only tracing in a folder with one image, as in
    a BigNeuron download. What this tool has segmented itself annotates nothing. No
    voxel is read.

    Raises
    ------
    DataError
        Where the folder is missing or holds no pair.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: name one with images and annotations")
    volumes, tracings = _listed(folder)
    traced = {(path.parent, _stem(path).lower()) for path in tracings}
    words = [
        path
        for path in volumes
        # A folder that was asked for holds images, whatever it is called.
        if _is_label(path, named_by_folder=path.parent != folder)
        and (path.parent, _stem(path).lower()) not in traced
    ]
    results = [path for path in words if is_result(path)]
    labels = [path for path in words if path not in results]
    known = set(words)
    images = [path for path in volumes if path not in known]
    pairs: list[Pair] = []
    left = [(path, _OWN) for path in results]
    paired: set[Path] = set()
    for image in images:
        mine = [t for t in tracings if _traces(t, image)]
        marked = [label for label in labels if _labels(label, image)]
        if not mine and not marked:
            mine = _only_one(image, images, tracings)
        if len(mine) + len(marked) == 1:
            kind: AnnotationKind = "tracing" if mine else "voxels"
            pairs.append(Pair(image, (mine + marked)[0], kind))
            paired |= {image, *mine, *marked}
        elif mine or marked:
            names = ", ".join(p.name for p in (mine + marked)[:3])
            count = len(mine) + len(marked)
            left.append((image, f"{count} annotations would fit ({names}): leave one"))
            paired |= {image, *mine, *marked}
    left += [(p, "no annotation of its name") for p in images if p not in paired]
    left += [
        (p, "no image of its name") for p in [*labels, *tracings] if p not in paired
    ]
    found = Found(folder, tuple(pairs), tuple(sorted(left)))
    if not pairs:
        own = f" ({len(results)} more are its own results)" if results else ""
        raise DataError(
            f"{folder} holds no annotated image, of {len(images)} images, "
            f"{len(labels)} masks{own} and {len(tracings)} tracings: an annotation has "
            "its image's name, or lies in labels/ beside volumes/"
        )
    return found


def label_kinds(found: Found, labels: Labels = "auto") -> dict[Path, LabelKind]:
    """How the voxel annotations of a folder are read, all of them looked at.

    Raises
    ------
    DataError
        Where `labels` is `auto` and one of them fits both.
    InputError
        Where a file cannot be read.
    """
    paths = [pair.annotation for pair in found.pairs if pair.kind == "voxels"]
    return kinds_of(paths, _marks, labels)


def load_pair(
    pair: Pair,
    *,
    unit: Unit = "voxel",
    voxel_size_um: tuple[float, float, float] | None = None,
    settings: AnnotationSettings | None = None,
    group: str = "data",
    labels: Labels = "auto",
    reading: Reading = _AS_IT_IS,
    say: Callable[[str], None] = lambda text: None,
) -> AnnotatedVolume:
    """Read an image and what is known of each of its voxels.

    `unit` is what tracings are written in where they do not say; `voxel_size_um`
    (z, y, x) is used where the image does not say its own; `labels` is how voxels are
    read, from their own values alone where it is `auto` (:func:`label_kinds` looks at
    a folder); `reading` is what is read of an image that holds several volumes, an
    annotation holds one; `say` is told what was odd in a tracing and how it was read.

    Raises
    ------
    DataError
        Where the annotation does not fit the image, is empty, ignores everything or
        knows one class only; where `labels` is `slices`, one class is enough.
    InputError
        Where a file cannot be read.
    """
    try:
        return _load(pair, unit, voxel_size_um, settings, group, labels, reading, say)
    except InputError as error:
        # What is wrong with voxels is told by who knows no file.
        named = (str(pair.image), str(pair.annotation), pair.name)
        if any(name in str(error) for name in named):
            raise
        raise type(error)(f"{pair.name}: {error}") from error


def _load(
    pair: Pair,
    unit: Unit,
    voxel_size_um: tuple[float, float, float] | None,
    settings: AnnotationSettings | None,
    group: str,
    labels: Labels,
    reading: Reading,
    say: Callable[[str], None],
) -> AnnotatedVolume:
    with reading.open(pair.image) as source:
        image, size = _whole(pair.image, source), source.voxel_size_um
    size = size or voxel_size_um
    # First: a tracing would be said not to lie on what is bright in an image of NaN.
    constants = measure(image)
    if pair.kind == "tracing":
        tracing = read_tracing(pair, unit=unit, voxel_size_um=size, reading=reading)
        for note in tracing.notes:
            say(f"{pair.annotation}: {note}")
        ratio = 1.0 if size is None else 2 * size[0] / (size[1] + size[2])
        known = annotate(tracing, image, anisotropy=ratio, settings=settings)
    else:
        marks = _marks(pair.annotation)
        known = labels_of(marks, image.shape, pair.annotation, labels)
    # Of many slices, some hold background alone.
    if pair.kind == "tracing" or labels != "slices":
        require_both(known, str(pair.annotation))
    return AnnotatedVolume(
        image,
        known,
        pair.name,
        group,
        isotropic=size is not None and max(size) < 1.05 * min(size),
        measured=constants,
        voxel_size_um=size,
    )


def read_tracing(
    pair: Pair,
    *,
    unit: Unit = "voxel",
    voxel_size_um: tuple[float, float, float] | None = None,
    reading: Reading = _AS_IT_IS,
) -> Morphology:
    """Read the tracing of an image, in the image's voxels.

    Raises
    ------
    DataError
        Where it is in micrometres and nothing says the voxel size.
    InputError
        Where it cannot be read.
    """
    tracing = read_swc(pair.annotation)
    if unit == "voxel" and tracing.voxel_size_um is None:
        return tracing
    size = tracing.voxel_size_um
    if size is None:
        # As the labels are drawn: what is asked for counts where nothing is said.
        with reading.open(pair.image) as source:
            size = source.voxel_size_um or voxel_size_um
    if size is None:
        raise DataError(
            f"{pair.annotation} is in micrometres and neither it nor {pair.image} "
            "says the voxel size: give it"
        )
    return tracing.to_voxels(size)


def require_both(labels: NDArray[np.uint8], name: str) -> None:
    """Raise a DataError where labels know nothing, or one class only."""
    neurite = int((labels == NEURITE).sum())
    background = int((labels == BACKGROUND).sum())
    if not neurite and not background:
        raise DataError(f"{name} ignores every voxel: there is nothing to learn from")
    if not neurite or not background:
        only = "neurite" if neurite else "background"
        raise DataError(
            f"{name} knows one class only: all {neurite + background} labelled voxels "
            f"are {only}"
        )


def _marks(path: Path) -> NDArray[Any]:
    """Of an annotation every voxel."""
    with open_plain(path) as source:
        return _whole(path, source)


def _whole(path: Path, source: Source) -> NDArray[Any]:
    size = math.prod(source.shape) * source.dtype.itemsize
    if size > _LIMIT_BYTES:
        raise DataError(
            f"{path} takes {size / 1e9:.0f} GB of memory, an annotated image at "
            f"most {_LIMIT_BYTES / 1e9:.0f}: cut it into parts"
        )
    return source.read(Box.whole(source.shape))


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """Volumes and tracings in a folder and below, in the order of their names."""
    volumes, tracings = [], []
    for path in _walk(folder):
        name = path.name.lower()
        if name.endswith(_TRACING_SUFFIXES) and path.is_file():
            tracings.append(path)
        elif name.endswith(_IMAGE_SUFFIXES):
            volumes.append(path)
    return volumes, tracings


def _walk(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Files and stores, by name; a link back to a folder around it is not followed."""
    real = folder.resolve()
    if real in above:
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.name.lower().endswith(_STORES):
            yield from _walk(path, above | {real})
        else:
            yield path


def _is_label(path: Path, *, named_by_folder: bool) -> bool:
    by_folder = named_by_folder and _LABEL_FOLDER.match(path.parent.name)
    return bool(by_folder or _SAYS_LABEL.search(_stem(path)))


def _stem(path: Path) -> str:
    name = path.name
    for suffix in sorted((*_IMAGE_SUFFIXES, *_TRACING_SUFFIXES), key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.stem


def _core(path: Path) -> str:
    """What is left of a name without the words that say image or label."""
    return _WORDS.sub("", _stem(path)).strip("._ -").lower()


def _traces(tracing: Path, image: Path) -> bool:
    if tracing.parent != image.parent:
        return False
    name, stem = tracing.name.lower(), _stem(image).lower()
    return (
        _stem(tracing).lower() == stem
        or name.startswith(f"{image.name.lower()}.")
        or _core(tracing) == _core(image) != ""
    )


def _labels(label: Path, image: Path) -> bool:
    beside = label.parent == image.parent
    next_door = label.parent.parent == image.parent.parent and bool(
        _LABEL_FOLDER.match(label.parent.name)
    )
    below = label.parent.parent == image.parent and bool(
        _LABEL_FOLDER.match(label.parent.name)
    )
    return (beside or next_door or below) and _core(label) == _core(image)


def _only_one(image: Path, images: Iterable[Path], tracings: list[Path]) -> list[Path]:
    """The tracing of a folder in which there is one image and one tracing."""
    if sum(other.parent == image.parent for other in images) != 1:
        return []
    near = [t for t in tracings if t.parent == image.parent]
    return near if len(near) == 1 else []
