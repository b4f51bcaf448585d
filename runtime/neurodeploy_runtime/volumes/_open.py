"""From a path to a source: which reader a file belongs to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import cast

from neurodeploy_runtime._errors import InputError
from neurodeploy_runtime.volumes._base import (
    CACHE_BYTES,
    ReadOptions,
    Source,
    default_threads,
)


@dataclass(frozen=True)
class Reader:
    """A module with a function ``open_(path, options) -> Source``, and its files."""

    name: str
    module: str
    #: How its files begin; none for a reader of folders and addresses.
    magics: tuple[bytes, ...]
    suffixes: tuple[str, ...]
    #: The extra that brings its library, where a plain install lacks it.
    extra: str | None = None

    def open(self, path: Path | str, options: ReadOptions) -> Source:
        """Import the module, which may be heavy, and open the file."""
        try:
            module = import_module(f"neurodeploy_runtime.volumes.{self.module}")
        except ModuleNotFoundError as error:
            library = error.name or ""
            if self.extra is None or library.startswith("neurodeploy_runtime"):
                raise
            raise InputError(
                f"{path} is {self.name}, which needs {library}: "
                f'pip install "neurodeploy[{self.extra}]"'
            ) from error
        return cast(Source, module.open_(path, options))


#: A new format is a module beside this one, and a line here.
READERS = (
    Reader(
        "TIFF",
        "_tiff",
        (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
        (".tif", ".tiff", ".lsm", ".stk"),
    ),
    Reader(
        "v3draw",
        "_v3draw",
        (b"raw_image_stack_by_hpeng", b"raw5image_stack_by_hpeng"),
        (".v3draw", ".raw", ".v3draw5", ".raw5"),
    ),
    Reader("v3dpbd", "_v3dpbd", (b"v3d_volume_pkbitdf_encod",), (".v3dpbd",)),
    Reader("NumPy", "_numpy", (b"\x93NUMPY",), (".npy",)),
    Reader(
        "HDF5",
        "_hdf5",
        (b"\x89HDF\r\n\x1a\n",),
        (".ims", ".h5", ".hdf5"),
        "cluster",
    ),
)

FOLDER_OF_PLANES = Reader("a folder of TIFF planes", "_tiff_folder", (), ())
TENSORSTORE = Reader("Zarr, N5 or precomputed", "_tensorstore", (), (), "cluster")

#: How the names of inputs end, in lower case: of files, and of folders that are one.
INPUT_SUFFIXES = {
    *(suffix for reader in READERS for suffix in reader.suffixes),
    *(".btf", ".tf8", ".zarr", ".n5", ".precomputed", ".ng"),
}

SCHEMES = ("s3://", "gs://", "http://", "https://", "file://")

#: Files of a group of Zarr or N5, in which arrays lie.
GROUP_MARKS = ("zarr.json", ".zgroup", ".zarray", ".zattrs", "attributes.json")
#: Files that make a folder one volume for TensorStore.
STORE_MARKS = (*GROUP_MARKS, "info")


def open_volume(
    path: str | os.PathLike[str],
    *,
    channel: int | None = None,
    time: int | None = None,
    level: int = 0,
    axes: str | None = None,
    dataset: str | None = None,
    voxel_size_um: tuple[float, float, float] | None = None,
    cache_bytes: int = CACHE_BYTES,
    threads: int | None = None,
) -> Source:
    """Open a volume for reading, of whatever format it is.

    Parameters
    ----------
    path
        A file, a folder (of TIFF planes, Zarr, N5, precomputed), or an address that
        begins with ``s3://``, ``gs://``, ``http://`` or ``https://``.
    channel, time
        Which one to read, from 0, where there are several.
    level
        Level of a pyramid; 0 is full resolution.
    axes
        What the axes of the stored array are, one letter each (z, y, x, c, t), where
        the file does not say.
    dataset
        The name of an array inside the file.
    voxel_size_um
        Micrometres on z, y, x, instead of what the file says.
    cache_bytes
        Decoded chunks kept for the next box.
    threads
        That read and decode; all of this process's cores, at most 8, where not given.

    Raises
    ------
    InputError
        The file cannot be used, in one sentence that says why and what to do.
    SettingsError
        An option has no meaning for this file.
    """
    options = ReadOptions(
        channel=channel,
        time=time,
        level=level,
        axes=axes,
        dataset=dataset,
        voxel_size_um=voxel_size_um,
        cache_bytes=cache_bytes,
        threads=default_threads() if threads is None else threads,
    )
    address = os.fspath(path)
    if address.startswith(SCHEMES):
        source = TENSORSTORE.open(address, options)
    else:
        source = _reader(Path(address)).open(Path(address), options)
    if voxel_size_um is not None:
        source.voxel_size_um = voxel_size_um
    return source


def is_plane(path: Path) -> bool:
    """Whether a file of a folder is one of its planes, and not what a system hides."""
    return (
        path.suffix.lower() in (".tif", ".tiff")
        and not path.name.startswith(".")
        and path.is_file()
    )


def _reader(path: Path) -> Reader:
    try:
        if path.is_dir():
            return _folder_reader(path)
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise InputError(f"{path} is empty")
    for reader in READERS:
        if head.startswith(reader.magics):
            return reader
    if path.name in STORE_MARKS:
        raise InputError(f"{path} describes a folder: open {path.parent} instead")
    name = next(
        (r.name for r in READERS if path.name.lower().endswith(r.suffixes)), None
    )
    if name is not None:
        raise InputError(
            f"{path} is not {name}, whatever its name says: it begins with {head[:8]!r}"
        )
    raise InputError(
        f"{path} is of no format that is known here: convert it to TIFF or OME-Zarr"
    )


def _folder_reader(path: Path) -> Reader:
    if any((path / mark).is_file() for mark in STORE_MARKS):
        return TENSORSTORE
    if any(is_plane(entry) for entry in path.iterdir()):
        return FOLDER_OF_PLANES
    raise InputError(
        f"{path} is a folder without TIFF planes and without the metadata of Zarr, N5 "
        "or precomputed: name the file or the store inside it"
    )
