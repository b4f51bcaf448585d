"""The tiles of a bundle whose answers the exporter froze."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import BundleError
from neurodeploy_runtime._geometry import Shape

#: Golden tiles are some tens of tiles; an array that claims more is not made.
MAX_GOLDEN_BYTES = 1 << 30

#: What zipfile and NumPy raise of a damaged file, beside errors of their own.
_DAMAGED = (OSError, ValueError, EOFError, RuntimeError, struct.error)

#: Decoders of the others raise errors of their own.
_COMPRESSED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class Golden:
    """Tiles and the answers that the exporter froze for them.

    Attributes
    ----------
    voxels
        (N, 1, *tile) float32, normalised.
    probability
        (N, 1, *window) float32.
    """

    voxels: NDArray[np.float32]
    probability: NDArray[np.float32]

    def batches(self, batch: int) -> NDArray[np.int64]:
        """Numbers of tiles, (n, `batch`): each of them, and one in every place.

        An engine may answer rightly in the first place of a batch and not in the last.
        """
        return batches(len(self.voxels), batch)


def batches(tiles: int, batch: int) -> NDArray[np.int64]:
    """See :meth:`Golden.batches`."""
    count = -(-tiles // batch)
    return (np.arange(count * batch, dtype=np.int64) % tiles).reshape(count, batch)


def read_golden(path: Path, tile: Shape, window: Shape) -> Golden:
    """The golden tiles of a file, of a network of this tile and window.

    Raises
    ------
    BundleError
        Where the file cannot be read, holds no tile or those of another network, or
        more than golden tiles take; nothing of that size is allocated then.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            voxels = _array(archive, "voxels", (1, *tile))
            probability = _array(archive, "probability", (1, *window))
    except (*_DAMAGED, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError(
            f"{path} is not what an export writes ({error}): export it again"
        ) from error
    if len(voxels) != len(probability):
        raise BundleError(
            f"{path} holds {len(voxels)} tiles and {len(probability)} answers: export "
            "it again"
        )
    return Golden(voxels, probability)


def _array(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """The floats (n, *shape) of that name; its header is looked at before it is read.

    Raises
    ------
    ValueError
        Where it is another array, an empty one, or too large.
    """
    member = f"{name}.npy"
    if member not in archive.namelist():
        raise ValueError(f"it lacks {name}")
    if archive.getinfo(member).compress_type not in _COMPRESSED:
        raise ValueError(f"its {name} is compressed as no export does it")
    with archive.open(member) as file:
        first = np.lib.format.read_magic(file) == (1, 0)
        read_header = (
            np.lib.format.read_array_header_1_0
            if first
            else np.lib.format.read_array_header_2_0
        )
        try:
            found, _, dtype = read_header(file)
        except (tokenize.TokenError, MemoryError) as error:
            # What Python's own parser says of brackets without an end, or of too many.
            raise ValueError(f"its {name} has a header that is none") from error
    if found[1:] != shape or found[0] < 1 or dtype.kind != "f":
        raise ValueError(
            f"it holds {name} {found} of {dtype}, not floats (n, "
            f"{', '.join(map(str, shape))})"
        )
    if math.prod(found) * dtype.itemsize > MAX_GOLDEN_BYTES:
        raise ValueError(
            f"it claims {math.prod(found)} values of {name}, in more than "
            f"{MAX_GOLDEN_BYTES} bytes"
        )
    with archive.open(member) as file:
        values = np.lib.format.read_array(file, allow_pickle=False)
    return np.asarray(values, np.float32)
