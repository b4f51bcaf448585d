"""How a volume will be read is known before, and what it costs is what it costs."""

import os
import shutil

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from neurodeploy_runtime import Box, OutputError, ReadError, SettingsError
from neurodeploy_runtime.volumes import (
    ArraySource,
    ScratchSource,
    decoding_mb_s,
    open_volume,
    plan_reading,
)

SHAPE = (20, 60, 80)
PLANE = 60 * 80 * 2


def a_stack():
    return np.random.default_rng(5).integers(0, 4000, SHAPE).astype(np.uint16)


@pytest.fixture(scope="module")
def stacks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    how = {
        "planes": {"compression": "zlib"},
        "strips": {"compression": "lzw", "rowsperstrip": 16},
        "tiles": {"compression": "zstd", "tile": (32, 32)},
        "raw": {},
    }
    for name, options in how.items():
        tifffile.imwrite(
            folder / f"{name}.tif", a_stack(), photometric="minisblack", **options
        )
    return folder


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(["planes", "strips", "tiles"]),
    region=st.tuples(st.integers(5, 25), st.integers(16, 70), st.integers(24, 90)),
)
def test_the_predicted_amplification_is_what_a_pass_decodes(stacks, name, region):
    with open_volume(stacks / f"{name}.tif", cache_bytes=0, threads=1) as volume:
        decoded = []
        load = volume._load
        volume._load = lambda place: decoded.append(place) or load(place)
        for box in Box.whole(SHAPE).grid(region):
            volume.read(box)
        voxels = sum(volume._table.box(place).voxels for place in decoded)
        predicted = volume.amplification(region)
    assert voxels / np.prod(SHAPE) == pytest.approx(predicted)


def test_what_is_not_compressed_is_read_as_it_comes(stacks):
    with open_volume(stacks / "raw.tif") as volume:
        plan = plan_reading(volume, (4, 8, 8), 0)
    assert (plan.how, plan.amplification, plan.cache_bytes) == ("direct", 1.0, 0)


def test_whole_planes_are_read_as_they_come(stacks):
    with open_volume(stacks / "planes.tif") as volume:
        assert plan_reading(volume, (4, 60, 80), 0).how == "direct"


def test_a_slab_is_kept_where_it_fits_and_then_each_plane_is_decoded_once(stacks):
    region = (5, 16, 16)
    with open_volume(stacks / "planes.tif", cache_bytes=0, threads=2) as volume:
        plan = plan_reading(volume, region, 10 * PLANE)
        assert plan.how == "slab"
        assert plan.amplification == 1
        assert plan.direct_amplification == 20
        assert plan.cache_bytes <= 10 * PLANE
        volume.keep(plan.cache_bytes)
        for box in Box.whole(SHAPE).grid(region):
            volume.read(box)
        assert volume.decoded == SHAPE[0]


def test_a_scratch_file_is_chosen_where_a_slab_does_not_fit(stacks):
    with open_volume(stacks / "planes.tif") as volume:
        plan = plan_reading(volume, (5, 16, 16), 2 * PLANE)
    assert plan.how == "scratch"
    assert plan.disk_bytes == 7 * PLANE
    assert "decode 20 times what they deliver" in plan.reason
    assert plan.to_json()["how"] == "scratch"


def test_scratch_holds_the_same_voxels_decoded_once(stacks, tmp_path):
    expected = a_stack()
    with (
        open_volume(stacks / "planes.tif", cache_bytes=0, threads=2) as volume,
        ScratchSource(volume, tmp_path) as scratch,
    ):
        assert volume.decoded == SHAPE[0]
        if os.name == "posix":  # where a killed process leaves nothing behind
            assert list(tmp_path.iterdir()) == []
        for box in Box.whole(SHAPE).grid((5, 16, 16)):
            np.testing.assert_array_equal(scratch.read(box), expected[box.slices])
        assert volume.decoded == SHAPE[0]
        assert scratch.fingerprint() == volume.fingerprint()
        assert scratch.amplification((5, 16, 16)) == 1
    assert list(tmp_path.iterdir()) == []


def test_scratch_of_some_planes_refuses_others(stacks, tmp_path):
    with open_volume(stacks / "planes.tif", cache_bytes=0) as volume:
        with ScratchSource(volume, tmp_path, (6, 15)) as scratch:
            assert volume.decoded == 9
            box = Box((6, 3, 4), (15, 50, 70))
            np.testing.assert_array_equal(scratch.read(box), a_stack()[box.slices])
            with pytest.raises(SettingsError, match="not inside the planes 6 to 15"):
                scratch.read(Box((5, 0, 0), (7, 1, 1)))
        with pytest.raises(SettingsError, match="planes 6 to 21 are not inside"):
            ScratchSource(volume, tmp_path, (6, 21))


def test_scratch_that_fails_leaves_no_file(tmp_path):
    class Broken(ArraySource):
        def read(self, box, out=None):
            raise OSError("the cable was pulled")

    with pytest.raises(ReadError, match=r"planes 0 to .* be read: the cable"):
        ScratchSource(Broken(a_stack()), tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="cannot be made in"):
        ScratchSource(ArraySource(a_stack()), tmp_path / "absent")


def test_scratch_that_does_not_fit_is_refused_before(tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: full)
    with pytest.raises(OutputError, match="does not fit"):
        ScratchSource(ArraySource(a_stack()), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["planes", "tiles", "raw"])
def test_the_speed_of_decoding_is_measured_without_a_whole_pass(stacks, name):
    with open_volume(stacks / f"{name}.tif", cache_bytes=0) as volume:
        assert decoding_mb_s(volume) > 0
        if volume.compressed:
            assert volume.decoded <= 4
