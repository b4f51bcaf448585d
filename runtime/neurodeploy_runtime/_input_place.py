"""Where an input lies on this machine: nothing that is written may touch it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from neurodeploy_runtime._errors import OutputError
from neurodeploy_runtime.volumes._open import STORE_MARKS

#: What a folder of planes takes for one of them.
_PLANES = (".tif", ".tiff")


def local_path(path: Path | str) -> Path | None:
    """A path, or an address of this machine, as a path; None for a server's.

    >>> local_path("file:///data/brain.zarr").as_posix()
    '/data/brain.zarr'
    >>> local_path("s3://bucket/brain.zarr") is None
    True
    """
    if isinstance(path, Path):
        return path
    if path.startswith("file://"):
        return Path(path.removeprefix("file://"))
    return None if "://" in path else Path(path)


def refuse_input(
    paths: Iterable[Path], source: Path | str, files: Sequence[Path] = ()
) -> None:
    """Refuse to write where that is the input, lies in it, or holds it.

    `source` is where the input was opened, and `files` what it is read from, where
    they are more. Links are followed, on both sides.

    Raises
    ------
    OutputError
        One of the three, naming the input.
    """
    # There may be thousands of places, on a slow disk: each is looked at once.
    places = set(_places(source, files))
    around = {parent for place in places for parent in place.parents}
    for path in paths:
        target = path.resolve()
        if target in places or (path.exists() and _same_file(path, places)):
            raise OutputError(f"{path} is the input: it is never overwritten")
        if target in around:
            raise OutputError(
                f"{path} holds the input {source}: it is never overwritten, choose "
                "another name"
            )
        if lies_inside(path, source):
            raise OutputError(f"{path} lies inside the input: choose another place")


def lies_inside(path: Path, source: Path | str) -> bool:
    """Whether `path` would be a part of the input when it is read again.

    Anything below a store is. A folder of planes takes only the TIFFs right in it.
    """
    whole = local_path(source)
    if whole is None or not whole.is_dir():
        return False
    if any((whole / mark).is_file() for mark in STORE_MARKS):
        return whole.resolve() in path.resolve().parents
    if path.parent.resolve() != whole.resolve() or path.suffix.lower() not in _PLANES:
        return False
    return any(
        file.suffix.lower() in _PLANES and file.name != path.name
        for file in whole.iterdir()
    )


def _places(source: Path | str, files: Sequence[Path]) -> Iterator[Path]:
    """What is read, as resolved paths."""
    whole = local_path(source)
    if whole is not None:
        yield whole.resolve()
    # Thousands of planes share their folder, which is resolved once.
    folders: dict[Path, Path] = {}
    for file in files:
        if file.is_symlink():
            yield file.resolve()
        if file.parent not in folders:
            folders[file.parent] = file.parent.resolve()
        yield folders[file.parent] / file.name


def _same_file(path: Path, places: Iterable[Path]) -> bool:
    """By another name: a hard link, or a system that ignores case."""
    mine = path.stat()
    for place in places:
        try:
            if os.path.samestat(mine, place.stat()):
                return True
        except OSError:
            continue
    return False
