"""NumPy's own file, read from disk box by box and never unpickled."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neurodeploy_runtime._errors import InputError, said_by
from neurodeploy_runtime.volumes._axes import layout_of
from neurodeploy_runtime.volumes._base import ReadOptions, Source, checked_dtype
from neurodeploy_runtime.volumes._raw import RawPlanes, RawSource

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def open_(path: Path, options: ReadOptions) -> Source:
    """Open a ``.npy`` of axes z, y, x, or of more that the caller names."""
    options.refuse("a NumPy file", "dataset", "level")
    where = str(path)
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = _HEADERS.get(version)
            if read_header is None:
                raise InputError(
                    f"{where} is a NumPy file of version {version}: save a plain array"
                )
            shape, fortran_order, stored = read_header(file)
        except InputError:
            raise
        except Exception as error:  # NumPy parses the header as Python text
            raise InputError(
                f"{where} has no valid NumPy header: {said_by(error)}"
            ) from error
        offset = file.tell()
    checked_dtype(stored, where)
    if fortran_order and len(shape) > 1:
        raise InputError(
            f"{where} stores its first axis fastest (Fortran order): save "
            "numpy.ascontiguousarray(array)"
        )
    if any(n < 1 for n in shape):
        raise InputError(f"{where} is empty: its shape is {shape}")
    layout = layout_of("Q" * (len(shape) - 2) + "YX", shape, options, where)
    return RawSource(
        RawPlanes.of_array(layout, stored, path, offset),
        options,
        path=path,
        format="NumPy",
        voxel_size_um=None,
    )
