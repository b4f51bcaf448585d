"""A mask of tissue is held as one byte a voxel, whatever it is stored as."""

import numpy as np
import pytest

from neurodeploy_runtime import ArraySource, _tissue
from neurodeploy_runtime._tissue import TissueMask


class Watched(ArraySource):
    """A volume that notes how much is read of it at a time."""

    most = 0

    def read(self, box, out=None):
        voxels = super().read(box, out)
        self.most = max(self.most, voxels.nbytes)
        return voxels


@pytest.mark.parametrize(("deep", "pieces"), [(1, 1), (4, 4), (9, 9)])
def test_a_mask_is_read_in_pieces(monkeypatch, deep, pieces):
    """Of at least a plane, and of whole chunks."""
    monkeypatch.setattr(_tissue, "READ_BYTES", 1000)
    voxels = np.random.default_rng(0).integers(-1, 2, (10, 15, 20)).astype(np.float32)
    source = Watched(voxels)
    source.chunk = (deep, 15, 20)
    mask = TissueMask.read(source, (20, 30, 40))
    assert source.most == pieces * 15 * 20 * 4
    for z in range(20):
        wanted = (voxels[z // 2] != 0).repeat(2, 0).repeat(2, 1)
        assert np.array_equal(mask.plane(z, 0, 0, (30, 40)), wanted)
