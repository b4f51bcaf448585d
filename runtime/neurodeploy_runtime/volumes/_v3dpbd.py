"""v3dpbd: Vaa3D's compressed stack, decoded as a whole when it is opened."""

from __future__ import annotations

import hashlib
from math import prod
from pathlib import Path

import numpy as np

from neurodeploy_runtime._errors import InputError
from neurodeploy_runtime.volumes import _pbd
from neurodeploy_runtime.volumes._array import ArraySource
from neurodeploy_runtime.volumes._axes import layout_of
from neurodeploy_runtime.volumes._base import ReadOptions, Source
from neurodeploy_runtime.volumes._v3draw import read_header

#: Larger stacks are refused: they would have to lie in memory as a whole.
LIMIT_BYTES = 4 * 2**30

_CODINGS = {1: _pbd.PBD8, 2: _pbd.PBD16, 33: _pbd.PBD3}


class PbdSource(ArraySource):
    """The decoded stack; what tells it from others is the file, not its voxels."""

    #: SHA-256 of the file, and of the channel in it.
    digest: str

    def fingerprint(self) -> str:
        """Of the format, the shape, the channel and every byte that voxels may take."""
        text = f"{self.format}|{self.shape}|{self.dtype.name}|{self.digest}"
        return hashlib.sha256(text.encode()).hexdigest()


def open_(path: Path, options: ReadOptions) -> Source:
    """Open a v3dpbd of 3, 8 or 16 bits a voxel; it is decoded into memory."""
    options.refuse("a v3dpbd file", "dataset", "level", "axes")
    header = read_header(path)
    layout = layout_of(header.axes, header.stored, options, str(path))
    dtype = header.dtype.newbyteorder("=")
    voxels = prod(layout.shape)
    if voxels * dtype.itemsize > LIMIT_BYTES:
        raise InputError(
            f"{path} holds {voxels * dtype.itemsize / 2**30:.1f} GB, and v3dpbd can "
            "only be decoded from its beginning into memory: save it as v3draw in "
            "Vaa3D, or as TIFF"
        )
    coding = _CODINGS[header.code]
    # Not what lies behind the last voxel of the last channel.
    most = header.size + coding.max_bytes * prod(header.stored)
    if header.code == 33:
        most += 2  # the levels' least and greatest
    with path.open("rb") as file:
        data = file.read(min(most, path.stat().st_size))
    levels: np.ndarray[tuple[int], np.dtype[np.uint8]] | None = None
    begin = header.size
    if header.code == 33:
        if header.stored[0] > 1:
            raise InputError(
                f"{path} holds {header.stored[0]} channels of 3-bit voxels, of which "
                "only one can be read here: save it as v3draw in Vaa3D"
            )
        if len(data) < begin + 2:
            raise InputError(f"{path} is cut short in its header: copy it again")
        low, high = data[begin], data[begin + 1]
        begin += 2
        levels = np.array([low + (high - low) * i // 7 for i in range(8)]).astype("u1")
    array = _pbd.decode(
        memoryview(data)[begin:],
        coding,
        header.order == ">",
        layout.index[0] * voxels,
        voxels,
        str(path),
    )
    if levels is not None:
        if array.max() > 7:
            raise InputError(f"{path} is damaged: it leaves the 8 levels of PBD3")
        array = levels[array]
    source = PbdSource(
        array.reshape(layout.shape),
        path=path,
        format=f"v3dpbd, {coding.name}",
    )
    digest = hashlib.sha256(data)
    digest.update(repr(layout.index).encode())
    source.digest = digest.hexdigest()
    return source
