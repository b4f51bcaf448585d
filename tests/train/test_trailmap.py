"""TRAILMAP's overlapping cubes: what is held out is held out."""

from pathlib import Path

import numpy as np
import pytest

from neurodeploy._errors import DataError
from neurodeploy.data import IGNORE, AnnotatedVolume
from neurodeploy.training import trailmap


@pytest.fixture(scope="module")
def cubes(shared_data: Path) -> list[AnnotatedVolume]:
    return trailmap.read_cubes(shared_data / "trailmap" / "train")


def labelled(cubes: list[AnnotatedVolume]) -> set[tuple[int, int, int]]:
    """Labelled voxels as places in the volume that all cubes are cut from."""
    places: set[tuple[int, int, int]] = set()
    for cube in cubes:
        where = np.argwhere(cube.labels != IGNORE) + trailmap.ORIGINS[cube.name]
        places.update(map(tuple, where.tolist()))
    return places


def test_the_halves_share_no_label(cubes: list[AnnotatedVolume]) -> None:
    trained_on = [labelled(kept) for kept in trailmap.halves(cubes)]
    assert all(len(places) > 10_000 for places in trained_on)
    assert not trained_on[0] & trained_on[1]
    for held, places in enumerate(trained_on):
        held_out = {
            tuple(place)
            for cube in cubes
            for place in (
                np.argwhere((cube.labels != IGNORE) & trailmap.half_of(cube, held))
                + trailmap.ORIGINS[cube.name]
            ).tolist()
        }
        assert len(held_out) > 10_000
        assert not places & held_out


def test_a_fold_shares_labels_with_what_it_is_trained_on(
    cubes: list[AnnotatedVolume],
) -> None:
    """Which is why folds alone are not enough."""
    shares = []
    for held in trailmap.folds(len(cubes), 5):
        out = labelled([cubes[i] for i in held])
        rest = labelled([c for i, c in enumerate(cubes) if i not in held])
        shares.append(len(out & rest) / len(out))
    assert min(shares) > 0.8


def test_a_cube_that_lies_elsewhere_is_noticed(
    cubes: list[AnnotatedVolume], monkeypatch: pytest.MonkeyPatch
) -> None:
    trailmap.require_origins(cubes)
    monkeypatch.setitem(trailmap.ORIGINS, "volume-3", (7, -7, -28))
    with pytest.raises(DataError, match="differ where they should overlap"):
        trailmap.require_origins(cubes)


def test_a_cube_whose_place_is_not_known_is_refused() -> None:
    other = AnnotatedVolume(
        np.arange(64, dtype=np.uint16).reshape(4, 4, 4),
        np.zeros((4, 4, 4), np.uint8),
        "volume-12",
    )
    with pytest.raises(DataError, match="volume-12 is none of"):
        trailmap.require_origins([other])


def test_in_its_brain_the_background_is_what_is_measured(
    cubes: list[AnnotatedVolume],
) -> None:
    for cube in cubes:
        own, brain = cube.normalisation, trailmap.as_in_its_brain(cube).normalisation
        assert brain.background < own.background
        assert 0.4 < brain.noise / own.noise < 0.95
        background = cube.image[cube.labels == 0].astype(float)
        units = (background - brain.background) / brain.noise
        assert abs(np.median(units)) < 0.05
        assert np.quantile(units, 0.1587) == pytest.approx(-1, abs=0.05)


def test_folds_hold_every_cube_out_once() -> None:
    held = list(trailmap.folds(10, 5))
    assert sorted(index for fold in held for index in fold) == list(range(10))
    assert all(len(fold) == 2 for fold in held)


def test_a_folder_without_cubes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no volumes/volume-"):
        trailmap.read_cubes(tmp_path)


def test_a_volume_is_labelled_where_a_network_is_sure_and_nowhere_else() -> None:
    answer = np.full((8, 8, 20), 0.01, np.float32)
    answer[2:6, 2:6, 2:6] = 0.9  # 64 voxels
    answer[2:6, 2:6, 6:8] = 0.4  # beside it, and not sure
    answer[3, 3, 12:18] = 0.95  # a speck
    image = np.random.default_rng(0).integers(0, 999, answer.shape).astype(np.uint16)
    found = trailmap.labelled_where_sure(image, answer, (0.15, 0.6), 60)
    assert (found.labels[2:6, 2:6, 2:6] == 1).all()
    assert (found.labels[2:6, 2:6, 6:8] == IGNORE).all()
    assert (found.labels[3, 3, 12:18] == IGNORE).all()
    assert (found.labels[answer < 0.15] == 0).all()
    assert (found.labels == 1).sum() == 64
    assert found.group == "brain"


def test_a_volume_of_another_microscope_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "brain.npy", np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(DataError, match=r"\(4, 4, 4\) uint8: give TRAILMAP's"):
        trailmap.read_brain(tmp_path / "brain.npy")
    voxels = np.arange(64, dtype=np.uint16).reshape(4, 4, 4)
    np.save(tmp_path / "brain.npy", voxels)
    assert (trailmap.read_brain(tmp_path / "brain.npy") == voxels).all()
