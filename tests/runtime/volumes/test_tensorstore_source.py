"""Promises of the source for Zarr, N5 and precomputed stores."""

import json
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from volume_writers import n5, ome_zarr_04, zarr2

from neurodeploy_runtime._errors import InputError, ReadError, SettingsError
from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime.volumes import open_volume
from neurodeploy_runtime.volumes._open_sink import create_sink

ts = pytest.importorskip("tensorstore")

UM = (2.0, 0.5, 0.25)
SHAPE = (9, 20, 31)


def volume(shape=SHAPE, dtype="uint16", seed=0):
    return np.random.default_rng(seed).integers(0, 250, shape).astype(dtype)


def ome_zarr(path, voxels):
    kind = "ome-zarr"
    with create_sink(path, kind, voxels.shape, voxels.dtype, UM) as sink:
        for unit in sink.units():
            sink.write(unit, voxels[unit.slices])
        sink.finish({})
    return path


def read_all(source):
    return source.read(Box.whole(source.shape))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_what_the_sink_wrote_is_what_the_source_reads(tmp_path, dtype):
    voxels = volume((70, 300, 130), dtype)
    with open_volume(ome_zarr(tmp_path / "a.ome.zarr", voxels)) as source:
        assert source.format == "OME-Zarr 0.5, level 0"
        assert source.shape == voxels.shape
        assert source.dtype == voxels.dtype
        assert source.voxel_size_um == UM
        assert source.chunk == (64, 64, 64)
        assert np.array_equal(read_all(source), voxels)
    with open_volume(tmp_path / "a.ome.zarr", level=1) as source:
        assert source.shape == (70, 300, 65)
        assert source.voxel_size_um == (2.0, 0.5, 0.5)
        assert np.array_equal(
            read_all(source), np.maximum(voxels[..., ::2], voxels[..., 1::2])
        )


def test_boxes_are_read_into_memory_of_any_strides(tmp_path):
    voxels = volume()
    with open_volume(ome_zarr(tmp_path / "a.zarr", voxels)) as source:
        box = Box((1, 2, 3), (8, 19, 30))
        large = np.zeros((20, 40, 60), np.uint16)
        out = large[::-1][2:9, 3:20, 4:58:2]
        assert source.read(box, out) is out
        assert np.array_equal(out, voxels[box.slices])
        large[::-1][2:9, 3:20, 4:58:2] = 0
        assert not large.any()
        with pytest.raises(SettingsError, match="not inside"):
            source.read(Box((0, 0, 0), (10, 1, 1)))


def test_threads_read_their_own_boxes(tmp_path):
    voxels = volume((64, 64, 64))
    path = zarr2(tmp_path / "a.zarr", voxels, (8, 8, 8))
    with open_volume(path, cache_bytes=10_000) as source, ThreadPoolExecutor(4) as pool:
        boxes = list(Box.whole(voxels.shape).grid((5, 9, 11)))
        read = list(pool.map(source.read, boxes))
    assert all(
        np.array_equal(a, voxels[b.slices]) for a, b in zip(read, boxes, strict=True)
    )


@pytest.mark.parametrize("separator", ["/", "."])
def test_a_plain_zarr_of_three_axes_is_a_stack(tmp_path, separator):
    voxels = volume(dtype=">u2")
    path = zarr2(tmp_path / "a.zarr", voxels, (4, 8, 8), separator)
    with open_volume(path) as source:
        assert source.format == "Zarr v2"
        assert source.dtype == np.dtype("uint16")
        assert source.dtype.isnative
        assert source.voxel_size_um is None
        assert source.chunk == (4, 8, 8)
        assert np.array_equal(read_all(source), voxels)


def test_axes_that_no_one_names_are_asked_for(tmp_path):
    voxels = volume((2, *SHAPE))
    path = zarr2(tmp_path / "a.zarr", voxels, (1, 4, 8, 8))
    with pytest.raises(InputError, match="axes"):
        open_volume(path)
    with open_volume(path, axes="czyx", channel=1) as source:
        assert np.array_equal(read_all(source), voxels[1])
    with open_volume(path, axes="tzyx", time=0) as source:
        assert np.array_equal(read_all(source), voxels[0])


def test_dimension_names_of_a_plain_zarr_v3_are_believed(tmp_path):
    voxels = volume()
    store = ts.open(
        {
            "driver": "zarr3",
            "kvstore": f"file://{tmp_path}/a.zarr/",
            "metadata": {
                "shape": list(voxels.shape),
                "data_type": "uint16",
                "dimension_names": ["x", "z", "y"],
            },
        },
        create=True,
    ).result()
    store.write(voxels).result()
    with open_volume(tmp_path / "a.zarr") as source:
        assert source.format == "Zarr v3"
        assert np.array_equal(read_all(source), voxels.transpose(1, 2, 0))


def test_an_ome_zarr_04_asks_for_channel_and_time_and_gives_levels(tmp_path):
    voxels = volume((2, 3, *SHAPE))
    path = ome_zarr_04(tmp_path / "a.zarr", voxels)
    with pytest.raises(InputError, match="--time 0 to 1"):
        open_volume(path, channel=0)
    with pytest.raises(InputError, match="--channel 0 to 2"):
        open_volume(path, time=0)
    with open_volume(path, channel=2, time=1) as source:
        assert source.format == "OME-Zarr 0.4, level 0"
        assert source.voxel_size_um == (2.0, 0.25, 0.25)
        assert np.array_equal(read_all(source), voxels[1, 2])
    with open_volume(path, channel=0, time=0, level=1) as source:
        assert source.voxel_size_um == (2.0, 0.5, 0.5)
        assert np.array_equal(read_all(source), voxels[0, 0, :, ::2, ::2])
    with pytest.raises(InputError, match="no level 2"):
        open_volume(path, channel=0, time=0, level=2)
    with pytest.raises(InputError, match="no channel 3"):
        open_volume(path, channel=3, time=0)


def test_an_image_in_a_collection_is_named(tmp_path):
    voxels = volume((1, 1, *SHAPE))
    ome_zarr_04(tmp_path / "all.zarr" / "0", voxels)
    (tmp_path / "all.zarr" / ".zattrs").write_text('{"bioformats2raw.layout": 3}')
    (tmp_path / "all.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    with pytest.raises(InputError, match="--dataset; there are 0"):
        open_volume(tmp_path / "all.zarr")
    with open_volume(tmp_path / "all.zarr", dataset="0") as source:
        assert np.array_equal(read_all(source), voxels[0, 0])
    with pytest.raises(InputError, match="no array '7'"):
        open_volume(tmp_path / "all.zarr", dataset="7")


def test_a_chunk_of_a_named_image_that_was_changed_is_noticed(tmp_path):
    """Neither the first nor the last one, which are read."""
    voxels = volume((1, 1, *SHAPE))
    store = tmp_path / "all.zarr"
    ome_zarr_04(store / "image1", voxels)
    (store / ".zgroup").write_text('{"zarr_format": 2}')

    def fingerprint(path, **choice):
        with open_volume(path, **choice) as source:
            return source.fingerprint()

    first = fingerprint(store, dataset="image1")
    chunks = sorted(p for p in (store / "image1" / "0").rglob("*") if p.name.isdigit())
    middle = [p for p in chunks if p.is_file()][1:-1]
    stat = middle[0].stat()
    os.utime(middle[0], ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    assert fingerprint(store, dataset="image1") != first


def test_n5_is_turned_to_z_y_x_with_its_resolution(tmp_path):
    voxels = volume()
    path = n5(
        tmp_path / "a.n5",
        voxels,
        pixelResolution={"unit": "um", "dimensions": [0.25, 0.5, 2.0]},
    )
    with open_volume(path) as source:
        assert source.format == "N5"
        assert source.shape == SHAPE
        assert source.chunk == (4, 7, 8)
        assert source.voxel_size_um == UM
        assert np.array_equal(read_all(source), voxels)


@pytest.mark.parametrize(
    "said",
    [
        {"pixelResolution": {"unit": 3, "dimensions": [1, 1, 2]}},
        {"pixelResolution": {"unit": "um", "dimensions": ["a", None, 2]}},
    ],
)
def test_odd_words_beside_an_n5_array_hide_no_voxel(tmp_path, said):
    voxels = volume()
    with open_volume(n5(tmp_path / "a.n5", voxels, **said)) as source:
        assert source.voxel_size_um is None
        assert np.array_equal(read_all(source), voxels)


def test_levels_of_an_n5_group_take_its_resolution(tmp_path):
    root = tmp_path / "a.n5"
    voxels = volume()
    n5(root / "setup0/timepoint0/s0", voxels)
    n5(
        root / "setup0/timepoint0/s1",
        voxels[:, ::2, ::2],
        downsamplingFactors=[2, 2, 1],
    )
    group = {"resolution": [0.25, 0.5, 2.0], "units": ["um"] * 3}
    (root / "attributes.json").write_text('{"n5": "2.0.0"}')
    (root / "setup0/timepoint0/attributes.json").write_text(json.dumps(group))
    with pytest.raises(InputError, match="there are setup0"):
        open_volume(root)
    with open_volume(root, dataset="setup0/timepoint0") as source:
        assert source.voxel_size_um == UM
        assert np.array_equal(read_all(source), voxels)
    with open_volume(root, dataset="setup0/timepoint0", level=1) as source:
        assert source.voxel_size_um == (2.0, 1.0, 0.5)
        assert np.array_equal(read_all(source), voxels[:, ::2, ::2])


@pytest.mark.parametrize("sharded", [False, True])
def test_a_precomputed_volume_begins_at_its_own_origin(tmp_path, sharded):
    voxels = volume(dtype="uint8")
    scale = {
        "size": list(SHAPE[::-1]),
        "resolution": [250, 500, 2000],
        "encoding": "raw",
        "chunk_size": [8, 8, 8],
        "voxel_offset": [100, 200, 300],
    }
    if sharded:
        scale["sharding"] = {
            "@type": "neuroglancer_uint64_sharded_v1",
            "preshift_bits": 3,
            "minishard_bits": 1,
            "shard_bits": 2,
            "hash": "identity",
        }
    store = ts.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": f"file://{tmp_path}/a/",
            "multiscale_metadata": {
                "type": "image",
                "data_type": "uint8",
                "num_channels": 2,
            },
            "scale_metadata": scale,
        },
        create=True,
    ).result()
    store[..., 1] = voxels.T
    with pytest.raises(InputError, match="--channel 0 to 1"):
        open_volume(tmp_path / "a")
    with open_volume(tmp_path / "a", channel=1) as source:
        assert source.format == "precomputed, level 0"
        assert source.voxel_size_um == UM
        assert np.array_equal(read_all(source), voxels)


class RangeHandler(SimpleHTTPRequestHandler):
    """As a web server of data does it: byte ranges, and no log."""

    absent = 404

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        asked = self.headers.get("Range")
        path = self.translate_path(self.path)
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                data = file.read()
        except OSError:
            self.send_error(self.absent)
            return
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            if first:
                start, stop = int(first), int(last or len(data) - 1) + 1
            else:
                start, stop = len(data) - int(last), len(data)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            data = data[start:stop]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server(tmp_path):
    handler = partial(RangeHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


def test_a_store_on_a_web_server_is_read_as_one_on_the_disk(tmp_path, server):
    voxels = volume((9, 70, 300))
    ome_zarr(tmp_path / "a.zarr", voxels)
    with open_volume(f"{server}/a.zarr") as source:
        assert source.voxel_size_um == UM
        assert np.array_equal(read_all(source), voxels)
        assert source.fingerprint() == source.fingerprint()
    with pytest.raises(InputError, match="neither Zarr, N5 nor precomputed"):
        open_volume(f"{server}/b.zarr")


SILENT = """
import sys
from neurodeploy_runtime import InputError, open_volume
from neurodeploy_runtime.volumes import _tensorstore

_tensorstore._SILENT_S = 1
_tensorstore._RETRIES = {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"}
try:
    open_volume(sys.argv[1])
except InputError as error:
    print(error)
"""


def test_a_server_that_takes_a_question_and_is_silent_is_given_up(monkeypatch):
    monkeypatch.delenv("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/a.zarr"
        # In a process of its own: the library looks once how long it may wait.
        ended = subprocess.run(
            [sys.executable, "-c", SILENT, address],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert f"{address} cannot be read: ABORTED" in ended.stdout, ended.stderr


@pytest.mark.parametrize("kind", ["zarr3", "zarr2", "n5", "precomputed"])
def test_a_server_that_denies_what_is_absent_is_read(
    tmp_path, server, monkeypatch, kind
):
    """As S3 does to who may not list a bucket."""
    monkeypatch.setattr(RangeHandler, "absent", 403)
    voxels = volume((4, 8, 16))
    path = tmp_path / "a"
    if kind == "zarr3":
        ome_zarr(path, voxels)
    elif kind == "zarr2":
        zarr2(path, voxels, (4, 8, 8))
    elif kind == "n5":
        n5(path, voxels)
    else:
        with create_sink(path, kind, voxels.shape, "uint16", UM) as sink:
            for unit in sink.units():
                sink.write(unit, voxels[unit.slices])
    with open_volume(f"{server}/a") as source:
        assert np.array_equal(read_all(source), voxels)
    with pytest.raises(InputError, match=r"PERMISSION_DENIED.*who may read it"):
        open_volume(f"{server}/b")


def test_a_file_address_is_a_local_store(tmp_path):
    voxels = volume()
    path = ome_zarr(tmp_path / "a.zarr", voxels)
    with open_volume(f"file://{path}") as source:
        assert np.array_equal(read_all(source), voxels)


def test_the_fingerprint_tells_an_input_that_was_changed(tmp_path):
    voxels = volume((70, 70, 70))
    path = zarr2(tmp_path / "a.zarr", voxels, (16, 16, 16))

    def fingerprint():
        with open_volume(path) as source:
            return source.fingerprint()

    first = fingerprint()
    assert len(first) == 64
    assert fingerprint() == first
    chunk = path / "2" / "2" / "2"
    data = chunk.read_bytes()
    chunk.write_bytes(data)  # its time only
    second = fingerprint()
    assert second != first
    (path / "3" / "3" / "3").unlink()
    assert fingerprint() != second


def test_a_damaged_chunk_is_an_error_that_names_the_box(tmp_path):
    voxels = volume()
    path = ome_zarr(tmp_path / "a.zarr", voxels)
    shard = path / "0" / "c" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:100])
    with open_volume(path) as source, pytest.raises(ReadError, match="box 0:9,0:20"):
        read_all(source)


@pytest.mark.parametrize("kind", ["zarr", "n5", "precomputed"])
def test_another_size_of_the_cache_changes_no_voxel(tmp_path, kind):
    voxels = volume((1, 2, *SHAPE))
    if kind == "n5":
        path, wanted, choice = n5(tmp_path / "a", voxels[0, 1]), voxels[0, 1], {}
    elif kind == "zarr":
        path = ome_zarr_04(tmp_path / "a", voxels)
        wanted, choice = voxels[0, 1], {"channel": 1, "level": 0}
    else:
        path, wanted, choice = tmp_path / "a", voxels[0, 1], {}
        with create_sink(path, kind, SHAPE, "uint16", UM) as sink:
            for unit in sink.units():
                sink.write(unit, wanted[unit.slices])
    with open_volume(path, **choice) as source:
        before = source.memory_bytes
        source.keep(1000)
        assert np.array_equal(read_all(source), wanted)
        assert source.memory_bytes < before


def test_a_closed_source_says_so(tmp_path):
    source = open_volume(ome_zarr(tmp_path / "a.zarr", volume()))
    source.close()
    with pytest.raises(ReadError, match="closed"):
        source.read(Box((0, 0, 0), (1, 1, 1)))


def test_voxels_of_labels_are_refused_with_what_to_do(tmp_path):
    voxels = volume(dtype="uint64")
    path = zarr2(tmp_path / "a.zarr", voxels, (4, 8, 8))
    with pytest.raises(InputError, match="uint64 voxels: convert"):
        open_volume(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("zarr.json", "{"),
        ("zarr.json", "[]"),
        ("zarr.json", "[" * 100_000),
        ("zarr.json", '{"node_type": "group", "attributes": [3]}'),
        ("zarr.json", '{"node_type": "group", "attributes": {"ome": "x"}}'),
        ("zarr.json", '{"node_type": "array"}'),
        ("zarr.json", '{"node_type": "group", "attributes": {"ome": {}}}'),
        (
            "zarr.json",
            '{"node_type": "group", "attributes": {"ome": {"multiscales": [{}]}}}',
        ),
        (".zarray", '{"shape": [1]}'),
        (".zattrs", '{"multiscales": [{"datasets": [{"path": "0"}]}]}'),
        (".zattrs", '{"multiscales": [{"datasets": []}]}'),
        (".zattrs", '{"multiscales": [{"datasets": [{"path": 0}]}]}'),
        ("attributes.json", '{"dimensions": [1, 2, 3]}'),
        ("attributes.json", '{"dimensions": 3}'),
        ("info", "{}"),
        ("info", '{"scales": [{"resolution": [1, 1, 1]}]}'),
    ],
)
def test_damaged_metadata_is_one_sentence(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as caught:
        open_volume(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
