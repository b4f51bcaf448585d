"""The bundle that ships, against filters that need no training."""

from pathlib import Path

import pytest

from neurodeploy.data import find_pairs, load_pair
from neurodeploy.evaluation import (
    BASELINES,
    Annotated,
    baseline_figures,
    evaluate,
    open_model,
)
from neurodeploy_runtime import EngineSettings, default_bundle_path


@pytest.mark.slow
def test_the_default_model_beats_every_filter(shared_data: Path) -> None:
    """On cubes it was fine-tuned on: a bundle that is broken or cut shows here.

    What it reaches on cubes it never saw stands in its MODEL_CARD.md.
    """
    if not default_bundle_path().exists():
        pytest.skip("this checkout ships no bundle")
    found = find_pairs(shared_data / "trailmap" / "train")
    cubes = [load_pair(pair) for pair in found.pairs]
    with open_model(None, EngineSettings()) as model:
        result = evaluate(map(Annotated, cubes), model.predict, model.threshold)
    ours = result.pooled.voxels
    assert ours.average_precision is not None
    assert ours.best_dice is not None
    print(f"{model.name}: {ours.average_precision:.3f} / {ours.best_dice:.3f}")
    for name, score in BASELINES.items():
        theirs = baseline_figures(cubes, score)
        print(f"{name}: {theirs.average_precision:.3f} / {theirs.best_dice:.3f}")
        assert ours.average_precision > theirs.average_precision
        assert ours.best_dice > theirs.best_dice
