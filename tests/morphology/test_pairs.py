"""A folder's annotated images are found as they lie, and the rest is named."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from neurodeploy._errors import DataError
from neurodeploy.data import (
    AnnotatedVolume,
    Labels,
    Pair,
    Reading,
    describe_kinds,
    find_pairs,
    label_kinds,
    labels_of,
    load_pair,
    read_tracing,
)
from neurodeploy.simulate import SHOWCASE, SampleSettings, write_sample
from neurodeploy.training import TrainSettings
from neurodeploy.training._data import load_volumes
from neurodeploy_runtime import Bundle, InputError, Segmenter, open_volume

IMAGE = np.random.default_rng(0).integers(0, 99, (4, 6, 8)).astype(np.uint16)


def volume(path: Path, values: np.ndarray = IMAGE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, values, photometric="minisblack")
    return path


def tracing(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("1 2 1 1 1 1 -1\n2 2 5 1 1 1 1\n")
    return path


def test_a_link_back_to_a_folder_around_it_is_not_followed(tmp_path: Path) -> None:
    volume(tmp_path / "a" / "one.tif")
    tracing(tmp_path / "a" / "one.swc")
    try:
        (tmp_path / "a" / "all").symlink_to(tmp_path, target_is_directory=True)
        (tmp_path / "b").symlink_to(tmp_path / "a", target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no symbolic links")
    found = find_pairs(tmp_path)
    # A link to a folder beside it is followed: data is often laid together so.
    images = [str(pair.image.relative_to(tmp_path)) for pair in found.pairs]
    assert images == ["a/one.tif", "b/one.tif"]


@pytest.mark.parametrize(
    ("image", "annotation"),
    [
        ("a.tif", "a.swc"),
        ("a.v3dpbd", "a.v3dpbd.ano_stamp_2015_06_17.swc"),
        ("a.tif", "a_mask.tif"),
        ("a_image.tif", "a_labels.tif"),
        ("volumes/volume-3.tiff", "labels/label-3.tiff"),
        ("images/x/a.tif", "images/x/a.gold.eswc"),
        ("sub/raw/a.tif", "sub/masks/a.tif"),
        ("12/neuron.v3draw", "12/annotated_by_hand.swc"),
    ],
)
def test_an_image_finds_its_annotation(
    tmp_path: Path, image: str, annotation: str
) -> None:
    for name in (image, annotation):
        path = tmp_path / name
        tracing(path) if "swc" in path.suffix else volume(path)
    (pair,) = find_pairs(tmp_path).pairs
    assert pair.image == tmp_path / image
    assert pair.annotation == tmp_path / annotation
    assert pair.kind == ("tracing" if annotation.endswith("swc") else "voxels")


def test_an_image_of_the_working_folder_is_named_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.tif", "a_mask.tif"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    (pair,) = find_pairs(".").pairs
    assert pair.name == f"{tmp_path.name}/a.tif"


def test_numbers_are_not_mixed_up(tmp_path: Path) -> None:
    for n in (1, 2, 12):
        volume(tmp_path / "volumes" / f"volume-{n}.tif")
    for n in (2, 12):
        volume(tmp_path / "labels" / f"label-{n}.tif")
    found = find_pairs(tmp_path)
    assert [p.annotation.name for p in found.pairs] == ["label-12.tif", "label-2.tif"]
    assert found.left_out == (
        (tmp_path / "volumes" / "volume-1.tif", "no annotation of its name"),
    )


def test_what_is_left_out_is_said_with_the_reason(tmp_path: Path) -> None:
    volume(tmp_path / "a.tif")
    tracing(tmp_path / "a.swc")
    volume(tmp_path / "b.tif")
    tracing(tmp_path / "c.swc")
    volume(tmp_path / "d.tif")
    tracing(tmp_path / "d.swc")
    volume(tmp_path / "d_mask.tif")
    found = find_pairs(tmp_path)
    assert [p.image.name for p in found.pairs] == ["a.tif"]
    text = found.describe()
    assert "b.tif — no annotation of its name" in text
    assert "c.swc — no image of its name" in text
    assert "d.tif — 2 annotations would fit" in text


@pytest.mark.parametrize("suffix", [".tif", ".ome.zarr"])
@pytest.mark.parametrize("with_report", [True, False])
def test_what_was_segmented_here_annotates_nothing(
    tmp_path: Path,
    make_identity_bundle: Callable[..., Bundle],
    suffix: str,
    with_report: bool,
) -> None:
    if suffix != ".tif":
        pytest.importorskip("tensorstore")
    image = volume(tmp_path / "a.tif", np.tile(IMAGE, (2, 4, 4)))
    result = tmp_path / f"a.seg{suffix}"
    bundle = make_identity_bundle(tile=(8, 16, 16))
    with Segmenter(bundle) as segmenter, open_volume(image) as source:
        segmenter.segment(source, result)
    if not with_report:
        result.with_suffix(".json").unlink()
    with pytest.raises(DataError, match="1 more are its own results"):
        find_pairs(tmp_path)
    volume(tmp_path / "a_mask.tif")
    found = find_pairs(tmp_path)
    assert [pair.annotation.name for pair in found.pairs] == ["a_mask.tif"]
    assert [path for path, _ in found.left_out] == [result]
    assert "no ground truth" in found.describe()


def test_a_simulated_truth_and_a_corrected_copy_are_annotations(
    tmp_path: Path, make_identity_bundle: Callable[..., Bundle]
) -> None:
    truth = tmp_path / "a_truth.seg.tif"
    settings = SampleSettings((8, 32, 32), 0, SHOWCASE)
    write_sample(tmp_path / "a.tif", settings, truth=truth)
    assert find_pairs(tmp_path).pairs[0].annotation == truth
    truth.unlink()
    with (
        Segmenter(make_identity_bundle(tile=(8, 16, 16))) as segmenter,
        open_volume(tmp_path / "a.tif") as source,
    ):
        segmenter.segment(source, tmp_path / "a.seg.tif")
    shutil.copy(tmp_path / "a.seg.tif", tmp_path / "a_mask.tif")
    assert find_pairs(tmp_path).pairs[0].annotation.name == "a_mask.tif"


def test_a_folder_without_pairs_is_refused(tmp_path: Path) -> None:
    volume(tmp_path / "a.tif")
    with pytest.raises(DataError, match="holds no annotated image, of 1 images"):
        find_pairs(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        find_pairs(tmp_path / "absent")


def test_the_real_folder(shared_data: Path) -> None:
    found = find_pairs(shared_data)
    assert sorted(p.kind for p in found.pairs) == ["tracing"] + 10 * ["voxels"]
    pair = next(p for p in found.pairs if p.image.name == "volume-0.tiff")
    cube = load_pair(pair)
    raw = tifffile.imread(pair.annotation)
    assert ((cube.labels == 1) == (raw == 2)).all()
    assert ((cube.labels == 255) == np.isin(raw, (0, 4))).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 255], [0, 1]),
        ([0, 1, 255], [0, 1, 255]),
        ([0, 1, 2, 3, 4], [255, 0, 1, 0, 255]),
    ],
)
def test_what_values_mean(values: list[int], expected: list[int]) -> None:
    array = np.array(values, np.uint8).reshape(1, 1, -1)
    np.testing.assert_array_equal(labels_of(array, array.shape, "m").ravel(), expected)


def slices(*marks: int) -> np.ndarray:
    """A volume of which one plane is labelled, with these values in turn."""
    values = np.zeros(IMAGE.shape, np.uint8)
    values[1] = np.resize(marks, IMAGE.shape[1:])
    return values


def objects(*marks: int) -> np.ndarray:
    """A volume with a small object of each of these values."""
    values = np.zeros(IMAGE.shape, np.uint8)
    for at, mark in enumerate(marks):
        values[1:3, 1:3, 2 * at] = mark
    return values


def read_folder(
    folder: Path, labels: Labels, *annotations: np.ndarray
) -> list[AnnotatedVolume]:
    for number, values in enumerate(annotations):
        volume(folder / "volumes" / f"volume-{number}.tif")
        volume(folder / "labels" / f"label-{number}.tif", values)
    settings = TrainSettings(data=(str(folder),), labels=labels)
    return load_volumes(settings, lambda text: None)


def test_a_slice_with_background_alone_is_read_as_the_slices_beside_it(
    tmp_path: Path,
) -> None:
    other, alone = read_folder(tmp_path, "auto", slices(1, 2, 4), slices(1))
    assert set(np.unique(other.labels)) == {0, 1, 255}
    assert (alone.labels[1] == 0).all()
    assert (np.delete(alone.labels, 1, axis=0) == 255).all()
    said = describe_kinds(label_kinds(find_pairs(tmp_path)))
    assert "labels: 2 read as labelled slices" in said


@pytest.mark.parametrize(
    ("annotations", "sentence"),
    [
        ([slices(1)], "label-0.tif holds 0, 1, and 1 of its 4 planes are 1 throughout"),
        ([objects(1, 2)], "label-0.tif holds 0, 1, 2, .* numbered objects"),
        ([objects(1, 2, 3, 7)], "label-0.tif holds 0, 1, 2, 3, 7, .* no known"),
        ([slices(1, 2), objects(255), slices(1)], "label-2.tif fits both"),
    ],
)
def test_voxels_that_could_mean_either_are_refused(
    tmp_path: Path, annotations: list[np.ndarray], sentence: str
) -> None:
    with pytest.raises(DataError, match=f"{sentence}.*--labels mask"):
        read_folder(tmp_path, "auto", *annotations)


@pytest.mark.parametrize("labels", ["auto", "mask"])
def test_a_voxel_that_is_no_number_is_no_neurite(
    tmp_path: Path, labels: Labels
) -> None:
    marks = np.where(objects(255) > 0, 1, np.nan).astype(np.float32)
    marks[0] = 0
    for values in (np.where(marks == 1, np.nan, 0).astype(np.float32), marks):
        (tmp_path / labels).mkdir(exist_ok=True)
        with pytest.raises(DataError, match=r"NaN or infinity|nan, which have no"):
            read_folder(tmp_path / labels, labels, values)


def test_what_voxels_mean_can_be_said(tmp_path: Path) -> None:
    many = objects(1, 2, 3, 7)
    (mask,) = read_folder(tmp_path, "mask", many)
    assert ((mask.labels == 1) == (many > 0)).all()
    with pytest.raises(DataError, match="slices 0 to 4"):
        read_folder(tmp_path, "slices", many)
    (marked,) = read_folder(tmp_path, "slices", objects(1, 2))
    assert (marked.labels == 1).sum() == 4
    assert (marked.labels == 0).sum() == 4


def test_masks_beside_each_other_stay_masks(tmp_path: Path) -> None:
    found = read_folder(tmp_path, "auto", objects(1), objects(255), objects(1, 1))
    assert [int((v.labels == 1).sum()) for v in found] == [4, 4, 8]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.zeros((4, 6, 8)), "is empty"),
        (np.ones((4, 6, 8)), "one class only"),
        (np.arange(4 * 6 * 8).reshape(4, 6, 8), "no known meaning"),
        (np.ones((8, 6, 4)), "another order"),
        (np.ones((4, 6, 7)), "not of one image"),
    ],
)
def test_an_annotation_that_cannot_be_used(
    tmp_path: Path, values: np.ndarray, sentence: str
) -> None:
    volume(tmp_path / "a.tif")
    volume(tmp_path / "a_mask.tif", values.astype(np.uint8))
    (pair,) = find_pairs(tmp_path).pairs
    with pytest.raises(DataError, match=sentence):
        load_pair(pair)


@pytest.mark.parametrize("value", [2, 4])
def test_two_values_are_a_mask_whatever_they_are(tmp_path: Path, value: int) -> None:
    marks = np.arange(8) % 2 * np.ones(IMAGE.shape)
    volume(tmp_path / "a.tif")
    volume(tmp_path / "a_mask.tif", (value * marks).astype(np.uint8))
    (pair,) = find_pairs(tmp_path).pairs
    np.testing.assert_array_equal(load_pair(pair).labels, marks)


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (np.where(IMAGE > 50, np.nan, IMAGE).astype(np.float32), "are NaN"),
        (np.full(IMAGE.shape, 7, np.uint16), "the image is constant"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(
    tmp_path: Path, image: np.ndarray, sentence: str
) -> None:
    volume(tmp_path / "mouse" / "odd.tif", image)
    mask = tmp_path / "mouse" / "odd_mask.tif"
    volume(mask, objects(255))
    (pair,) = find_pairs(tmp_path).pairs
    with pytest.raises(InputError, match=f"mouse/odd.tif: .*{sentence}"):
        load_pair(pair)
    # Nor is its tracing to blame.
    mask.unlink()
    (tmp_path / "mouse" / "odd.swc").write_text("1 2 3 3 1 1 -1\n2 2 6 3 1 1 1\n")
    (pair,) = find_pairs(tmp_path).pairs
    with pytest.raises(InputError, match=f"mouse/odd.tif: .*{sentence}"):
        load_pair(pair)


def test_a_tracing_of_another_image_is_named_and_an_odd_one_told_of(
    tmp_path: Path,
) -> None:
    bar = np.where(np.indices((8, 40, 40))[1] // 3 == 6, 200, 10).astype(np.uint8)
    volume(tmp_path / "a.tif", bar)
    far = tmp_path / "a.swc"
    far.write_text("1 2 500 500 5 1 -1\n2 2 600 500 5 1 1\n")
    (pair,) = find_pairs(tmp_path).pairs
    with pytest.raises(InputError, match=r"a\.tif: 0% of the tracing"):
        load_pair(pair)
    far.write_text("1 2 5 19 4 1 3\n2 2 15 19 4 1 1\n3 2 25 19 4 1 2\n")
    said: list[str] = []
    load_pair(pair, say=said.append)
    assert f"{far}: loops are cut at the nodes 1" in said
    said.clear()
    settings = TrainSettings(data=(str(tmp_path),))
    load_volumes(settings, said.append)
    assert f"{far}: loops are cut at the nodes 1" in said


def test_a_tracing_in_micrometres_lies_in_the_voxels_that_the_image_says(
    tmp_path: Path,
) -> None:
    image = tmp_path / "a.tif"
    tifffile.imwrite(
        image,
        np.zeros((8, 40, 40), np.uint8),
        imagej=True,
        resolution=(2.0, 2.0),
        metadata={"spacing": 1.0, "unit": "um", "axes": "ZYX"},
    )
    swc = tmp_path / "a.swc"
    swc.write_text("1 2 10 5 4 1 -1\n2 2 12 5 4 1 1\n")
    pair = Pair(image, swc, "tracing")
    # What is asked for counts where the image does not say: as for its labels.
    found = read_tracing(pair, unit="um", voxel_size_um=(2.0, 1.0, 1.0))
    assert found.samples(0.5)[0][0].tolist() == [4.0, 10.0, 20.0]
    bare = tmp_path / "b.tif"
    tifffile.imwrite(bare, np.zeros((8, 40, 40), np.uint8))
    found = read_tracing(
        Pair(bare, swc, "tracing"), unit="um", voxel_size_um=(2.0, 1.0, 1.0)
    )
    assert found.samples(0.5)[0][0].tolist() == [2.0, 5.0, 10.0]


def test_the_voxel_size_is_the_images_before_it_is_what_was_asked_for(
    tmp_path: Path,
) -> None:
    sizes = {}
    scaled = {"spacing": 1.0, "unit": "um", "axes": "ZYX"}
    image = tmp_path / "a.tif"
    tifffile.imwrite(image, IMAGE, imagej=True, resolution=(2, 2), metadata=scaled)
    volume(tmp_path / "b.tif")
    for name in "ab":
        volume(tmp_path / f"{name}_mask.tif", objects(255))
    for pair in find_pairs(tmp_path).pairs:
        loaded = load_pair(pair, voxel_size_um=(3.0, 1.0, 1.0))
        sizes[pair.image.stem] = loaded.voxel_size_um
    assert sizes == {"a": (1.0, 0.5, 0.5), "b": (3.0, 1.0, 1.0)}


def test_the_folder_that_was_asked_for_holds_images_whatever_it_is_called(
    tmp_path: Path,
) -> None:
    gold = tmp_path / "gold"
    image, shape = volume(gold / "a.tif"), tracing(gold / "a.swc")
    (pair,) = find_pairs(gold).pairs
    assert (pair.image, pair.annotation) == (image, shape)
    # And below another one, a volume with a tracing of its name is an image.
    (pair,) = find_pairs(tmp_path).pairs
    assert (pair.image, pair.annotation) == (image, shape)
    # A folder of masks beside one of images still is one.
    volume(tmp_path / "set" / "volumes" / "volume-1.tif")
    mask = volume(tmp_path / "set" / "labels" / "label-1.tif")
    (pair,) = find_pairs(tmp_path / "set").pairs
    assert pair.annotation == mask


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A stack whose second channel is IMAGE."""
    path = tmp_path / "two.tif"
    values = np.stack([np.zeros_like(IMAGE), IMAGE], axis=1)
    tifffile.imwrite(path, values, imagej=True, metadata={"axes": "ZCYX"})
    return path


def test_one_channel_of_an_image_is_read_where_it_is_said_which(
    tmp_path: Path, two: Path
) -> None:
    pair = Pair(two, volume(tmp_path / "a_mask.tif", np.uint8(IMAGE > 50)), "voxels")
    with pytest.raises(InputError, match=r"has 2 channels.*--channel"):
        load_pair(pair)
    np.testing.assert_array_equal(
        load_pair(pair, reading=Reading(channel=1)).image, IMAGE
    )
    with pytest.raises(InputError, match="channel 2"):
        load_pair(pair, reading=Reading(channel=2))


def test_axes_that_a_file_does_not_say_are_said(tmp_path: Path) -> None:
    path = tmp_path / "four.npy"
    np.save(path, np.stack([IMAGE, IMAGE + 1]))
    pair = Pair(path, volume(tmp_path / "a_mask.tif", np.uint8(IMAGE > 50)), "voxels")
    with pytest.raises(InputError, match="axes"):
        load_pair(pair)
    found = load_pair(pair, reading=Reading(channel=1, axes="czyx"))
    np.testing.assert_array_equal(found.image, IMAGE + 1)


def test_of_a_mask_no_option_chooses_and_none_is_advised(
    tmp_path: Path, two: Path
) -> None:
    image = volume(tmp_path / "a.tif")
    for mask, problem in (
        (two, "has 2 channels"),
        (volume(tmp_path / "flat.tif", IMAGE[0]), "is one plane"),
    ):
        with pytest.raises(InputError, match=problem) as error:
            load_pair(Pair(image, mask, "voxels"))
        assert "save what is meant as a stack" in str(error.value)
        assert "--channel" not in str(error.value)
        assert "say axes" not in str(error.value)
