"""What test-time flips bring, on cubes that a network of five folds has not seen.

    python benchmarks/flips.py RUN CUBES

RUN is the folder of `python -m neurodeploy.training.default`, CUBES TRAILMAP's
training folder. Each cube is answered by the network of the fold that it is held out
of: once, as the mean over flips on y and x (`segment --flips`, 4 times the work), and
over all three axes (8 times). Pooled over the labelled voxels of all cubes. The answer
is checked: without flips it must be what the run itself wrote.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import numpy as np
from _results import save, stamp, table
from numpy.typing import NDArray

from neurodeploy.data import IGNORE, AnnotatedVolume
from neurodeploy.training import load_checkpoint, pooled_score, predict
from neurodeploy.training.trailmap import folds, read_cubes

Axes = tuple[int, ...]

#: Axes that are flipped; the mean is taken over all of a line.
WAYS: dict[str, list[Axes]] = {
    "none": [()],
    "y and x": [(), (1,), (2,), (1, 2)],
    "z, y and x": [axes for n in range(4) for axes in combinations(range(3), n)],
}


def flipped_answers(folder: Path, cube: AnnotatedVolume) -> dict[Axes, NDArray]:
    """Of every flip of a cube the probabilities, flipped back; (z, y, x) float32."""
    network, checkpoint = load_checkpoint(folder)
    found = {}
    for axes in WAYS["z, y and x"]:
        answer = predict(
            network,
            checkpoint.network,
            np.ascontiguousarray(np.flip(cube.image, axes)),
            cube.normalisation,
            overlap=0.125,
        )
        found[axes] = np.flip(answer, axes)
    return found


def score(said: Sequence[NDArray], truth: Sequence[NDArray]) -> dict[str, float]:
    """Average precision, best Dice and its threshold."""
    found = pooled_score(np.concatenate(said), np.concatenate(truth))
    assert found is not None
    return asdict(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("cubes", type=Path)
    options = parser.parse_args()
    started = stamp()
    cubes = read_cubes(options.cubes)
    said: dict[str, list[NDArray]] = {way: [] for way in WAYS}
    truth = []
    for number, held in enumerate(folds(len(cubes), 5)):
        for cube in (cubes[i] for i in held):
            known = cube.labels != IGNORE
            truth.append(cube.labels[known] == 1)
            answers = flipped_answers(options.run / f"fold-{number}" / "last", cube)
            for way, flips in WAYS.items():
                mean = np.mean([answers[axes] for axes in flips], axis=0)
                said[way].append(mean[known])
        print(f"fold {number + 1} of 5", flush=True)
    rows = {way: score(parts, truth) for way, parts in said.items()}
    written = json.loads((options.run / "figures.json").read_text("utf-8"))
    expected = written["five_folds"]["average_precision"]
    here = rows["none"]["average_precision"]
    assert abs(here - expected) < 2e-3, (here, expected)
    save("flips", {"rows": [{"flips": w, **s} for w, s in rows.items()]}, started)
    print(
        table(
            ["flips", "times the work", "average precision", "best Dice", "at"],
            [
                [
                    way,
                    len(WAYS[way]),
                    f"{found['average_precision']:.3f}",
                    f"{found['dice']:.3f}",
                    f"{found['threshold']:.2f}",
                ]
                for way, found in rows.items()
            ],
        )
    )


if __name__ == "__main__":
    main()
