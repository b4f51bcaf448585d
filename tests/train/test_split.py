"""What is held out depends on the seed and the images, and stays so for a run."""

import dataclasses
import itertools

import pytest

from neurodeploy.data._volumes import listed
from neurodeploy.training import split
from neurodeploy.training._split import split_as, split_by_place


def names(parts):
    return [[volume.name for volume in part] for part in parts]


def test_validation_never_takes_every_volume(volumes):
    training, held = split(volumes, 0.9, seed=0)
    assert len(training) == 1
    assert len(held) == 2
    assert split(volumes[:1], 0.5, seed=0) == (volumes[:1], [])
    assert split(volumes, 0.0, seed=0) == (volumes, [])
    assert split([], 0.5, seed=0) == ([], [])


@pytest.mark.parametrize("seed", range(5))
def test_neither_order_nor_name_decides_what_is_held_out(volumes, another, seed):
    some = [*volumes, another]
    _, held = split(some, 0.5, seed)
    marks = {entry["image"] for entry in listed(held)}
    for moved in itertools.permutations(some):
        renamed = [dataclasses.replace(v, name=f"{i}") for i, v in enumerate(moved)]
        training, again = split(renamed, 0.5, seed)
        assert {entry["image"] for entry in listed(again)} == marks
        # Each part in the order of the volumes.
        for part in (training, again):
            assert part == [v for v in renamed if v in part]


@pytest.mark.parametrize("seed", range(5))
def test_copies_of_an_image_are_on_one_side(volumes, another, seed):
    twice = [dataclasses.replace(v, name=f"copy of {v.name}") for v in volumes[:2]]
    some = [*volumes, *twice, another]
    training, held = split(some, 0.5, seed)
    marks = [{entry["image"] for entry in listed(part)} for part in (training, held)]
    assert not marks[0] & marks[1]
    assert len(marks[1]) == 2  # of four images
    assert len(training) + len(held) == len(some)
    # One image, however often, is trained on.
    assert split([volumes[0], twice[0]], 0.5, seed) == ([volumes[0], twice[0]], [])


@pytest.mark.parametrize("seed", range(5))
def test_what_the_first_weights_have_seen_is_held_out_last(volumes, another, seed):
    some = [*volumes, another]
    seen = {entry["image"] for entry in listed(volumes[:2])}
    _, held = split(some, 0.5, seed, seen)
    assert sorted(names([held])[0]) == sorted(names([[volumes[2], another]])[0])
    _, held = split(some, 0.75, seed, seen)
    assert len(held) == 3


def test_another_seed_holds_out_others(volumes, another):
    some = [*volumes, another]
    drawn = {split(some, 0.25, seed)[1][0].name for seed in range(20)}
    assert drawn == {volume.name for volume in some}


def test_a_run_that_goes_on_is_split_as_it_began(volumes, another):
    began = {"training": listed(volumes[:2]), "validation": listed(volumes[2:])}
    for moved in itertools.permutations(volumes):
        assert split_as(moved, began) == (volumes[:2], volumes[2:])
    assert split_as([another, *volumes], began) == (
        [*volumes[:2], another],
        [*volumes[2:]],
    )
    assert split_as(volumes[1:], began) == ([volumes[1]], [volumes[2]])
    labels = volumes[2].labels.copy()
    labels[0, 0, 0] ^= 1
    other = dataclasses.replace(volumes[2], labels=labels)
    assert split_as([other, *volumes[:2]], began) == (volumes[:2], [other])


def test_a_run_of_before_is_split_by_place(volumes, another):
    """As numpy's generator drew in the versions that did not name their volumes."""
    some = [*volumes, another]
    assert names(split_by_place(some, 0.25, 0)) == [
        ["bar 0", "bar 1", "bar 3"],
        ["bar 2"],
    ]
