"""Promises of the outputs that are one preallocated file: TIFF and v3draw."""

import json
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurodeploy_runtime._errors import OutputError, ResumeError, WriteError
from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime.volumes import _sink_tiff, open_volume
from neurodeploy_runtime.volumes._open_sink import (
    create_sink,
    open_sink,
    required_bytes,
    sink_kind,
)

EXTENTS = st.integers(1, 13)
SHAPES = st.tuples(EXTENTS, EXTENTS, EXTENTS)
SAME_FOLDER = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def volume(shape, dtype="uint16", seed=0):
    values = np.random.default_rng(seed).integers(1, 250, shape)
    return values.astype(dtype)


def fill(sink, voxels):
    for unit in sink.units():
        sink.write(unit, voxels[unit.slices])


@SAME_FOLDER
@given(SHAPES, SHAPES, st.sampled_from(["uint8", "uint16", "float32"]), st.booleans())
def test_a_tiff_gives_back_what_was_written_whatever_its_shape_and_units(
    tmp_path, shape, grain, dtype, big
):
    path = tmp_path / "a.tif"
    voxels = volume(shape, dtype)
    with pytest.MonkeyPatch.context() as patch:
        if big:
            patch.setattr(_sink_tiff, "CLASSIC_LIMIT_BYTES", 0)
        with create_sink(
            path, "tiff", shape, dtype, (2.0, 0.5, 0.5), grain=grain, overwrite=True
        ) as sink:
            fill(sink, voxels)
            sink.finish({"model": "m"})
            assert np.array_equal(sink.read(Box.whole(shape)), voxels)
            assert all(sink.holds(unit) for unit in sink.units())
    with tifffile.TiffFile(path) as file:
        assert file.is_bigtiff == big
        assert file.is_ome == big
        assert file.is_imagej != big
        assert len(file.pages) == shape[0]
        read = file.series[0].asarray().reshape(shape)
    assert read.dtype == voxels.dtype
    assert np.array_equal(read, voxels)


@SAME_FOLDER
@given(SHAPES, SHAPES, st.data())
def test_any_box_is_read_back(tmp_path, shape, grain, data):
    voxels = volume(shape)
    start = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    stop = tuple(
        data.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True)
    )
    box = Box(start, stop)
    with create_sink(
        tmp_path / "a.v3draw", "v3draw", shape, "uint16", grain=grain, overwrite=True
    ) as sink:
        fill(sink, voxels)
        assert np.array_equal(sink.read(box), voxels[box.slices])


def test_fiji_finds_the_voxel_size_and_the_provenance_in_a_small_tiff(tmp_path):
    path = tmp_path / "a.tif"
    provenance = {"command": "segment a=1 µ <&>", "model": "x" * 100}
    with create_sink(path, "tiff", (4, 5, 6), "uint8", (2.0, 0.5, 0.25)) as sink:
        fill(sink, volume((4, 5, 6), "uint8"))
        sink.finish({"model": "an earlier and longer text" * 100})
        sink.finish(provenance)
    with tifffile.TiffFile(path) as file:
        found = file.imagej_metadata
        page = file.pages.first
        assert found["spacing"] == 2.0
        assert found["unit"] == "um"
        assert found["slices"] == 4
        assert page.tags["XResolution"].value == (4, 1)
        assert page.tags["YResolution"].value == (2, 1)
        assert file.series[0].dataoffset is not None
    mark, _, text = found["Info"].partition(": ")
    assert mark == "neurodeploy"
    assert json.loads(text) == provenance


def test_ome_metadata_of_a_big_tiff_holds_voxel_size_and_provenance(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(_sink_tiff, "CLASSIC_LIMIT_BYTES", 0)
    path = tmp_path / "a.tif"
    provenance = {"command": "segment a=1 µ <&>", "model": "x" * 100}
    with create_sink(path, "tiff", (4, 5, 6), "float32", (2.0, 0.5, 0.25)) as sink:
        fill(sink, volume((4, 5, 6), "float32"))
        sink.finish(provenance)
    with tifffile.TiffFile(path) as file:
        ome = tifffile.xml2dict(file.ome_metadata)["OME"]
        assert file.series[0].axes == "ZYX"
        assert file.series[0].dataoffset is not None
    pixels = ome["Image"]["Pixels"]
    assert pixels["Type"] == "float"
    assert [pixels[f"PhysicalSize{a}"] for a in "ZYX"] == [2.0, 0.5, 0.25]
    value = ome["StructuredAnnotations"]["CommentAnnotation"]["Value"]
    assert json.loads(value.partition(": ")[2]) == provenance


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_a_provenance_that_is_too_long_names_what_was_left_out(
    tmp_path, monkeypatch, limit
):
    monkeypatch.setattr(_sink_tiff, "CLASSIC_LIMIT_BYTES", limit)
    path = tmp_path / "a.tif"
    with create_sink(path, "tiff", (2, 5, 6), "uint8") as sink:
        sink.finish({"model": "m", "skip_map": "&" * 40000})
    with tifffile.TiffFile(path) as file:
        text = file.imagej_metadata["Info"] if file.is_imagej else file.ome_metadata
    assert '"left_out_too_long": ["skip_map"]' in text.replace("&quot;", '"')
    assert '"model": "m"' in text.replace("&quot;", '"')


def test_a_v3draw_has_the_header_that_vaa3d_reads(tmp_path):
    path = tmp_path / "a.v3draw"
    voxels = volume((3, 4, 5), "uint16")
    with create_sink(path, "v3draw", (3, 4, 5), "uint16") as sink:
        fill(sink, voxels)
        sink.finish({})
    data = path.read_bytes()
    assert data[:24] == b"raw_image_stack_by_hpeng"
    assert data[24:25] == b"L"
    assert np.frombuffer(data[25:27], "<i2") == 2
    assert np.frombuffer(data[27:43], "<i4").tolist() == [5, 4, 3, 1]
    assert data[43:] == voxels.tobytes()


@pytest.mark.parametrize("kind", ["tiff", "v3draw"])
def test_units_are_held_only_after_they_were_written(tmp_path, kind):
    path = tmp_path / "a"
    voxels = volume((8, 9, 10))
    with create_sink(path, kind, (8, 9, 10), "uint16", grain=(4, 9, 10)) as sink:
        first, second = sink.units()
        sink.write(first, voxels[first.slices])
        assert sink.holds(first)
        assert not sink.holds(second)
        assert not sink.read(second).any()
    with open_sink(path, kind, (8, 9, 10), "uint16", grain=(4, 9, 10)) as sink:
        assert sink.holds(first)
        assert not sink.holds(second)
        sink.write(second, voxels[second.slices])
        assert np.array_equal(sink.read(Box.whole((8, 9, 10))), voxels)


def test_a_torn_unit_is_not_held(tmp_path):
    path = tmp_path / "a.v3draw"
    with create_sink(path, "v3draw", (8, 9, 10), "uint8", grain=(4, 9, 10)) as sink:
        fill(sink, volume((8, 9, 10), "uint8"))
        with path.open("r+b") as file:
            file.seek(43 + 5 * 90)
            file.write(b"\0")
        first, second = sink.units()
        assert sink.holds(first)
        assert not sink.holds(second)


def test_threads_write_different_units_at_once(tmp_path):
    shape, grain = (32, 40, 40), (4, 8, 8)
    voxels = volume(shape)
    with create_sink(tmp_path / "a.tif", "tiff", shape, "uint16", grain=grain) as sink:
        units = list(sink.units())

        def work(first):
            for unit in units[first::4]:
                sink.write(unit, voxels[unit.slices])

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert np.array_equal(sink.read(Box.whole(shape)), voxels)
        assert all(map(sink.holds, units))


@pytest.mark.parametrize(
    ("start", "stop"),
    [
        ((0, 0, 0), (2, 9, 10)),
        ((2, 0, 0), (6, 9, 10)),
        ((4, 0, 0), (9, 9, 10)),
        ((8, 0, 0), (12, 9, 10)),
        ((-4, 0, 0), (0, 9, 10)),
    ],
)
def test_a_write_that_is_not_one_unit_is_refused(tmp_path, start, stop):
    box = Box(start, stop)
    with create_sink(
        tmp_path / "a.tif", "tiff", (8, 9, 10), "uint8", grain=(4, 9, 10)
    ) as sink:
        with pytest.raises(WriteError, match="not one unit"):
            sink.write(box, np.zeros(box.shape, np.uint8))
        unit = next(sink.units())
        with pytest.raises(WriteError, match="takes uint8 of shape"):
            sink.write(unit, np.zeros(unit.shape, np.uint16))


def test_nothing_is_overwritten_unasked(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(b"precious")
    with pytest.raises(OutputError, match="already there"):
        create_sink(path, "tiff", (2, 3, 4), "uint8")
    assert path.read_bytes() == b"precious"
    create_sink(path, "tiff", (2, 3, 4), "uint8", overwrite=True).close()
    assert tifffile.imread(path).shape == (2, 3, 4)


@pytest.mark.parametrize("kind", ["tiff", "v3draw"])
def test_another_geometry_is_not_continued(tmp_path, kind):
    path = tmp_path / "a"
    create_sink(path, kind, (8, 9, 10), "uint8", grain=(4, 9, 10)).close()
    for shape, dtype, grain in [
        ((8, 9, 11), "uint8", (4, 9, 10)),
        ((8, 9, 10), "uint16", (4, 9, 10)),
        ((8, 9, 10), "uint8", (2, 9, 10)),
    ]:
        with pytest.raises(ResumeError, match="cannot be continued"):
            open_sink(path, kind, shape, dtype, grain=grain)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ResumeError, match="cannot be continued"):
        open_sink(path, kind, (8, 9, 10), "uint8", grain=(4, 9, 10))


def test_a_full_disk_shows_before_the_work(tmp_path):
    with pytest.raises(OutputError, match="make room"):
        create_sink(tmp_path / "a.tif", "tiff", (1 << 14, 1 << 14, 1 << 15), "float32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["tiff", "v3draw"])
def test_the_announced_disk_is_enough(tmp_path, kind):
    shape = (50, 20, 30)
    with create_sink(tmp_path / "a", kind, shape, "uint16", grain=(1, 7, 30)) as sink:
        fill(sink, volume(shape))
        sink.finish({"model": "m"})
    used = sum(file.stat().st_size for file in Path(tmp_path).iterdir())
    assert np.prod(shape) * 2 <= used <= required_bytes(kind, shape, "uint16")


def test_an_unknown_suffix_is_refused_with_the_known_ones():
    with pytest.raises(OutputError, match=r"\.zarr"):
        sink_kind(Path("a.h5"))


def test_the_checksum_is_the_one_of_the_voxels(tmp_path):
    with create_sink(tmp_path / "a.tif", "tiff", (2, 3, 4), "uint8") as sink:
        voxels = volume((2, 3, 4), "uint8")
        fill(sink, voxels)
        (records,) = sink.scratch
    assert zlib.crc32(voxels.tobytes()).to_bytes(4, "little") in records.read_bytes()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("name", ["a.tif", "big.tif", "a.v3draw"])
def test_what_was_written_opens_as_a_volume(tmp_path, monkeypatch, name, dtype):
    path = tmp_path / name
    if name == "big.tif":
        monkeypatch.setattr(_sink_tiff, "CLASSIC_LIMIT_BYTES", 0)
    voxels = volume((5, 6, 7), dtype)
    size = (2.0, 0.5, 0.25)
    with create_sink(path, sink_kind(path), voxels.shape, dtype, size) as sink:
        fill(sink, voxels)
        sink.finish({"model": "m"})
    with open_volume(path) as source:
        assert source.voxel_size_um == (None if name == "a.v3draw" else size)
        assert source.dtype == voxels.dtype
        assert np.array_equal(source.read(Box.whole(source.shape)), voxels)


def test_a_full_disk_in_the_middle_is_a_write_error_that_says_what_to_do(tmp_path):
    with create_sink(tmp_path / "a.tif", "tiff", (4, 5, 6), "uint8") as sink:
        unit = next(sink.units())

        def full(data, offset):
            raise OSError(28, "No space left on device")

        sink._file.write_at = full
        with pytest.raises(WriteError, match=r"No space left.*make room"):
            sink.write(unit, volume((4, 5, 6), "uint8"))
        assert not sink.holds(unit)


@pytest.mark.slow  # 4.2 GB of disk
def test_a_volume_that_a_classic_tiff_cannot_hold_is_written_to_its_end(tmp_path):
    path = tmp_path / "a.tif"
    shape = (4200, 1000, 1000)
    with create_sink(path, "tiff", shape, "uint8", (1.0, 1.0, 1.0)) as sink:
        last = list(sink.units())[-1]
        voxels = volume(last.shape, "uint8")
        sink.write(last, voxels)
        sink.finish({"model": "m"})
    with tifffile.TiffFile(path) as file:
        assert file.is_bigtiff
        assert file.is_ome
        assert file.series[0].shape == shape
        assert np.array_equal(file.asarray(key=shape[0] - 1), voxels[-1])
    with open_volume(path) as source:
        assert source.shape == shape
        assert np.array_equal(source.read(last), voxels)
