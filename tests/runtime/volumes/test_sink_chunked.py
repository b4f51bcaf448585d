"""Promises of the outputs that are folders of shards: OME-Zarr and precomputed."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurodeploy_runtime._errors import OutputError, ResumeError, WriteError
from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime.volumes import _sink_pyramid
from neurodeploy_runtime.volumes._open_sink import (
    create_sink,
    open_sink,
    required_bytes,
)
from neurodeploy_runtime.volumes._sink_pyramid import levels_of, pool

ts = pytest.importorskip("tensorstore")
zarr = pytest.importorskip("zarr")

UM = (2.0, 0.5, 0.5)
KINDS = ["ome-zarr", "precomputed"]
EXTENTS = st.integers(1, 40)
SHAPES = st.tuples(EXTENTS, EXTENTS, EXTENTS)
SAME_FOLDER = settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def volume(shape, dtype="uint16", seed=0):
    values = np.random.default_rng(seed).integers(0, 250, shape)
    return values.astype(dtype)


def fill(sink, voxels):
    for unit in sink.units():
        sink.write(unit, voxels[unit.slices])


def plain_pool(voxels, step, how):
    """The plain version of `pool`: one coarse voxel after the other."""
    shape = [-(-n // s) for n, s in zip(voxels.shape, step, strict=True)]
    pooled = np.zeros(shape, voxels.dtype)
    for at in np.ndindex(*shape):
        cell = voxels[
            tuple(slice(a * s, a * s + s) for a, s in zip(at, step, strict=True))
        ]
        if how == "max":
            pooled[at] = cell.max()
        elif voxels.dtype.kind == "f":
            pooled[at] = cell.mean(dtype=np.float64)
        else:
            pooled[at] = np.floor(cell.mean(dtype=np.float64) + 0.5)
    return pooled


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(*[st.integers(1, 6)] * 3),
    st.tuples(*[st.integers(1, 2)] * 3),
    st.sampled_from(["uint8", "uint16", "int16", "float32"]),
    st.sampled_from(["max", "mean"]),
    st.integers(0, 1000),
)
def test_pooling_agrees_with_its_plain_version(shape, step, dtype, how, seed):
    low = -32768 if dtype == "int16" else 0
    high = {"uint8": 256, "int16": 32768}.get(dtype, 65536)
    voxels = np.random.default_rng(seed).integers(low, high, shape).astype(dtype)
    pooled = pool(voxels, step, how)
    assert pooled.dtype == voxels.dtype
    assert np.allclose(pooled, plain_pool(voxels, step, how), rtol=1e-6, atol=0)


@SAME_FOLDER
@given(SHAPES, st.tuples(*[st.integers(1, 24)] * 3), st.sampled_from(["max", "mean"]))
def test_every_level_of_a_zarr_is_the_pooled_volume(tmp_path, shape, grain, how):
    voxels = volume(shape)
    path = tmp_path / "a.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sink_pyramid, "SMALLEST", 4)
        levels = levels_of(shape, UM)
        with create_sink(
            path,
            "ome-zarr",
            shape,
            "uint16",
            UM,
            grain=grain,
            pooling=how,
            overwrite=True,
        ) as sink:
            fill(sink, voxels)
            sink.finish({})
            assert np.array_equal(sink.read(Box.whole(shape)), voxels)
    expected = voxels
    for number, level in enumerate(levels):
        expected = plain_pool(expected, level.step, how)
        stored = zarr.open_array(path / str(number), mode="r")
        assert stored.shape == level.shape
        assert np.array_equal(stored[:], expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_ome_zarr_readers_open_it_with_its_scale(tmp_path, dtype):
    models = pytest.importorskip("ome_zarr_models")
    path = tmp_path / "a.ome.zarr"
    voxels = volume((70, 300, 130), dtype)
    with create_sink(path, "ome-zarr", voxels.shape, dtype, UM) as sink:
        fill(sink, voxels)
        sink.finish({"model": "m"})
    group = zarr.open_group(path, mode="r")
    assert group.attrs["neurodeploy"] == {"model": "m"}
    assert np.array_equal(group["0"][:], voxels)
    image = models.open_ome_zarr(group)
    assert type(image).__module__.startswith("ome_zarr_models.v05")
    (multiscale,) = image.ome_attributes.multiscales
    assert [axis.unit for axis in multiscale.axes] == ["micrometer"] * 3
    scales = [
        tuple(dataset.coordinateTransformations[0].scale)
        for dataset in multiscale.datasets
    ]
    assert scales == [UM, (2.0, 1.0, 1.0)]
    moved = multiscale.datasets[1].coordinateTransformations[1].translation
    assert moved == [0.0, 0.25, 0.25]


@pytest.mark.slow  # it imports dask
def test_ome_zarr_py_reads_every_level(tmp_path):
    reader = pytest.importorskip("ome_zarr.reader")
    from ome_zarr.io import parse_url

    path = tmp_path / "a.ome.zarr"
    voxels = volume((10, 300, 300), "uint8")
    with create_sink(path, "ome-zarr", voxels.shape, "uint8", (1, 1, 1)) as sink:
        fill(sink, voxels)
        sink.finish({})
    (node,) = reader.Reader(parse_url(path))()
    assert [level.shape for level in node.data] == [(10, 300, 300), (5, 150, 150)]
    assert np.array_equal(np.asarray(node.data[0]), voxels)
    assert np.array_equal(np.asarray(node.data[1]), pool(voxels, (2, 2, 2), "max"))


@pytest.mark.parametrize(
    ("shape", "size", "how"),
    [
        ((300, 300, 300), (1, 1, 1), "max"),
        ((41, 600, 300), (1, 1, 1), "mean"),
        ((100, 300, 520), (4, 1, 1), "max"),
        ((1, 1, 700), (1, 1, 1), "mean"),
    ],
)
def test_every_level_of_a_precomputed_volume_is_the_pooled_volume(
    tmp_path, shape, size, how
):
    path = tmp_path / "a.precomputed"
    voxels = volume(shape, "uint8")
    with create_sink(path, "precomputed", shape, "uint8", size, pooling=how) as sink:
        for unit in sink.units():
            assert not sink.holds(unit)
            sink.write(unit, voxels[unit.slices])
            assert sink.holds(unit)
        sink.finish({"model": "m"})
    info = json.loads((path / "info").read_text())
    assert info["type"] == ("segmentation" if how == "max" else "image")
    expected = voxels
    levels = levels_of(shape, size)
    assert len(info["scales"]) == len(levels)
    for number, level in enumerate(levels):
        expected = pool(expected, level.step, how)
        scale = ts.open(
            {
                "driver": "neuroglancer_precomputed",
                "kvstore": f"file://{path}/",
                "scale_index": number,
            }
        ).result()
        assert scale.shape == (*level.shape[::-1], 1)
        assert np.array_equal(scale[..., 0].read().result().T, expected)
        assert (
            info["scales"][number]["resolution"]
            == [s * f * 1000 for s, f in zip(size, level.factor, strict=True)][::-1]
        )
    provenance = json.loads((path / "provenance").read_text())
    assert provenance["processing"][0]["method"] == {"model": "m"}


@pytest.mark.parametrize("kind", KINDS)
def test_units_are_held_only_after_they_were_written_even_of_zeros(tmp_path, kind):
    path = tmp_path / "a"
    shape = (64, 300, 600)
    with create_sink(path, kind, shape, "uint8", UM) as sink:
        units = list(sink.units())
        assert len(units) >= 2
        sink.write(units[0], np.zeros(units[0].shape, np.uint8))
        assert sink.holds(units[0])
        assert not sink.holds(units[1])
        assert not sink.read(units[1]).any()
    with open_sink(path, kind, shape, "uint8", UM) as sink:
        assert sink.holds(units[0])
        assert not sink.holds(units[1])
        ones = np.ones(units[1].shape, np.uint8)
        sink.write(units[1], ones)
        assert np.array_equal(sink.read(units[1]), ones)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_shard_is_not_held_and_can_be_written_again(tmp_path, kind, damage):
    path = tmp_path / "a"
    shape = (20, 300, 600)
    voxels = volume(shape, "uint8")
    with create_sink(path, kind, shape, "uint8", UM) as sink:
        fill(sink, voxels)
        for _unit in sink.units():
            shard = max(
                (f for f in path.rglob("*") if f.is_file() and f.suffix != ".json"),
                key=lambda f: (f.stat().st_size, f),
            )
            data = shard.read_bytes()
            if damage == "gone":
                shard.unlink()
            elif damage == "cut":
                shard.write_bytes(data[: len(data) // 2])
            else:
                half = len(data) // 2
                shard.write_bytes(data[:half] + bytes(50) + data[half + 50 :])
        assert not all(map(sink.holds, sink.units()))
        for unit in sink.units():
            if not sink.holds(unit):
                sink.write(unit, voxels[unit.slices])
        assert all(map(sink.holds, sink.units()))
        assert np.array_equal(sink.read(Box.whole(shape)), voxels)


@pytest.mark.parametrize("kind", KINDS)
def test_leftovers_of_a_killed_writer_are_swept_and_change_nothing(tmp_path, kind):
    path = tmp_path / "a"
    shape = (20, 300, 300)
    voxels = volume(shape, "uint8")
    create_sink(path, kind, shape, "uint8", UM).close()
    with create_sink(tmp_path / "b", kind, shape, "uint8", UM) as other:
        fill(other, voxels)
    shards = [
        file.relative_to(tmp_path / "b")
        for file in (tmp_path / "b").rglob("*")
        if file.is_file() and file.suffix != ".json" and file.name != "info"
    ]
    for shard in shards:
        (path / shard).parent.mkdir(parents=True, exist_ok=True)
        # As long as a lock that was never cut to size, and longer than the shard.
        lock = Path(f"{path / shard}.__lock")
        lock.write_bytes(b"X" * 1_000_000)
        os.utime(lock, (0, 0))
    with open_sink(path, kind, shape, "uint8", UM) as sink:
        assert not list(path.rglob("*.__lock"))
        fill(sink, voxels)
        assert np.array_equal(sink.read(Box.whole(shape)), voxels)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stale_lock_does_no_harm_before_it_is_swept_at_the_end(tmp_path, kind):
    path = tmp_path / "a"
    shape = (20, 300, 300)
    voxels = volume(shape, "uint8")
    with create_sink(path, kind, shape, "uint8", UM) as sink:
        fill(sink, voxels)
        shards = [f for f in path.rglob("*") if f.is_file() and f.suffix != ".json"]
        for shard in shards:
            Path(f"{shard}.__lock").write_bytes(b"X" * 1_000_000)
    with open_sink(path, kind, shape, "uint8", UM) as sink:
        fill(sink, voxels)
        # They are new: they might be those of another worker.
        assert len(list(path.rglob("*.__lock"))) == len(shards)
        assert all(map(sink.holds, sink.units()))
        assert np.array_equal(sink.read(Box.whole(shape)), voxels)
        sink.finish({})
        assert not list(path.rglob("*.__lock"))
        assert np.array_equal(sink.read(Box.whole(shape)), voxels)


@pytest.mark.parametrize("kind", KINDS)
def test_a_write_across_two_shards_is_refused(tmp_path, kind):
    with create_sink(tmp_path / "a", kind, (64, 64, 600), "uint8", UM) as sink:
        box = Box((0, 0, 64), (64, 64, 320))
        with pytest.raises(WriteError, match="not one unit"):
            sink.write(box, np.ones(box.shape, np.uint8))
        assert not sink.read(Box.whole(sink.shape)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_another_geometry_is_not_continued(tmp_path, kind):
    path = tmp_path / "a"
    create_sink(path, kind, (20, 300, 300), "uint8", UM).close()
    for shape, dtype in [((20, 300, 301), "uint8"), ((20, 300, 300), "uint16")]:
        with pytest.raises(ResumeError, match="cannot be continued"):
            open_sink(path, kind, shape, dtype, UM)
    with pytest.raises(ResumeError, match="not there"):
        open_sink(tmp_path / "b", kind, (20, 300, 300), "uint8", UM)


@pytest.mark.parametrize("kind", KINDS)
def test_only_an_output_of_its_own_kind_is_replaced(tmp_path, kind):
    path = tmp_path / "a"
    path.mkdir()
    (path / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="already there"):
        create_sink(path, kind, (2, 3, 4), "uint8", UM)
    with pytest.raises(OutputError, match="not replaced"):
        create_sink(path, kind, (2, 3, 4), "uint8", UM, overwrite=True)
    assert (path / "thesis.txt").read_text() == "precious"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    old = tmp_path / "old"
    with create_sink(old, kind, (2, 3, 4), "uint8", UM) as sink:
        fill(sink, volume((2, 3, 4), "uint8"))
    with create_sink(old, kind, (2, 3, 5), "uint8", UM, overwrite=True) as sink:
        assert not sink.read(Box.whole((2, 3, 5))).any()


def test_precomputed_asks_for_a_voxel_size(tmp_path):
    with pytest.raises(OutputError, match="voxel size"):
        create_sink(tmp_path / "a", "precomputed", (2, 3, 4), "uint8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_announced_disk_is_enough_for_voxels_that_cannot_be_compressed(
    tmp_path, kind
):
    shape = (70, 300, 130)
    voxels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    with create_sink(tmp_path / "a", kind, shape, "uint8", UM) as sink:
        fill(sink, voxels)
        sink.finish({"model": "m"})
    used = sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())
    assert voxels.size < used <= required_bytes(kind, shape, "uint8")


@pytest.mark.parametrize("kind", KINDS)
def test_without_tensorstore_the_user_is_told_what_to_install(
    tmp_path, kind, monkeypatch
):
    monkeypatch.setitem(__import__("sys").modules, "tensorstore", None)
    with pytest.raises(OutputError, match=r"pip install .neurodeploy\[cluster\]"):
        create_sink(tmp_path / "a", kind, (2, 3, 4), "uint8", UM)
