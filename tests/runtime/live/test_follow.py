"""Following a stack that another program is still writing."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from neurodeploy_runtime import (
    Box,
    CancelledError,
    DeviceError,
    EngineSettings,
    InputError,
    Normalisation,
    NumpyEngine,
    OutputError,
    Segmenter,
    SegmentSettings,
    SettingsError,
    WriteError,
    open_volume,
)
from neurodeploy_runtime._provenance import read_provenance
from neurodeploy_runtime.live import FollowSettings, LiveSettings, follow
from neurodeploy_runtime.live._growing import GrowingFolder, GrowingZarr
from neurodeploy_runtime.live._writer import PlaneWriter
from neurodeploy_runtime.volumes import ReadOptions
from neurodeploy_runtime.volumes._tiff_folder import planes_in_order

ts = pytest.importorskip("tensorstore")

UNIT = Normalisation("unit", 0.0, 65535.0)
SHAPE = (20, 24)


@pytest.fixture
def bundle(make_identity_bundle):
    return make_identity_bundle(tile=(8, 16, 16))


def stack_of(depth):
    rng = np.random.default_rng(depth)
    return rng.integers(1, 65535, (depth, *SHAPE)).astype(np.uint16)


def followed(bundle, path, output, normalisation=UNIT, **options):
    options = {"timeout_s": 1.0, "settle_s": 0.05, "poll_s": 0.01} | options
    live = LiveSettings(normalisation=normalisation, ring_planes=20)
    return follow(
        path,
        output,
        bundle,
        FollowSettings(live=live, **options),
        engines=[NumpyEngine(bundle)],
    )


def voxels_of(path):
    with open_volume(path) as source:
        return source.read(Box.whole(source.shape))


def expected_of(bundle, stack, normalisation=UNIT):
    made = SegmentSettings(normalisation=normalisation)
    with Segmenter(bundle, made, engines=[NumpyEngine(bundle)]) as segmenter:
        return segmenter.segment_array(stack)


class Writer(threading.Thread):
    """Calls `write(z)` for each plane, with a pause every few."""

    def __init__(self, write, planes):
        super().__init__()
        self._write, self._planes = write, planes

    def run(self):
        for z in self._planes:
            self._write(z)
            if z % 5 == 0:
                time.sleep(0.02)


def zarr_of(path, depth, chunk, driver="zarr3", shard=None, separator="/"):
    if driver == "zarr":
        metadata = {
            "shape": [depth, *SHAPE],
            "dtype": "<u2",
            "chunks": chunk,
            "dimension_separator": "/",
        }
    else:
        metadata = {
            "shape": [depth, *SHAPE],
            "data_type": "uint16",
            "dimension_names": ["z", "y", "x"],
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": shard or chunk},
            },
            "chunk_key_encoding": {
                "name": "default",
                "configuration": {"separator": separator},
            },
        }
        if shard:
            inner = {
                "name": "sharding_indexed",
                "configuration": {"chunk_shape": chunk},
            }
            metadata["codecs"] = [inner]
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{path}/"}}
    array = ts.open({**spec, "metadata": metadata}, create=True).result()
    if driver == "zarr":
        (path / ".zattrs").write_text('{"_ARRAY_DIMENSIONS": ["z", "y", "x"]}')
    return array


def test_a_growing_folder_gives_what_the_finished_one_does(bundle, tmp_path):
    stack = stack_of(40)
    folder, output = tmp_path / "planes", tmp_path / "out.tif"
    folder.mkdir()

    def write(z):
        tifffile.imwrite(folder / f"plane_{z:03}.tif", stack[z])

    writer = Writer(write, range(40))
    writer.start()
    report = followed(bundle, folder, output)
    writer.join()
    np.testing.assert_array_equal(voxels_of(output), expected_of(bundle, stack))
    assert report.shape == stack.shape
    assert (tmp_path / "out.png").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "out.json",
        "out.png",
        "out.tif",
        "planes",
    ]
    told = read_provenance(output)
    assert told["verified"] == "the voxels are those that were written"


@pytest.mark.parametrize(
    ("driver", "chunk", "shard"),
    [
        ("zarr3", [1, 20, 24], None),
        ("zarr3", [4, 16, 16], [8, 16, 16]),
        ("zarr", [4, 16, 24], None),
    ],
)
def test_a_growing_zarr_gives_what_the_finished_one_does(
    bundle, tmp_path, driver, chunk, shard
):
    stack = stack_of(38)
    path, output = tmp_path / "acquired.zarr", tmp_path / "out.ome.zarr"
    array = zarr_of(path, 38, chunk, driver, shard)
    step = (shard or chunk)[0]

    def write(z):
        # As writers do: whole layers of chunks, one after the other.
        if z % step == 0:
            stop = min(z + step, 38)
            array[z:stop].write(stack[z:stop]).result()

    writer = Writer(write, range(38))
    writer.start()
    # Complete with its last plane, and not only after the time without news.
    started = time.monotonic()
    followed(bundle, path, output, timeout_s=30.0)
    assert time.monotonic() - started < 30.0
    writer.join()
    np.testing.assert_array_equal(voxels_of(output), expected_of(bundle, stack))


def test_a_layer_of_chunks_that_comes_after_the_next_is_waited_for(bundle, tmp_path):
    stack = stack_of(12)
    path, output = tmp_path / "acquired.zarr", tmp_path / "out.ome.zarr"
    array = zarr_of(path, 12, [4, 20, 24])
    array[4:8].write(stack[4:8]).result()

    def late():
        time.sleep(1.0)
        array[:4].write(stack[:4]).result()
        array[8:].write(stack[8:]).result()

    writer = threading.Thread(target=late)
    writer.start()
    followed(bundle, path, output, settle_s=0.2, timeout_s=30.0)
    writer.join()
    np.testing.assert_array_equal(voxels_of(output), expected_of(bundle, stack))


def test_an_array_that_is_made_longer_is_followed(bundle, tmp_path):
    stack = stack_of(24)
    path, output = tmp_path / "acquired.zarr", tmp_path / "out.ome.zarr"
    arrays = [zarr_of(path, 8, [4, 20, 24])]
    arrays[0].write(stack[:8]).result()

    def write(z):
        if z % 8 == 0:
            longer = arrays[-1].resize(exclusive_max=[z + 8, *SHAPE]).result()
            longer[z : z + 8].write(stack[z : z + 8]).result()
            arrays.append(longer)

    writer = Writer(write, range(8, 24))
    writer.start()
    followed(bundle, path, output)
    writer.join()
    np.testing.assert_array_equal(voxels_of(output), expected_of(bundle, stack))


def test_a_stack_that_stops_early_is_ended_and_said_to_be_short(bundle, tmp_path):
    stack = stack_of(12)
    path, output = tmp_path / "acquired.zarr", tmp_path / "out.ome.zarr"
    zarr_of(path, 30, [4, 20, 24])[:12].write(stack).result()
    report = followed(bundle, path, output, timeout_s=0.5)
    np.testing.assert_array_equal(voxels_of(output), expected_of(bundle, stack))
    assert "ended after 12 of 30 planes" in report.warnings[0]


def test_it_ends_with_as_many_planes_as_were_asked_for(bundle, tmp_path):
    stack = stack_of(15)
    for z, plane in enumerate(stack):
        tifffile.imwrite(tmp_path / f"z{z}.tif", plane)
    output = tmp_path / "out.v3draw"
    followed(bundle, tmp_path, output, planes=11, timeout_s=60.0)
    np.testing.assert_array_equal(voxels_of(output), expected_of(bundle, stack[:11]))


def test_a_voxel_size_that_is_said_goes_into_the_result(bundle, tmp_path):
    for z, plane in enumerate(stack_of(9)):
        tifffile.imwrite(tmp_path / f"p{z:03}.tif", plane)
    output = tmp_path / "out.ome.zarr"
    said = ReadOptions(voxel_size_um=(2.0, 0.6, 0.5))
    followed(bundle, tmp_path, output, planes=9, read=said)
    with open_volume(output) as volume:
        assert volume.voxel_size_um == pytest.approx((2.0, 0.6, 0.5))


def test_what_is_learnt_from_the_first_planes_is_told(make_identity_bundle, tmp_path):
    made = make_identity_bundle(tile=(8, 16, 16), normalisation="background-asinh")
    stack = stack_of(20)
    for z, plane in enumerate(stack):
        tifffile.imwrite(tmp_path / f"z{z}.tif", plane)
    output = tmp_path / "out.ome.zarr"
    report = followed(made, tmp_path, output, None, planes=20)
    learnt = Normalisation(**report.provenance["normalisation"])
    np.testing.assert_array_equal(voxels_of(output), expected_of(made, stack, learnt))
    inside = json.loads((output / "zarr.json").read_text())["attributes"]["neurodeploy"]
    assert inside["normalisation"] == report.provenance["normalisation"]


def test_a_missing_plane_is_named_and_nothing_is_left(bundle, tmp_path):
    folder = tmp_path / "planes"
    folder.mkdir()
    for z in (*range(9), *range(10, 20)):
        tifffile.imwrite(folder / f"z{z:02}.tif", stack_of(1)[0])
    with pytest.raises(
        InputError, match=r"lacks planes between z00\.tif and z19\.tif: 9"
    ):
        followed(bundle, folder, tmp_path / "out.tif", timeout_s=0.3)
    assert [p.name for p in tmp_path.iterdir()] == ["planes"]


def test_a_plane_that_comes_too_late_is_named(bundle, tmp_path):
    folder = tmp_path / "planes"
    folder.mkdir()
    for z in range(5, 15):
        tifffile.imwrite(folder / f"z{z:02}.tif", stack_of(1)[0])
    late = threading.Timer(
        0.4, lambda: tifffile.imwrite(folder / "z04.tif", stack_of(1)[0])
    )
    late.start()
    with pytest.raises(InputError, match=r"has got a plane before z"):
        followed(bundle, folder, tmp_path / "out.tif", timeout_s=20.0)
    late.join()


def test_nothing_that_comes_is_said_to_be_so(bundle, tmp_path):
    with pytest.raises(InputError, match=r"has brought no plane in 0\.3 s"):
        followed(bundle, tmp_path / "none", tmp_path / "out.tif", timeout_s=0.3)
    (tmp_path / "file.tif").write_bytes(b"II*\0")
    with pytest.raises(InputError, match="is a file"):
        followed(bundle, tmp_path / "file.tif", tmp_path / "out.tif")


def test_an_output_is_not_overwritten_unasked(bundle, tmp_path):
    (tmp_path / "out.tif").write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists"):
        followed(bundle, tmp_path, tmp_path / "out.tif")
    assert (tmp_path / "out.tif").read_bytes() == b"mine"


def test_it_can_be_stopped(bundle, tmp_path):
    planes = tmp_path / "planes"
    planes.mkdir()
    for z in range(5):
        tifffile.imwrite(planes / f"z{z}.tif", stack_of(1)[0])
    cancel = threading.Event()
    threading.Timer(0.5, cancel.set).start()
    settings = FollowSettings(settle_s=0.05, poll_s=0.01)
    with pytest.raises(CancelledError, match="stopped by the caller"):
        follow(
            planes,
            tmp_path / "out.tif",
            bundle,
            settings,
            engines=[NumpyEngine(bundle)],
            cancel=cancel,
        )
    assert not (tmp_path / "out.tif").exists()


def test_layers_that_were_written_together_settle_together(tmp_path):
    """And not one after the other, each after a time of its own."""
    array = zarr_of(tmp_path / "acquired.zarr", 12, [1, 20, 24])
    growing = GrowingZarr(tmp_path / "acquired.zarr", 0.05, ReadOptions())
    array[:12].write(stack_of(12)).result()
    growing.look()
    assert growing.whole == 0
    time.sleep(0.06)
    growing.look()
    assert growing.whole == 12


class Held(NumpyEngine):
    """Computes nothing until it is let go."""

    def __init__(self, bundle):
        super().__init__(bundle)
        self.reached, self.gate = threading.Event(), threading.Event()

    def infer(self, batch, out):
        self.reached.set()
        assert self.gate.wait(30.0)
        super().infer(batch, out)


def test_what_came_while_a_push_waited_for_the_engine_is_news(
    bundle, tmp_path, monkeypatch
):
    stack = stack_of(40)
    path, output = tmp_path / "acquired.zarr", tmp_path / "out.ome.zarr"
    array = zarr_of(path, 40, [4, 20, 24])
    array[:32].write(stack[:32]).result()
    engine, looked = Held(bundle), threading.Event()
    look = GrowingZarr.look

    def noted(growing):
        look(growing)
        if engine.gate.is_set():
            looked.set()

    monkeypatch.setattr(GrowingZarr, "look", noted)

    def write():
        assert engine.reached.wait(30.0)
        time.sleep(1.2)
        array[32:36].write(stack[32:36]).result()
        engine.gate.set()
        looked.wait(5.0)
        array[36:].write(stack[36:]).result()

    writer = threading.Thread(target=write)
    writer.start()
    live = LiveSettings(normalisation=UNIT, ring_planes=10)
    asked = FollowSettings(live=live, timeout_s=1.0, settle_s=0.02, poll_s=0.01)
    report = follow(path, output, bundle, asked, engines=[engine])
    writer.join()
    assert report.warnings == []
    np.testing.assert_array_equal(voxels_of(output), expected_of(bundle, stack))


def test_an_array_that_is_made_longer_ahead_of_its_planes_is_followed(bundle, tmp_path):
    stack = stack_of(24)
    path, output = tmp_path / "acquired.zarr", tmp_path / "out.ome.zarr"
    array = zarr_of(path, 8, [4, 20, 24])
    array[:4].write(stack[:4]).result()

    def write():
        longer = array
        time.sleep(0.1)
        for depth in (16, 24):
            longer = longer.resize(exclusive_max=[depth, *SHAPE]).result()
            longer[depth - 12 : depth].write(stack[depth - 12 : depth]).result()
            time.sleep(0.3)

    writer = threading.Thread(target=write)
    writer.start()
    followed(bundle, path, output, settle_s=0.02)
    writer.join()
    np.testing.assert_array_equal(voxels_of(output), expected_of(bundle, stack))


def looked_at(growing):
    """What is whole when nothing has changed for long."""
    for _ in range(2):
        growing.look()
        time.sleep(0.03)
    growing.look()
    return growing.whole


def test_planes_that_are_announced_within_a_chunk_are_waited_for(tmp_path):
    """The chunk is there already: it holds the planes before them."""
    stack = stack_of(8)
    array = zarr_of(tmp_path / "acquired.zarr", 2, [4, 20, 24])
    array[:2].write(stack[:2]).result()
    growing = GrowingZarr(tmp_path / "acquired.zarr", 0.02, ReadOptions())
    assert looked_at(growing) == 2
    longer = array.resize(exclusive_max=[3, *SHAPE]).result()
    assert looked_at(growing) == 2
    longer[2:3].write(stack[2:3]).result()
    assert looked_at(growing) == 3
    longer = longer.resize(exclusive_max=[8, *SHAPE]).result()
    assert looked_at(growing) == 3
    growing.end()
    assert growing.whole == 3
    longer[3:].write(stack[3:]).result()
    assert looked_at(growing) == 8
    np.testing.assert_array_equal(growing.read(0, 8), stack)


@pytest.mark.parametrize("come", [True, False])
def test_planes_announced_before_those_above_them_are_taken_are_waited_for(
    tmp_path, come
):
    """The chunk was seen, and had not settled, when the array was made longer."""
    stack = stack_of(4)
    array = zarr_of(tmp_path / "acquired.zarr", 3, [4, 20, 24])
    array[:3].write(stack[:3]).result()
    growing = GrowingZarr(tmp_path / "acquired.zarr", 0.02, ReadOptions())
    growing.look()
    longer = array.resize(exclusive_max=[4, *SHAPE]).result()
    assert looked_at(growing) < 4
    if come:
        longer[3:].write(stack[3:]).result()
        assert looked_at(growing) == 4
    else:
        growing.end()
        assert growing.whole == 3
    planes = growing.whole
    np.testing.assert_array_equal(growing.read(0, planes), stack[:planes])


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([0, 1, 2], "of planes 4 to 7, 1 of 2 chunk files are not there"),
        ([0, 1, 2, 3], "planes 4 to 7 lie in chunk files that may have"),
    ],
)
def test_a_layer_that_may_be_written_in_part_is_named(bundle, tmp_path, files, said):
    """Of two chunk files to a layer of four planes; the stack is to have twelve."""
    stack = stack_of(12)
    path, output = tmp_path / "acquired.zarr", tmp_path / "out.ome.zarr"
    array = zarr_of(path, 12, [4, 10, 24])
    for n in files:
        z, y = n // 2 * 4, n % 2 * 10
        array[z : z + 4, y : y + 10].write(stack[z : z + 4, y : y + 10]).result()
    report = followed(bundle, path, output, timeout_s=0.5)
    assert "ended after 8 of 12 planes" in report.warnings[0]
    assert said in report.warnings[1]
    assert "what was not written is taken as empty" in report.warnings[1]
    stack[4:8] = array[4:8].read().result()
    np.testing.assert_array_equal(voxels_of(output), expected_of(bundle, stack[:8]))


def test_fewer_planes_than_were_asked_for_are_said_to_be_so(bundle, tmp_path):
    stack = stack_of(9)
    folder = tmp_path / "planes"
    folder.mkdir()
    for z, plane in enumerate(stack):
        tifffile.imwrite(folder / f"z{z}.tif", plane)
    report = followed(bundle, folder, tmp_path / "a.tif", planes=15, timeout_s=0.3)
    assert "ended after 9 of 15 planes: nothing came" in report.warnings[0]
    path = tmp_path / "acquired.zarr"
    zarr_of(path, 30, [1, 20, 24])[:12].write(stack_of(12)).result()
    report = followed(bundle, path, tmp_path / "b.tif", planes=7, timeout_s=30.0)
    assert (report.shape[0], report.warnings) == (7, [])


def test_it_can_be_stopped_when_all_planes_have_come(bundle, tmp_path):
    stack = stack_of(12)
    for z, plane in enumerate(stack):
        tifffile.imwrite(tmp_path / f"z{z:02}.tif", plane)
    engine, cancel = Held(bundle), threading.Event()

    def stop():
        assert engine.reached.wait(30.0)
        time.sleep(0.5)
        cancel.set()
        time.sleep(0.5)
        engine.gate.set()

    stopper = threading.Thread(target=stop)
    stopper.start()
    live = LiveSettings(normalisation=UNIT, ring_planes=20)
    asked = FollowSettings(live=live, planes=12, settle_s=0.02, poll_s=0.01)
    output = tmp_path / "out.v3draw"
    with pytest.raises(CancelledError, match="stopped by the caller"):
        follow(tmp_path, output, bundle, asked, engines=[engine], cancel=cancel)
    stopper.join()
    assert not output.exists()


def test_a_store_that_comes_late_may_be_half_written_too(bundle, tmp_path):
    """Its metadata is there for a moment before it is whole."""
    stack = stack_of(12)
    path, output = tmp_path / "acquired.zarr", tmp_path / "out.ome.zarr"

    def write():
        time.sleep(0.7)
        path.mkdir()
        (path / "zarr.json").write_text('{"zarr_format": 3, "node_')
        time.sleep(0.1)
        (path / "zarr.json").unlink()
        zarr_of(path, 12, [4, 20, 24]).write(stack).result()

    writer = threading.Thread(target=write)
    writer.start()
    followed(bundle, path, output, timeout_s=1.0)
    writer.join()
    np.testing.assert_array_equal(voxels_of(output), expected_of(bundle, stack))


def test_metadata_that_is_half_written_for_a_moment_is_waited_for(bundle, tmp_path):
    """As of a writer that does not put a new one in the place of the old."""
    stack = stack_of(16)
    path, output = tmp_path / "acquired.zarr", tmp_path / "out.ome.zarr"
    array = zarr_of(path, 8, [4, 20, 24])
    array.write(stack[:8]).result()

    def write():
        time.sleep(0.3)
        longer = array.resize(exclusive_max=[16, *SHAPE]).result()
        whole = (path / "zarr.json").read_text()
        (path / "zarr.json").write_text(whole[:40])
        time.sleep(0.2)
        (path / "zarr.json").write_text(whole)
        longer[8:].write(stack[8:]).result()

    writer = threading.Thread(target=write)
    writer.start()
    followed(bundle, path, output)
    writer.join()
    np.testing.assert_array_equal(voxels_of(output), expected_of(bundle, stack))


def test_metadata_that_stays_damaged_is_an_error(tmp_path):
    path = tmp_path / "acquired.zarr"
    zarr_of(path, 8, [4, 20, 24])
    growing = GrowingZarr(path, 0.01, ReadOptions())
    (path / "zarr.json").write_text("{")
    growing.look()
    time.sleep(0.15)
    with pytest.raises(InputError, match="no JSON"):
        growing.look()


def test_a_stack_that_goes_on_is_not_lost_for_want_of_a_fingerprint(bundle, tmp_path):
    """Of a plane that nobody asked for, which is being written at the end."""
    stack = stack_of(9)
    folder = tmp_path / "planes"
    folder.mkdir()
    for z, plane in enumerate(stack):
        tifffile.imwrite(folder / f"z{z:02}.tif", plane)
    (folder / "z09.tif").write_bytes(b"II*\0")
    output = tmp_path / "out.tif"
    report = followed(bundle, folder, output, planes=9, timeout_s=30.0)
    np.testing.assert_array_equal(voxels_of(output), expected_of(bundle, stack))
    assert "the input has no fingerprint" in report.warnings[0]
    assert "z09.tif" in report.warnings[0]


def test_a_plane_that_is_written_after_the_next_one_is_waited_for(bundle, tmp_path):
    """As by a writer of several threads: the file has its size, and half its bytes."""
    stack = stack_of(12)
    folder, output = tmp_path / "planes", tmp_path / "out.tif"
    folder.mkdir()
    for z, plane in enumerate(stack):
        tifffile.imwrite(folder / f"z{z:02}.tif", plane, compression="zlib")
    slow = folder / "z05.tif"
    whole = slow.read_bytes()
    half = len(whole) // 2
    slow.write_bytes(whole[:half] + bytes(len(whole) - half))
    late = threading.Timer(0.3, lambda: slow.write_bytes(whole))
    late.start()
    followed(bundle, folder, output, planes=12, settle_s=0.2)
    late.join()
    np.testing.assert_array_equal(voxels_of(output), expected_of(bundle, stack))


def test_names_are_put_in_order_when_there_are_new_ones(tmp_path, monkeypatch):
    for z in range(5):
        tifffile.imwrite(tmp_path / f"z{z:02}.tif", stack_of(1)[0])
    growing = GrowingFolder(tmp_path, 0.02, ReadOptions())
    ordered = []
    in_order = GrowingFolder._in_order

    def counted(growing, names):
        ordered.append(len(names))
        return in_order(growing, names)

    monkeypatch.setattr(GrowingFolder, "_in_order", counted)
    assert looked_at(growing) == 5
    tifffile.imwrite(tmp_path / "z05.tif", stack_of(1)[0])
    assert looked_at(growing) == 6
    assert ordered == [5, 6]


def test_only_a_zarr_on_this_machine_can_be_followed(bundle, tmp_path):
    with pytest.raises(InputError, match="lies on a server"):
        followed(bundle, "s3://bucket/run.zarr", tmp_path / "out.tif")
    path = tmp_path / "run.n5"
    spec = {
        "driver": "n5",
        "kvstore": {"driver": "file", "path": f"{path}/"},
        "metadata": {
            "dimensions": [24, 20, 8],
            "blockSize": [24, 20, 4],
            "dataType": "uint16",
            "compression": {"type": "raw"},
        },
    }
    ts.open(spec, create=True).result()
    with pytest.raises(SettingsError, match="is N5: of stores, only a growing Zarr"):
        followed(bundle, path, tmp_path / "out.tif", timeout_s=30.0)


def test_nothing_is_left_behind_by_a_kill(bundle, tmp_path):
    """What is finished lies in a file without a name until the depth is known."""
    folder = tmp_path / "planes"
    folder.mkdir()
    for z, plane in enumerate(stack_of(20)):
        tifffile.imwrite(folder / f"z{z:02}.tif", plane)
    seen = []
    live = LiveSettings(normalisation=UNIT)
    follow(
        folder,
        tmp_path / "out.tif",
        bundle,
        FollowSettings(live=live, planes=20, settle_s=0.02, poll_s=0.01),
        engines=[NumpyEngine(bundle)],
        progress=lambda p: seen.append([f.name for f in tmp_path.iterdir()]),
    )
    assert seen
    assert all(names == ["planes"] for names in seen)


def test_a_result_that_is_open_elsewhere_is_kept_under_another_name(
    tmp_path, monkeypatch
):
    """As on Windows, where what is open cannot be replaced."""
    path = tmp_path / "out.tif"
    path.write_bytes(b"open in a viewer")
    replace = Path.replace

    def refused(self, target):
        if Path(target) == path:
            raise PermissionError(13, "it is used by another process")
        return replace(self, target)

    def write():
        with PlaneWriter(path, (3, *SHAPE), overwrite=True) as writer:
            for plane in np.ones((3, *SHAPE), np.uint8):
                writer.add(plane)
            monkeypatch.setattr(Path, "replace", refused)
            writer.finish({})

    with pytest.raises(WriteError, match=r"rename .*\.out\.partial\.tif, which is the"):
        write()
    assert path.read_bytes() == b"open in a viewer"
    assert voxels_of(tmp_path / ".out.partial.tif").all()


def test_a_store_that_is_written_over_goes_when_the_new_one_is_there(
    tmp_path, monkeypatch
):
    path = tmp_path / "out.ome.zarr"
    for value in (1, 2):
        with PlaneWriter(path, (3, *SHAPE), overwrite=True) as writer:
            for plane in np.full((3, *SHAPE), value, np.uint8):
                writer.add(plane)
            writer.finish({})
    assert (voxels_of(path) == 2).all()
    assert [p.name for p in tmp_path.iterdir()] == ["out.ome.zarr"]
    replace = Path.replace

    def refused(self, target):
        if self.name.startswith(".out") and Path(target) == path and self != old:
            raise PermissionError(13, "it is used by another process")
        return replace(self, target)

    old = tmp_path / ".out.ome.partial.zarr.old"

    def write():
        with PlaneWriter(path, (3, *SHAPE), overwrite=True) as writer:
            monkeypatch.setattr(Path, "replace", refused)
            writer.finish({})

    with pytest.raises(WriteError, match="cannot be replaced"):
        write()
    assert (voxels_of(path) == 2).all()


@pytest.mark.parametrize("separator", ["/", "."])
def test_where_there_is_nothing_yet_not_every_chunk_is_asked_for(
    tmp_path, monkeypatch, separator
):
    path = tmp_path / "acquired.zarr"
    array = zarr_of(path, 400, [4, 2, 2], separator=separator)
    array[:8].write(stack_of(8)).result()
    growing = GrowingZarr(path, 0.02, ReadOptions())
    assert looked_at(growing) == 4
    asked = []
    stat = os.stat

    def counted(path, **how):
        asked.append(path)
        return stat(path, **how)

    monkeypatch.setattr(os, "stat", counted)
    growing.look()
    # A layer has 120 chunks; 64 empty ones are looked for.
    assert (len(asked) < 500) == (separator == "/")


@pytest.mark.parametrize(
    ("live", "error"),
    [
        ({"engine": EngineSettings(device="cuda:7")}, DeviceError),
        ({"overlap": 0.9}, SettingsError),
        ({"ring_planes": 2}, SettingsError),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_plane(
    bundle, tmp_path, live, error
):
    asked = FollowSettings(live=LiveSettings(**live), timeout_s=30.0)
    started = time.monotonic()
    with pytest.raises(error):
        follow(tmp_path / "planes", tmp_path / "out.tif", bundle, asked)
    assert time.monotonic() - started < 20.0


@settings(max_examples=40, deadline=None)
@given(
    step=st.integers(1, 3),
    absent=st.sets(st.integers(0, 99), max_size=4),
    batches=st.lists(st.integers(1, 30), min_size=3, max_size=12),
    shuffled=st.randoms(),
)
def test_new_planes_are_put_behind_the_last_as_among_all(
    tmp_path_factory, step, absent, batches, shuffled
):
    folder = tmp_path_factory.mktemp("planes")
    growing = GrowingFolder(folder, 0.0, ReadOptions())
    numbers = [step * n for n in range(100) if n not in absent]
    names = [f"z{n:03}.tif" for n in numbers]
    seen = []
    for size in batches:
        some, names = names[:size], names[size:]
        shuffled.shuffle(some)
        seen += some
        if len(seen) < 3:
            continue
        try:
            expected = planes_in_order([folder / n for n in seen], folder)
        except InputError:
            # Where it is told by the last ones alone, it is told, too.
            with pytest.raises(InputError, match="lacks planes"):
                growing._in_order(set(seen))
            return
        assert growing._in_order(set(seen)) == expected
        growing._names, growing._files = set(seen), expected
