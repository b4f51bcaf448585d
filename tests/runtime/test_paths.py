"""What a run must not write over: the input, and what is none of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from neurodeploy_runtime import (
    ArraySource,
    Box,
    Bundle,
    Normalisation,
    NumpyEngine,
    OutputError,
    Segmenter,
    SegmentSettings,
    ingest,
    open_volume,
)
from neurodeploy_runtime._paths import Paths

pytest.importorskip("tensorstore")

WANTED = SegmentSettings(normalisation=Normalisation("unit", 0, 255))
VOXELS = np.random.default_rng(0).integers(0, 256, (6, 20, 24), np.uint8)


@pytest.fixture
def segment(
    make_identity_bundle: Callable[..., Bundle],
) -> Callable[[object, Path], Any]:
    """Segment with leave to overwrite."""
    bundle = make_identity_bundle()

    def run(source: Any, output: Path) -> Any:
        with open_volume(source) as opened:
            engines: list[Any] = [NumpyEngine(bundle)]
            return Segmenter(bundle, WANTED, engines=engines).segment(
                opened, output, overwrite=True
            )

    return run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "x.zarr"
    ingest(ArraySource(VOXELS), path)
    return path


def voxels_of(path: Path) -> Any:
    with open_volume(path) as source:
        return source.read(Box.whole(source.shape))


@pytest.mark.parametrize("given", ["file://{}", "{}", "{}/0", "{}/."])
def test_a_store_is_not_replaced_by_its_own_result(
    segment: Callable[..., Any], store: Path, given: str
) -> None:
    with pytest.raises(OutputError, match=r"is the input|holds the input"):
        segment(given.format(store), store)
    with (
        open_volume(given.format(store)) as source,
        pytest.raises(OutputError, match=r"is the input|holds the input"),
    ):
        ingest(source, store, overwrite=True)
    assert (voxels_of(store) == VOXELS).all()


def test_a_result_does_not_go_into_the_store_it_is_made_of(
    segment: Callable[..., Any], store: Path
) -> None:
    with pytest.raises(OutputError, match="inside the input"):
        segment(f"file://{store}", store / "seg.zarr")


@pytest.mark.parametrize("name", ["z3.tif", "more.tif"])
def test_a_plane_of_the_input_is_not_replaced_and_none_is_added(
    segment: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    planes = tmp_path / "planes"
    planes.mkdir()
    for z, plane in enumerate(VOXELS):
        tifffile.imwrite(planes / f"z{z}.tif", plane)
    with pytest.raises(OutputError, match=r"is the input|inside the input"):
        segment(planes, planes / name)
    assert (voxels_of(planes) == VOXELS).all()
    (planes / "results").mkdir()
    assert segment(planes, planes / "results" / "seg.tif").outputs


def test_a_hard_link_to_the_input_is_the_input(
    segment: Callable[..., Any], tmp_path: Path
) -> None:
    np.save(tmp_path / "in.npy", VOXELS)
    (tmp_path / "out.tif").hardlink_to(tmp_path / "in.npy")
    with pytest.raises(OutputError, match="is the input"):
        segment(tmp_path / "in.npy", tmp_path / "out.tif")


def test_the_other_files_of_an_ome_tiff_set_are_the_input_too(
    segment: Callable[..., Any], tmp_path: Path
) -> None:
    data = "".join(
        f'<TiffData FirstZ="{z}" FirstC="0" FirstT="0" IFD="0" PlaneCount="1">'
        f'<UUID FileName="{name}.ome.tif">urn:uuid:{name}</UUID></TiffData>'
        for z, name in enumerate("ab")
    )
    for z, name in enumerate("ab"):
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?><OME xmlns='
            '"http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{name}"><Image ID="Image:0"><Pixels ID="Pixels:0" '
            'DimensionOrder="XYZCT" Type="uint8" SizeX="24" SizeY="20" SizeZ="2" '
            f'SizeC="1" SizeT="1"><Channel ID="Channel:0:0"/>{data}</Pixels></Image>'
            "</OME>"
        )
        tifffile.imwrite(
            tmp_path / f"{name}.ome.tif", VOXELS[z], description=xml, metadata=None
        )
    before = (tmp_path / "b.ome.tif").read_bytes()
    with open_volume(tmp_path / "a.ome.tif") as source:
        assert source.shape[0] == 2
    with pytest.raises(OutputError, match="is the input"):
        segment(tmp_path / "a.ome.tif", tmp_path / "b.ome.tif")
    assert (tmp_path / "b.ome.tif").read_bytes() == before


@pytest.mark.parametrize("name", ["brains.zarr", "planes.tif", "s.precomputed"])
def test_a_folder_that_is_no_result_stays(
    segment: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    np.save(tmp_path / "in.npy", VOXELS)
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="a folder that holds no such output"):
        segment(tmp_path / "in.npy", tmp_path / name)
    assert (tmp_path / name / "thesis.txt").read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "in.npy"])


@pytest.mark.parametrize("name", ["o.json", "o.png"])
def test_a_folder_of_a_reports_name_shows_before_the_work(
    segment: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    np.save(tmp_path / "in.npy", VOXELS)
    (tmp_path / name).mkdir()
    with pytest.raises(OutputError, match="a folder that holds no such output"):
        segment(tmp_path / "in.npy", tmp_path / "o.tif")


@pytest.mark.parametrize("name", ["link.zarr", "link.tif"])
def test_a_link_to_a_folder_shows_before_the_work(
    segment: Callable[..., Any], store: Path, tmp_path: Path, name: str
) -> None:
    np.save(tmp_path / "in.npy", VOXELS)
    (tmp_path / name).symlink_to(store, target_is_directory=True)
    with pytest.raises(OutputError, match="is a link"):
        segment(tmp_path / "in.npy", tmp_path / name)
    assert (voxels_of(store) == VOXELS).all()


def test_a_store_is_replaced_when_that_is_asked_for(
    segment: Callable[..., Any], store: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "in.npy", VOXELS)
    segment(tmp_path / "in.npy", store)
    assert (voxels_of(store) == 255 * (VOXELS > 127)).all()


def test_no_plane_is_added_to_a_folder_that_is_still_being_filled(
    tmp_path: Path,
) -> None:
    planes = tmp_path / "planes"
    planes.mkdir()
    (planes / "z0.tif").touch()
    with pytest.raises(OutputError, match="inside the input"):
        Paths.of(planes / "seg.tif", "mask").check(planes, "tiff", may_exist=True)
    Paths.of(tmp_path / "seg.tif", "mask").check(planes, "tiff", may_exist=True)
