"""The default model on cubes that it never saw, as they are and made worse.

    python benchmarks/default_model.py RUN CUBES

RUN is the folder of `python -m neurodeploy.training.default`, CUBES TRAILMAP's
training folder. Each cube is answered by the fold that did not train on it. The
worse cubes have half the signal, twice the background with its shot noise, and nine
tenths of the axon voxels replaced by background. Raw intensity and a white top-hat
are scored beside the network, on the same voxels. The answer is checked: the cubes
as they are must give the figures that the run itself wrote.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import ndimage

from neurodeploy.data import IGNORE
from neurodeploy.training import load_checkpoint, pooled_score, predict
from neurodeploy.training.trailmap import folds, read_cubes
from neurodeploy_runtime._normalise import Histogram


def normalisation(image):
    histogram = Histogram(image.dtype)
    histogram.add(image)
    return histogram.freeze("background-asinh")


def worse(image, labels, probability, rng):
    """Half the signal, twice the background, a tenth of the axons; new labels."""
    constants = normalisation(image)
    b, n = constants.background, constants.noise
    axon = ndimage.binary_dilation((probability > 0.2) | (labels == 1), iterations=3)
    # Axons stay in one compact part of the cube that holds a tenth of them.
    corner = np.array([rng.integers(0, 64), rng.integers(0, 64), rng.integers(0, 64)])
    grid = np.indices(image.shape) - corner[:, None, None, None]
    distance = np.sqrt((grid**2).sum(axis=0))
    radius = np.quantile(distance[(labels == 1)], 0.1)
    gone = axon & (distance > radius)
    calm = image[~axon]
    # Background texture of the cube itself: smoothed as much as it is correlated.
    filled = rng.choice(calm, image.shape).astype(np.float32)
    spread = filled.std()
    filled = ndimage.gaussian_filter(filled - filled.mean(), 0.7)
    filled = filled / filled.std() * spread + calm.mean()
    v = np.where(gone, filled, image.astype(np.float32))
    v = b + 0.5 * (v - b) + b + rng.normal(0, n, v.shape)
    labels = np.where(gone & (labels == 1), 0, labels).astype(np.uint8)
    return np.clip(np.rint(v), 0, 65535).astype(np.uint16), labels


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("cubes", type=Path)
    options = parser.parse_args()
    cubes = read_cubes(options.cubes)
    rng = np.random.default_rng(0)
    names = ("as they are", "worse")
    pools = {(n, m): [] for n in names for m in ("network", "raw", "top-hat")}
    truths = {n: [] for n in names}
    figures = json.loads((options.run / "figures.json").read_text())
    threshold = figures["held_out_cubes"]["threshold"]
    count = json.loads((options.run / "recipe.json").read_text())["folds"]
    for number, held in enumerate(folds(len(cubes), count)):
        network, checkpoint = load_checkpoint(options.run / f"fold-{number}" / "last")
        for index in held:
            cube = cubes[index]
            first = predict(network, checkpoint.network, cube.image)
            bad, bad_labels = worse(cube.image, cube.labels, first, rng)
            second = predict(network, checkpoint.network, bad)
            for name, image, labels, answer in (
                ("as they are", cube.image, cube.labels, first),
                ("worse", bad, bad_labels, second),
            ):
                known = labels != IGNORE
                x = normalisation(image).apply(image)
                hat = x - ndimage.grey_opening(x, (9, 9, 9))
                pools[name, "network"].append(answer[known])
                pools[name, "raw"].append(x[known])
                pools[name, "top-hat"].append(hat[known])
                truths[name].append(labels[known] == 1)
    for name in names:
        truth = np.concatenate(truths[name])
        print(f"{name}: {truth.size} labelled voxels, {truth.mean():.3%} axon")
        for method in ("network", "raw", "top-hat"):
            answer = np.concatenate(pools[name, method])
            score = pooled_score(answer, truth)
            text = f"AP {score.average_precision:.4f}, best Dice {score.dice:.4f}"
            if method == "network":
                said = answer >= threshold
                dice = 2 * (said & truth).sum() / (said.sum() + truth.sum())
                text += f" at {score.threshold:.3f}, {dice:.4f} at {threshold:.3f}"
                if name == "as they are":
                    expected = figures["held_out_cubes"]["average_precision"]
                    assert abs(score.average_precision - expected) < 1e-3, expected
            print(f"  {method:8s} {text}")


if __name__ == "__main__":
    main()
