"""A folder of TIFF planes, one file each, as light-sheet rigs write them."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from neurodeploy_runtime._errors import InputError, NeurodeployError, said_by
from neurodeploy_runtime.volumes._axes import layout_of
from neurodeploy_runtime.volumes._base import ReadOptions, Source
from neurodeploy_runtime.volumes._open import is_plane
from neurodeploy_runtime.volumes._tiff import (
    JPEG,
    FoundVolume,
    PageLayout,
    Segments,
    format_of,
    grey_dtype,
)

_NUMBERS = re.compile(r"\d+")

#: How many missing planes an error lists.
_LISTED = 5


def open_(path: Path, options: ReadOptions) -> Source:
    """Open a folder whose TIFF files are the planes of one volume, in natural order.

    Their names must be the same but for one number, which counts planes or says their
    positions; where one is missing in an even sequence the volume is refused, because
    everything below it would lie too high.
    """
    options.refuse("a folder of planes", "dataset", "level")
    planes = planes_in_order([e for e in path.iterdir() if is_plane(e)], path)
    first: PageLayout | None = None
    name, dtype, alike = "", np.dtype(np.uint8), True
    decoders: dict[Any, tuple[Callable[..., Any], dict[str, Any]]] = {}
    offsets, sizes, decoder = [], [], []
    for plane in planes:
        try:
            with tifffile.TiffFile(plane) as tif:
                page = tif.pages.first
                found_dtype = grey_dtype(page, str(plane))
                pages = len(tif.pages)
                layout = PageLayout.of(page)
                if first is None:
                    first, dtype, name = layout, found_dtype, format_of(tif, layout)
                key = (page.hash, page.jpegtables)
                decoders.setdefault(
                    key, (page.decode, _jpeg_arguments(page, layout.compression))
                )
                decoder.append(decoders[key])
                offsets.append(page.dataoffsets)
                sizes.append(page.databytecounts)
        except NeurodeployError:
            raise
        except Exception as error:  # of any kind: a damaged header leads anywhere
            raise InputError(
                f"{plane} cannot be read as a TIFF plane: {said_by(error)}"
            ) from error
        if pages > 1 or layout.planes > 1:
            raise InputError(
                f"{plane} holds {max(pages, layout.planes)} planes: a folder of planes "
                "has one in each file"
            )
        if layout.shaped != first.shaped or found_dtype != dtype:
            raise InputError(
                f"{plane} has {layout.shaped[2:]} {found_dtype} voxels, {planes[0]} "
                f"has {first.shaped[2:]} {dtype}: move it out of the folder"
            )
        if layout.chunk != first.chunk:
            raise InputError(
                f"{plane} is stored in pieces of {layout.chunk[1:]} voxels, "
                f"{planes[0]} of {first.chunk[1:]}: save all planes alike"
            )
        alike &= layout == first
        count = first.grid[1] * first.grid[2]
        if not len(page.dataoffsets) == len(page.databytecounts) == count:
            raise InputError(
                f"{plane} is damaged: it lists {len(page.dataoffsets)} pieces in "
                f"place of {count}"
            )
    assert first is not None
    found = FoundVolume(
        where=str(path),
        format=f"folder of {name}",
        voxel_size_um=None,
        layout=layout_of("ZYX", (len(planes), *first.shaped[2:]), options, str(path)),
        dtype=dtype,
        page=first,
        contiguous=None,
        segments=Segments(
            list(planes),
            np.asarray(offsets, np.int64),
            np.asarray(sizes, np.int64),
            np.arange(len(planes)),
            decoder,
            alike,
        ),
    )
    return found.source(path, options)


def planes_in_order(files: Sequence[Path], folder: Path) -> list[Path]:
    """Sorted by the one number that differs between their names.

    >>> names = ["z10.tif", "z8.tif", "z9.tif"]
    >>> [p.name for p in planes_in_order([Path(n) for n in names], Path())]
    ['z8.tif', 'z9.tif', 'z10.tif']
    """
    files = sorted(files)
    texts = {_NUMBERS.sub("#", file.name): file for file in files}
    if len(texts) > 1:
        one, other, *_ = texts.values()
        raise InputError(
            f"{folder} holds files of different names, as {one.name} and {other.name}: "
            "keep the planes of one stack in it, named alike but for a number"
        )
    if len(files) == 1:
        return files
    numbers = np.array(
        [[int(n) for n in _NUMBERS.findall(file.name)] for file in files], dtype=object
    )
    varying = [
        column for column in range(numbers.shape[1]) if len(set(numbers[:, column])) > 1
    ]
    if len(varying) != 1:
        raise InputError(
            f"{folder} holds files whose names differ in {len(varying)} numbers, as "
            f"{files[0].name} and {files[-1].name}: keep one channel, tile and time in "
            "it, so that only the number of the plane differs"
        )
    at = dict(zip(numbers[:, varying[0]], files, strict=True))
    positions = sorted(at)
    if len(positions) < len(files):
        raise InputError(
            f"{folder} holds two files for one plane: {len(files)} files have "
            f"{len(positions)} numbers"
        )
    steps = [b - a for a, b in itertools.pairwise(positions)]
    # Of steps that are equally frequent the least: a gap is longer than the others.
    step, often = min(Counter(steps).items(), key=lambda item: (-item[1], item[0]))
    even = 2 * often >= len(steps) and all(s % step == 0 for s in steps)
    missing = [
        number
        for a, b in itertools.pairwise(positions)
        for number in range(a + step, min(b, a + step * (_LISTED + 2)), step)
        if even
    ]
    if missing:
        listed = ", ".join(str(n) for n in missing[:_LISTED])
        raise InputError(
            f"{folder} lacks planes between {at[positions[0]].name} and "
            f"{at[positions[-1]].name}: {listed}"
            f"{' …' if len(missing) > _LISTED else ''}; add them, or split the folder"
        )
    return [at[number] for number in positions]


def _jpeg_arguments(page: Any, compression: int) -> dict[str, Any]:
    if compression not in JPEG:
        return {}
    return {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
