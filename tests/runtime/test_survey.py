"""The look at a volume before it is segmented: small, spread, and nothing twice."""

import numpy as np
import pytest
import tifffile

from neurodeploy_runtime import _survey
from neurodeploy_runtime._survey import sample_boxes, survey
from neurodeploy_runtime.volumes import open_volume

SHAPE = (60, 96, 128)
STORED = {
    "planes": {"compression": "zlib", "rowsperstrip": 96},
    "strips": {"compression": "zlib", "rowsperstrip": 2},
    "tiles": {"compression": "zlib", "tile": (16, 16)},
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """As for a volume of which a sample holds 10 %."""
    monkeypatch.setattr(_survey, "SAMPLE_VOXELS", np.prod(SHAPE) // 10)
    monkeypatch.setattr(_survey, "BAND_VOXELS", 4 * 128)


@pytest.mark.parametrize("stored", [*STORED, "chunks"])
def test_the_sample_decodes_no_chunk_twice(tmp_path, stored):
    """Though hardly a chunk, or a band of them, fits what may be kept."""
    voxels = np.random.default_rng(2).integers(0, 900, SHAPE).astype(np.uint16)
    path = tmp_path / ("in.h5" if stored == "chunks" else "in.tif")
    if stored == "chunks":  # not compressed, and yet loaded as a whole
        h5py = pytest.importorskip("h5py", reason="the extra `cluster` is missing")
        with h5py.File(path, "w") as file:
            file.create_dataset("v", data=voxels, chunks=(4, 8, 8))
    else:
        tifffile.imwrite(path, voxels, photometric="minisblack", **STORED[stored])
    with open_volume(path, threads=1, cache_bytes=4 * 128 * 2) as source:
        met = set()
        for box in sample_boxes(source.shape, source.chunk):
            rows, columns = (
                range(a // c, -(-b // c))
                for a, b, c in zip(
                    box.start[1:], box.stop[1:], source.chunk[1:], strict=True
                )
            )
            met |= {(box.start[0], y, x) for y in rows for x in columns}
        histogram = survey(source)
        assert source.decoded == len(met)
        assert 0.5 < histogram.voxels / _survey.SAMPLE_VOXELS <= 1


@pytest.mark.parametrize("chunk", [(1, 2, 128), (1, 16, 16), (1, 5, 7), (1, 1, 1)])
def test_the_sample_is_of_the_same_voxels_whatever_chunks_they_lie_in(chunk):
    seen = np.zeros(SHAPE, int)
    for box in sample_boxes(SHAPE, None):
        seen[box.slices] += 1
    assert seen.max() == 1
    for box in sample_boxes(SHAPE, chunk):
        seen[box.slices] -= 1
    assert not seen.any()
