"""A segmentation reaches every kind of output whole, in the units of its format."""

from dataclasses import replace

import numpy as np
import pytest

from neurodeploy_runtime import (
    ArraySource,
    Box,
    Normalisation,
    NumpyEngine,
    Segmenter,
    SegmentSettings,
    open_volume,
)

PROBABILITY = SegmentSettings(
    output_kind="probability", normalisation=Normalisation("unit", 0, 255)
)


@pytest.mark.parametrize(
    "shape", [(5, 65, 600), (70, 70, 70)], ids=["wide", "of eight chunks"]
)
def test_a_segmentation_is_written_as_precomputed(
    make_identity_bundle, tmp_path, shape
):
    pytest.importorskip("tensorstore")
    voxels = np.random.default_rng(4).integers(0, 256, shape, np.uint8)
    source = ArraySource(voxels, voxel_size_um=(2.0, 0.5, 0.5))
    bundle = make_identity_bundle()
    with Segmenter(
        bundle, replace(PROBABILITY), engines=[NumpyEngine(bundle, batch=1)]
    ) as segmenter:
        segmenter.segment(source, tmp_path / "out.precomputed")
    with open_volume(tmp_path / "out.precomputed") as result:
        assert result.voxel_size_um == (2.0, 0.5, 0.5)
        assert np.array_equal(result.read(Box.whole(shape)), voxels)
    assert (tmp_path / "out.precomputed" / "provenance").is_file()
