"""Reading from many threads is exact, and decodes nothing twice."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile

from neurodeploy_runtime import Box, ReadError
from neurodeploy_runtime.volumes import open_volume
from neurodeploy_runtime.volumes._chunk_table import ChunkCache
from neurodeploy_runtime.volumes._workers import Workers

PLANES, ROWS, COLUMNS = 192, 48, 64
PLANE_BYTES = 2 * ROWS * COLUMNS


def volume_of_numbered_planes():
    """Every voxel says its plane, and rows differ, so that a wrong page shows."""
    z, y, _ = np.indices((PLANES, ROWS, COLUMNS))
    return (z * 256 + y).astype(np.uint16)


@pytest.fixture(scope="module", params=["none", "zlib", "zstd", "lzw"])
def stack(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("threads") / f"{request.param}.tif"
    compression = None if request.param == "none" else request.param
    with tifffile.TiffWriter(path) as writer:
        for plane in volume_of_numbered_planes():
            writer.write(plane, compression=compression, metadata=None)
    return path


@pytest.mark.parametrize("cache_bytes", [0, 10 * PLANE_BYTES])
def test_192_pages_from_four_threads_are_all_the_right_ones(stack, cache_bytes):
    expected = volume_of_numbered_planes()
    order = np.random.default_rng(4).permutation(PLANES)
    with (
        open_volume(stack, threads=2, cache_bytes=cache_bytes) as volume,
        ThreadPoolExecutor(4) as pool,
    ):
        boxes = [Box((z, 0, 0), (z + 1, ROWS, COLUMNS)) for z in order.tolist()]
        pages = list(pool.map(volume.read, boxes))
    wrong = [
        z
        for z, page in zip(order, pages, strict=True)
        if (page[0] != expected[z]).any()
    ]
    assert wrong == []


@pytest.fixture(scope="module")
def zlib_stack(tmp_path_factory):
    path = tmp_path_factory.mktemp("once") / "zlib.tif"
    tifffile.imwrite(path, volume_of_numbered_planes(), compression="zlib")
    return path


def test_a_streaming_pass_decodes_each_plane_once(zlib_stack):
    with open_volume(zlib_stack, threads=2, cache_bytes=0) as volume:
        for z in range(0, PLANES, 24):
            volume.read(Box((z, 0, 0), (z + 24, ROWS, COLUMNS)))
        assert volume.decoded == PLANES


def test_a_pass_in_small_boxes_decodes_each_plane_once_where_a_slab_is_kept(zlib_stack):
    boxes = list(Box.whole((PLANES, ROWS, COLUMNS)).grid((16, 16, 16)))
    with open_volume(zlib_stack, threads=2, cache_bytes=17 * PLANE_BYTES) as volume:
        for box in boxes:
            volume.read(box)
        assert volume.decoded == PLANES
    # One thread: with two, a plane may be asked for again before it is forgotten.
    with open_volume(zlib_stack, threads=1, cache_bytes=4 * PLANE_BYTES) as volume:
        for box in boxes:
            volume.read(box)
        assert volume.decoded == PLANES * 12  # what an amplification of 12 means
        assert volume.amplification((16, 16, 16)) == 12


def test_halves_that_overlap_decode_what_they_share_once(zlib_stack):
    with open_volume(zlib_stack, threads=2, cache_bytes=40 * PLANE_BYTES) as volume:
        for z in range(0, PLANES - 32, 16):
            volume.read(Box((z, 0, 0), (z + 32, ROWS, COLUMNS)))
        assert volume.decoded == PLANES - 16


def test_threads_that_want_the_same_chunk_wait_for_one_of_them():
    loads, entered, proceed = [], threading.Event(), threading.Event()

    def load(place):
        loads.append(place)
        entered.set()
        assert proceed.wait(10)
        return np.zeros((1, 2, 2), np.uint8)

    cache = ChunkCache(100)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(cache.get, (0, 0, 0), load) for _ in range(4)]
        assert entered.wait(10)
        proceed.set()
        chunks = [future.result(10) for future in futures]
    assert loads == [(0, 0, 0)]
    assert all(chunk is chunks[0] for chunk in chunks)


def test_what_is_kept_stays_under_its_limit():
    cache = ChunkCache(1000)
    for z in range(50):
        cache.get((z, 0, 0), lambda place: np.zeros((1, 10, 30), np.uint8))
        assert cache._bytes <= 1000
    cache.get((49, 0, 0), lambda place: pytest.fail("decoded again"))
    cache.resize(0)
    assert cache._bytes == 0


def test_a_chunk_larger_than_the_limit_stays_until_another_is_asked_for():
    cache = ChunkCache(100)
    held = []

    def load(place):
        held.append(cache._bytes)
        return np.zeros((1, 10, 30), np.uint8)

    for z in (0, 0, 1, 1, 0):
        cache.get((z, 0, 0), load)
    # Three were loaded, and beside none of them lay another.
    assert held == [0, 0, 0]
    cache.resize(0)
    assert cache._bytes == 0
    cache.get((0, 0, 0), load)
    assert cache._bytes == 0


def test_a_chunk_that_failed_is_tried_again():
    cache = ChunkCache(1000)

    def fail(place):
        raise ReadError("a bad sector")

    with pytest.raises(ReadError, match="a bad sector"):
        cache.get((0, 0, 0), fail)
    chunk = cache.get((0, 0, 0), lambda place: np.ones((1, 1, 1), np.uint8))
    assert chunk[0, 0, 0] == 1


def test_no_more_chunks_are_held_at_a_time_than_was_asked_for(zlib_stack):
    most = now = 0
    lock = threading.Lock()
    with open_volume(zlib_stack, threads=4, cache_bytes=0) as volume:
        load = volume._load

        def watched(place):
            nonlocal most, now
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.002)
            chunk = load(place)
            with lock:
                now -= 1
            return chunk

        volume._load = watched
        for asked, found in ((2, 2), (9, 4), (0, 1)):
            most = 0
            assert volume.decode_at_once(asked) == found
            assert volume.memory_bytes == 3 * found * PLANE_BYTES
            volume.read(Box((0, 0, 0), (24, ROWS, COLUMNS)))
            assert 1 <= most <= found


def test_a_workers_exception_is_raised_where_the_work_was_asked_for():
    done = []

    def work(item):
        if item == 7:
            raise ReadError("item 7")
        done.append(item)

    with Workers(3, "test") as workers:
        with pytest.raises(ReadError, match="item 7"):
            workers.each(work, range(10_000))
        assert len(done) < 10_000
        workers.each(done.append, [-1, -2])  # and the threads still work
    assert {-1, -2} <= set(done)


def test_the_system_without_preadv_gives_the_same(stack, monkeypatch):
    monkeypatch.delattr("os.preadv")
    expected = volume_of_numbered_planes()
    with open_volume(stack, threads=4, cache_bytes=0) as volume:
        found = volume.read(Box.whole(expected.shape))
    np.testing.assert_array_equal(found, expected)


def test_reading_a_closed_volume_is_an_error(stack):
    volume = open_volume(stack, threads=2, cache_bytes=0)
    volume.close()
    with pytest.raises(ReadError, match="closed"):
        volume.read(Box.whole(volume.shape))
