"""v3draw and v3dpbd: what Vaa3D wrote is what is read."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pbd_encoders import pack_3, pack_8, pack_16

from neurodeploy_runtime import Box, InputError, SettingsError
from neurodeploy_runtime.volumes import _pbd, open_volume


def whole(path, **options):
    with open_volume(path, **options) as volume:
        return volume.read(Box.whole(volume.shape))


def header(magic, order, code, extents, integer="i4"):
    return (
        magic
        + (b"L" if order == "<" else b"B")
        + np.array([code], order + "i2").tobytes()
        + np.array(extents, order + integer).tobytes()
    )


RAW = b"raw_image_stack_by_hpeng"
RAW_5D = b"raw5image_stack_by_hpeng"
PBD = b"v3d_volume_pkbitdf_encod"


# Conformance with files of Vaa3D itself


@pytest.mark.parametrize("stem", ["123stack16", "testSliceDiffBoundary", "test_strip8"])
@pytest.mark.parametrize("channel", range(4))
def test_the_compressed_twin_of_a_vaa3d_file_holds_the_same(shared_data, stem, channel):
    folder = shared_data / "vaa3d_fixtures"
    if channel and stem != "testSliceDiffBoundary":
        with pytest.raises(InputError, match=f"no channel {channel}"):
            open_volume(folder / f"{stem}.v3dpbd", channel=channel)
        return
    raw = whole(folder / f"{stem}.v3draw", channel=channel)
    packed = whole(folder / f"{stem}.v3dpbd", channel=channel)
    assert packed.dtype == raw.dtype
    assert raw.any()
    np.testing.assert_array_equal(packed, raw)


def test_the_tiff_twin_holds_the_same(shared_data):
    folder = shared_data / "vaa3d_fixtures"
    np.testing.assert_array_equal(
        whole(folder / "123stack16.tif"), whole(folder / "123stack16.v3draw")
    )
    np.testing.assert_array_equal(
        whole(folder / "test_strip8.tif", axes="zyx"),
        whole(folder / "test_strip8.v3draw"),
    )


def test_a_real_stack_of_gold166(shared_data):
    """Every node of its gold-standard tracing lies in it, most on bright voxels."""
    folder = shared_data / "gold166"
    voxels = whole(folder / "gold166_245.v3dpbd")
    assert voxels.shape == (41, 512, 512)
    nodes = np.loadtxt(folder / "gold166_245.swc")
    x, y, z = np.round(nodes[:, 2:5]).astype(int).T
    assert np.median(voxels[z, y, x]) > np.percentile(voxels, 99)


# v3draw


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_channels_and_byte_orders_of_v3draw(tmp_path, order, dtype):
    stack = np.arange(3 * 4 * 5 * 6).reshape(3, 4, 5, 6).astype(order + dtype)
    path = tmp_path / "a.v3draw"
    path.write_bytes(
        header(RAW, order, stack.itemsize, stack.shape[::-1]) + stack.tobytes()
    )
    with pytest.raises(InputError, match="3 channels"):
        open_volume(path)
    for channel in range(3):
        np.testing.assert_array_equal(whole(path, channel=channel), stack[channel])


def test_the_variant_with_time(tmp_path):
    stack = np.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6).astype("<u2")
    path = tmp_path / "a.raw5"
    path.write_bytes(header(RAW_5D, "<", 2, stack.shape[::-1]) + stack.tobytes())
    np.testing.assert_array_equal(whole(path, channel=2, time=1), stack[1, 2])


def test_a_v3draw_of_another_size_than_it_says_is_refused(tmp_path):
    path = tmp_path / "a.v3draw"
    path.write_bytes(header(RAW, "<", 1, (6, 5, 4, 1)) + bytes(120 + 1))
    with pytest.raises(InputError, match="has 164 bytes where its header"):
        open_volume(path)
    path.write_bytes(header(RAW, "<", 1, (6, 5, 4, 1)) + bytes(120 - 31))
    with pytest.raises(InputError, match="cut short in plane 2 of 4"):
        open_volume(path)
    with pytest.raises(SettingsError, match="level 1 has no meaning"):
        open_volume(path, level=1)


# v3dpbd


@st.composite
def walks(draw, top):
    """Voxels as images have them: runs, gentle slopes and noise."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    pieces = []
    for _ in range(draw(st.integers(1, 12))):
        n = int(rng.integers(1, 120))
        kind = rng.integers(3)
        start = int(rng.integers(0, top + 1))
        if kind == 0:
            piece = np.full(n, start)
        elif kind == 1:
            piece = np.clip(start + np.cumsum(rng.integers(-1, 2, n)), 0, top)
        else:
            piece = rng.integers(0, top + 1, n)
        pieces.append(piece)
    voxels = np.concatenate(pieces)
    return voxels, lambda most: int(rng.integers(0, most))


def decoded(payload, coding, count, first=0, big_endian=False):
    return _pbd.decode(payload, coding, big_endian, first, count, "a file")


@settings(max_examples=60, deadline=None)
@given(walks(255), st.integers(0, 200))
def test_pbd8_is_undone(walk, first):
    voxels, choose = walk
    payload = pack_8(voxels, choose)
    np.testing.assert_array_equal(decoded(payload, _pbd.PBD8, len(voxels)), voxels)
    rest = voxels[first:]
    if len(rest):
        found = decoded(payload, _pbd.PBD8, len(rest), first)
        np.testing.assert_array_equal(found, rest)


@settings(max_examples=60, deadline=None)
@given(walks(2000), st.sampled_from("<>"))
def test_pbd16_is_undone(walk, order):
    voxels, choose = walk
    payload = pack_16(voxels, choose, order)
    found = decoded(payload, _pbd.PBD16, len(voxels), big_endian=order == ">")
    np.testing.assert_array_equal(found, voxels)


@settings(max_examples=60, deadline=None)
@given(walks(7))
def test_pbd3_is_undone(walk):
    levels, choose = walk
    payload = pack_3(levels, choose)
    np.testing.assert_array_equal(decoded(payload, _pbd.PBD3, len(levels)), levels)


def test_batches_of_operations_join_without_a_seam(monkeypatch):
    rng = np.random.default_rng(9)
    voxels = np.clip(100 + np.cumsum(rng.integers(-1, 2, 5000)), 0, 255)
    payload = pack_8(voxels, lambda most: int(rng.integers(0, most)))
    monkeypatch.setattr(_pbd, "_BATCH", 3)
    np.testing.assert_array_equal(decoded(payload, _pbd.PBD8, len(voxels)), voxels)


def test_three_bits_are_levels_between_a_least_and_a_greatest(tmp_path):
    levels = np.arange(8).repeat(3)
    path = tmp_path / "a.v3dpbd"
    payload = bytes([10, 220]) + pack_3(levels, lambda most: 5)
    path.write_bytes(header(PBD, "<", 33, (4, 3, 2, 1)) + payload)
    expected = (10 + 210 * levels // 7).reshape(2, 3, 4)
    np.testing.assert_array_equal(whole(path), expected)


@pytest.mark.parametrize("code", [1, 2, 33])
def test_no_more_of_a_pbd_is_read_than_its_voxels_can_take(tmp_path, code):
    """The longest stream there is, of voxels on their own, and a lot behind it."""
    levels = np.arange(120) % 8
    if code == 33:
        stream = bytes([0, 7]) + bytes(n for k in levels.tolist() for n in (0, k))
    else:
        literal = [(0, k, 0)[: code + 1] for k in levels.tolist()]
        stream = bytes(n for key in literal for n in key)
    path = tmp_path / "a.v3dpbd"
    data = header(PBD, "<", code, (6, 5, 4, 1)) + stream
    path.write_bytes(data)
    with open_volume(path) as volume:
        alone = volume.fingerprint()
    with path.open("ab") as file:
        file.truncate(20_000_000)
    tracemalloc.start()
    try:
        with open_volume(path) as volume:
            assert volume.fingerprint() == alone
            found = volume.read(Box.whole(volume.shape))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found.ravel(), levels)
    assert peak < 2_000_000


def test_a_pbd_that_ends_early_or_uses_unknown_codes_is_refused(tmp_path):
    path = tmp_path / "a.v3dpbd"
    head = header(PBD, "<", 1, (6, 5, 4, 1))
    path.write_bytes(head + bytes([227, 9]))  # 100 of 120 voxels
    with pytest.raises(InputError, match="cut short after voxel 100 of 120"):
        open_volume(path)
    path.write_bytes(header(PBD, "<", 1, (6000, 5000, 4, 1)) + bytes([227, 9]))
    with pytest.raises(InputError, match="2 bytes of PBD8 cannot hold 120000000"):
        open_volume(path)
    path.write_bytes(header(PBD, "<", 2, (6, 5, 4, 1)) + bytes([100] * 99))
    with pytest.raises(InputError, match="code 100 of PBD16"):
        open_volume(path)
    path.write_bytes(header(PBD, "<", 1, (60_000, 50_000, 4, 1)) + bytes([227, 9]))
    with pytest.raises(InputError, match=r"holds 11\.2 GB, and v3dpbd can only"):
        open_volume(path)
