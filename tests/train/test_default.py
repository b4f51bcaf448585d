"""Parts of the recipe of the model that ships."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from neurodeploy._errors import CheckpointError, ConfigError
from neurodeploy.data import AnnotatedVolume
from neurodeploy.training import Checkpoint, read_checkpoint, save_checkpoint
from neurodeploy.training.default import (
    Recipe,
    _done,
    _keep_recipe,
    carrying_threshold,
    main,
    make,
    seen_ranges,
    sparse_cubes,
)


def volume(background: float, peak: float, seed: int = 0) -> AnnotatedVolume:
    """A bar of this height over noise of 10 grey levels."""
    rng = np.random.default_rng(seed)
    image = rng.normal(background, 10, (24, 24, 24))
    labels = np.zeros(image.shape, np.uint8)
    labels[10:14, 4:20, 10:14] = 1
    image[labels == 1] += peak
    return AnnotatedVolume(image.astype(np.uint16), labels, f"bar {seed}")


def test_a_threshold_serves_all_sets_and_not_the_best_of_one() -> None:
    """Of two sets whose best thresholds lie at 0.3 and 0.8, one in between."""

    def dice(part: tuple[np.ndarray, np.ndarray], at: float) -> float:
        said, truth = part[0] >= at, part[1]
        return float(2 * (said & truth).sum() / (said.sum() + truth.sum()))

    rng = np.random.default_rng(0)
    parts = []
    for middle in (0.3, 0.8):
        said = rng.random(4000)
        parts.append((said.astype(np.float32), said > rng.normal(middle, 0.1, 4000)))
    best = carrying_threshold(parts)
    grid = np.linspace(0.02, 0.98, 97)
    alone = [carrying_threshold([part]) for part in parts]
    assert alone[0] < best < alone[1]
    for part, own in zip(parts, alone, strict=True):
        assert dice(part, own) == max(dice(part, at) for at in grid)
    assert sum(dice(p, best) for p in parts) == max(
        sum(dice(p, at) for p in parts) for at in grid
    )


def test_a_few_odd_volumes_do_not_widen_what_was_seen() -> None:
    usual = [volume(1000, 200 + i, seed=i) for i in range(40)]
    odd = [volume(20_000, 40_000, seed=99)]
    plain, told = seen_ranges(usual), seen_ranges(usual + odd)
    for name, (low, high) in plain.items():
        assert low < high
        assert told[name][0] >= 0.95 * low
        assert told[name][1] <= 1.05 * high
    low, high = plain["bright_over_noise"]
    assert 15 < low < high < 30
    low, high = plain["background_over_noise"]
    assert 85 < low < high < 115


def test_sparse_cubes_are_the_same_for_the_same_number() -> None:
    cubes = [volume(1000, 300, seed=i) for i in range(2)]
    none = np.zeros(cubes[0].labels.shape, np.uint8)
    cubes.append(replace(cubes[0], labels=none, name="empty"))
    seen = {c.name: np.zeros(c.image.shape, np.float32) for c in cubes}
    recipe = Recipe(sparse=3)
    made = sparse_cubes(recipe, cubes, seen, 1)
    # A cube without axons has none to leave.
    assert [c.name for c in made] == ["bar 0"] * 3 + ["bar 1"] * 3
    again = sparse_cubes(recipe, cubes, seen, 1)
    other = sparse_cubes(recipe, cubes, seen, 2)
    for one, two in zip(made, again, strict=True):
        assert (one.image == two.image).all()
    assert any((a.image != b.image).any() for a, b in zip(made, other, strict=True))
    low, high = recipe.sparse_share
    for one in made:
        share = (one.labels == 1).sum() / 256
        assert 0.5 * low <= share <= 1.3 * high


def test_a_step_of_another_recipe_is_not_taken_for_done(tmp_path: Path) -> None:
    recipe = Recipe(simulated_steps=8)
    settings = recipe.simulated_settings(tmp_path)
    last = tmp_path / "last"
    assert not _done(last, settings)
    stored = settings.to_json()
    del stored["labels"], stored["out"]  # a setting that was not there yet
    for step in (4, 8):
        made = Checkpoint(settings.network, step=step, training=stored)
        save_checkpoint(last, made, {"a": torch.zeros(1)})
        assert _done(last, settings) == (step == 8)
    other = replace(recipe, seed=1).simulated_settings(tmp_path)
    with pytest.raises(CheckpointError, match="another seed"):
        _done(last, other)


def test_a_folder_of_another_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    for _ in range(2):
        _keep_recipe(Recipe(), path)
    with pytest.raises(ConfigError, match="another sparse_share"):
        _keep_recipe(Recipe(sparse_share=(0.1, 0.2)), path)
    assert json.loads(path.read_text())["sparse_share"] == [0.03, 0.4]


def test_a_wrong_volume_is_refused_in_a_sentence_before_anything_is_trained(
    tmp_path: Path, shared_data: Path
) -> None:
    np.save(tmp_path / "brain.npy", np.zeros((4, 4, 4), np.uint8))
    words = ("--cubes", shared_data / "trailmap" / "train", "--brain")
    words += (tmp_path / "brain.npy", "--out", tmp_path / "out")
    ended = CliRunner().invoke(main, [str(word) for word in words])
    assert ended.exit_code == 2
    assert ended.stderr.startswith("neurodeploy: ")
    assert "give TRAILMAP's unlabelled volume" in ended.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["recipe.json"]


@pytest.mark.slow
def test_the_recipe_at_toy_size(tmp_path: Path, shared_data: Path) -> None:
    """Every model learns the unlabelled volume from a teacher of its own labels."""
    cubes = shared_data / "trailmap" / "train"
    rng = np.random.default_rng(0)
    brain = tmp_path / "brain.npy"
    np.save(brain, rng.normal(1500, 60, (40, 80, 80)).astype(np.uint16))
    recipe = Recipe(
        light_sheet=8,
        confocal=4,
        simulated_steps=4,
        cube_steps=4,
        rehearsal_every=1,
        sparse=1,
        folds=2,
        batch=1,
    )
    out = tmp_path / "run"
    figures = make(recipe, cubes, None, brain, out)
    assert set(figures) == {
        "held_out_halves",
        "held_out_halves_in_brain",
        "held_out_halves_sparse",
        "five_folds",
    }
    for name in ("final", "half-0", "half-1", "fold-0", "fold-1"):
        theirs = read_checkpoint(out / f"teacher-{name}" / "last").volumes["training"]
        mine = read_checkpoint(out / name / "last").volumes["training"]
        assert [v for v in mine if v["name"] != "brain"] == theirs
        assert len(mine) == len(theirs) + 1
    latest = read_checkpoint(out / "latest")
    assert 0.02 <= latest.threshold <= 0.98
    assert latest.overlap == (0.125,) * 3
    # What is finished is not made again.
    logs = {path: path.stat().st_mtime_ns for path in out.rglob("log.csv")}
    assert len(logs) == 11
    assert make(recipe, cubes, None, brain, out) == figures
    assert logs == {path: path.stat().st_mtime_ns for path in out.rglob("log.csv")}
