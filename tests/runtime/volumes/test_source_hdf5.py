"""HDF5 as Imaris and BigDataViewer lay it out, and any array by its name."""

import h5py
import imagecodecs
import numpy as np
import pytest
from volume_writers import write_imaris

from neurodeploy_runtime import Box, InputError, SettingsError
from neurodeploy_runtime.volumes import open_volume

SHAPE = (11, 50, 70)
CHUNK = (4, 32, 32)


def a_stack(seed=0, shape=SHAPE, top=60_000):
    return np.random.default_rng(seed).integers(0, top, shape).astype(np.uint16)


def whole(path, **options):
    with open_volume(path, **options) as volume:
        return volume.read(Box.whole(volume.shape))


@pytest.mark.parametrize("how", [{"compression": "gzip", "compression_opts": 2}, {}])
def test_imaris_is_cropped_to_its_image(tmp_path, how):
    channels = [a_stack(0), a_stack(1)]
    path = write_imaris(tmp_path / "a.ims", channels, **how)
    with pytest.raises(InputError, match="2 channels"):
        open_volume(path)
    for number, expected in enumerate(channels):
        found = whole(path, channel=number, threads=2)
        np.testing.assert_array_equal(found, expected)
    half = whole(path, channel=1, level=1)
    np.testing.assert_array_equal(half, channels[1][:, ::2, ::2])


def test_the_voxel_size_of_imaris_at_every_level(tmp_path):
    path = write_imaris(tmp_path / "a.ims", [a_stack()])
    with open_volume(path) as volume:
        assert volume.voxel_size_um == (2.0, 0.5, 0.5)
    with open_volume(path, level=1) as volume:
        assert volume.voxel_size_um == (2.0, 1.0, 1.0)
    with pytest.raises(InputError, match="no level 2: choose 0 to 1"):
        open_volume(path, level=2)
    with pytest.raises(SettingsError, match="axes 'zyx' has no meaning"):
        open_volume(path, axes="zyx")


def write_bigdataviewer(path, setups):
    """uint16 voxels under the name int16, as Java must write them."""
    with h5py.File(path, "w") as file:
        for number, voxels in enumerate(setups):
            file[f"s{number:02d}/resolutions"] = np.array([[1, 1, 1], [2, 2, 1.0]])
            for level in range(2):
                file.create_dataset(
                    f"t00000/s{number:02d}/{level}/cells",
                    data=voxels[:, :: 2**level, :: 2**level].view(np.int16),
                    chunks=(4, 16, 16),
                    compression="gzip",
                )
    path.with_suffix(".xml").write_text(
        "<SpimData><SequenceDescription><ViewSetups>"
        + "".join(
            f"<ViewSetup><id>{number}</id><voxelSize><unit>µm</unit>"
            "<size>0.5 0.6 2.0</size></voxelSize></ViewSetup>"
            for number in range(len(setups))
        )
        + "</ViewSetups></SequenceDescription></SpimData>",
        encoding="utf-8",
    )
    return path


def test_bigdataviewer_holds_the_bits_of_uint16(tmp_path):
    setups = [a_stack(0), a_stack(1)]
    path = write_bigdataviewer(tmp_path / "a.h5", setups)
    with open_volume(path, channel=1) as volume:
        assert volume.dtype == np.uint16
        assert volume.voxel_size_um == (2.0, 0.6, 0.5)
        found = volume.read(Box.whole(SHAPE))
    assert found.max() > 32_767
    np.testing.assert_array_equal(found, setups[1])
    with open_volume(path, channel=0, level=1) as volume:
        assert volume.voxel_size_um == (2.0, 1.2, 1.0)
        found = volume.read(Box.whole(volume.shape))
    np.testing.assert_array_equal(found, setups[0][:, ::2, ::2])
    path.with_suffix(".xml").unlink()
    with open_volume(path, channel=0) as volume:
        assert volume.voxel_size_um is None


def test_an_array_is_found_by_its_name_or_by_being_the_only_one(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["group/raw"] = a_stack(0)
        file["plane"] = a_stack(0)[0]
    np.testing.assert_array_equal(whole(path), a_stack(0))
    with h5py.File(path, "a") as file:
        file["other"] = a_stack(1)
    with pytest.raises(InputError, match=r"2 arrays .*group/raw, other"):
        open_volume(path)
    np.testing.assert_array_equal(whole(path, dataset="other"), a_stack(1))
    with pytest.raises(InputError, match="no array 'absent': it has group/raw, other"):
        open_volume(path, dataset="absent")


@pytest.mark.parametrize(
    ("axes", "order", "chunk"),
    [
        ("czyx", (0, 1, 2, 3), (2, 4, 32, 32)),
        ("xcyz", (3, 0, 2, 1), (7, 2, 32, 3)),
        ("cyxz", (0, 2, 3, 1), (1, 9, 32, 3)),
    ],
)
def test_the_axes_of_an_array_may_lie_in_any_order(tmp_path, axes, order, chunk):
    voxels = np.stack([a_stack(c) for c in range(3)])
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "v", data=voxels.transpose(order), chunks=chunk, compression="gzip"
        )
    with pytest.raises(InputError, match="say what they are"):
        open_volume(path)
    for channel in range(3):
        found = whole(path, axes=axes, channel=channel)
        np.testing.assert_array_equal(found, voxels[channel])


def test_chunks_that_were_never_written_hold_the_fill_value(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        array = file.create_dataset("v", SHAPE, "u2", chunks=CHUNK, fillvalue=77)
        array[:4, :32, :32] = 5
    found = whole(path)
    assert (found[:4, :32, :32] == 5).all()
    assert (found[4:] == 77).all()


@pytest.mark.parametrize(
    ("number", "encode"),
    [(32015, imagecodecs.zstd_encode), (32004, imagecodecs.lz4h5_encode)],
)
def test_chunks_of_filters_that_h5py_lacks(tmp_path, number, encode):
    voxels, path = a_stack(), tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        array = array_with_filter(file, number)
        for box in Box.whole(SHAPE).grid(CHUNK):
            room = np.zeros(CHUNK, np.uint16)
            room[tuple(slice(n) for n in box.shape)] = voxels[box.slices]
            array.write_direct_chunk(box.start, bytes(encode(room.tobytes())), 0)
    np.testing.assert_array_equal(whole(path, threads=2), voxels)


def array_with_filter(file, number):
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(CHUNK)
    properties.set_filter(number, h5py.h5z.FLAG_OPTIONAL, ())
    return h5py.h5d.create(
        file.id,
        b"v",
        h5py.h5t.NATIVE_UINT16,
        h5py.h5s.create_simple(SHAPE),
        properties,
    )


def test_a_filter_that_is_not_read_is_named(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        array_with_filter(file, 32026)
    with pytest.raises(InputError, match=r"filter .*\(32026\).* rewrite it with gzip"):
        open_volume(path)


def test_an_array_that_lies_in_other_files_is_refused(tmp_path):
    with h5py.File(tmp_path / "real.h5", "w") as file:
        file["v"] = a_stack()
    layout = h5py.VirtualLayout(SHAPE, "u2")
    layout[:] = h5py.VirtualSource(tmp_path / "real.h5", "v", SHAPE)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("v", layout)
    with pytest.raises(InputError, match="lies in other files"):
        open_volume(path)


def test_without_h5py_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    path = write_imaris(tmp_path / "a.ims", [a_stack()])
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    monkeypatch.delitem(
        __import__("sys").modules, "neurodeploy_runtime.volumes._hdf5", raising=False
    )
    with pytest.raises(InputError, match=r'pip install "neurodeploy\[cluster\]"'):
        open_volume(path)


def test_the_channel_of_a_bigdataviewer_file_counts_setups_by_number(tmp_path):
    """From 100 on their names have three digits, and s100 sorts before s11."""
    setups = [np.full((4, 32, 32), number, np.uint16) for number in range(102)]
    path = write_bigdataviewer(tmp_path / "a.h5", setups)
    for number in (2, 11, 99, 100, 101):
        with open_volume(path, channel=number) as volume:
            assert volume.read(Box.whole(volume.shape)).max() == number
