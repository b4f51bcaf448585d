"""The default model's recipe on held-out halves of its cubes, and itself on others.

    python benchmarks/default_model.py RUN CUBES BRAIN [--image FILE --tracing SWC]

RUN is the folder of `python -m neurodeploy.training.default`, CUBES TRAILMAP's
training folder, BRAIN its unlabelled volume. Every labelled voxel of the cubes is
answered by the network of the half that it is not in. Asked of them:

- the cubes as they are, normalised by themselves and as their brain would be (by
  their labelled background: an oracle, which no user has);
- dimmed: half the signal, twice the background and its shot noise;
- sparse: nine tenths of the axons replaced by the cube's own texture, then dimmed;
- planted: a tenth of the axons in a part of the unlabelled volume, as they are, and
  with half the signal, twice the background and its noise.

Simulated volumes, of seeds that no training drew, are asked of the model that ships,
at five densities and strengths; so is, where given, an image with its tracing. Raw
intensity and a top-hat are scored beside it on the same voxels. Every Dice is given
twice, the best one and that at the model's own threshold. The answer is checked: the
halves must give what the run itself wrote.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from _quality import METHODS, row, text
from _results import save, stamp
from scipy import ndimage

from neurodeploy.data import IGNORE, AnnotatedVolume
from neurodeploy.evaluation import BASELINES, draw_line, figures_of_filter
from neurodeploy.morphology import read_swc
from neurodeploy.simulate import LIGHT_SHEET, SimulationSettings, simulate_volume
from neurodeploy.training import load_checkpoint, pooled_score, predict
from neurodeploy.training.axons import (
    Dimming,
    planted,
    smooth_background,
    unmarked,
    with_fewer_axons,
)
from neurodeploy.training.trailmap import (
    as_in_its_brain,
    half_of,
    read_brain,
    read_cubes,
)
from neurodeploy_runtime import Box, Normalisation, open_volume

#: Simulated volumes: share of voxels on neurites, and their peak above the
#: background in units of its noise.
SIMULATED = {
    "simulated, 2.5 %, dim": ((0.015, 0.035), (6, 15)),
    "simulated, 2.5 %, bright": ((0.015, 0.035), (20, 50)),
    "simulated, 0.3 %, dim": ((0.001, 0.005), (6, 15)),
    "simulated, 0.3 %, bright": ((0.001, 0.005), (20, 50)),
    "simulated, any": (LIGHT_SHEET.neurite_share, LIGHT_SHEET.contrast),
}

Ask = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Item:
    """One image, what is true of it, and where that is known."""

    image: np.ndarray
    truth: np.ndarray
    known: np.ndarray
    volume: AnnotatedVolume


def of(volume: AnnotatedVolume) -> Item:
    return Item(volume.image, volume.labels == 1, volume.labels != IGNORE, volume)


def dimmed(cube: AnnotatedVolume, rng: np.random.Generator) -> AnnotatedVolume:
    """Half of what rises over the background, twice the background."""
    image = cube.image.astype(np.float32)
    base = smooth_background(image)
    # Noise of twice the background, less half of that which is in the image.
    noise = as_in_its_brain(cube).normalisation.noise * np.sqrt(2 - 0.25)
    image = 2 * base + 0.5 * (image - base) + rng.normal(0, noise, image.shape)
    levels = np.clip(np.rint(image), 0, 65535).astype(np.uint16)
    return replace(cube, image=levels)


def simulated(name: str) -> list[Item]:
    share, contrast = SIMULATED[name]
    look = replace(LIGHT_SHEET, neurite_share=share, contrast=contrast)
    items = []
    for seed in range(9000, 9008):
        volume = simulate_volume(SimulationSettings((64, 96, 96), look), seed)
        known = ~(volume.ignore & (volume.truth == 0))
        labels = np.where(known, volume.truth > 0, IGNORE).astype(np.uint8)
        items.append(of(AnnotatedVolume(volume.image, labels, f"{name} {seed}")))
    return items


def dice(said: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (said & truth).sum() / max(said.sum() + truth.sum(), 1))


def figures(
    items: Sequence[Item], answers: Sequence[np.ndarray], threshold: float
) -> dict:
    """The model's and the filters' figures over the items' known voxels, pooled."""
    truth = np.concatenate([i.truth[i.known] for i in items])
    said = np.concatenate([a[i.known] for a, i in zip(answers, items, strict=True)])
    score = pooled_score(said, truth)
    found = {
        "voxels": int(truth.size),
        "axon_share": float(truth.mean()),
        "average_precision": score.average_precision,
        "best_dice": score.dice,
        "best_threshold": score.threshold,
        "dice": dice(said >= threshold, truth),
    }
    for name in METHODS:
        flat = np.concatenate([BASELINES[name](i.image)[i.known] for i in items])
        # Its unit is its own: no threshold is out of range.
        found[name] = asdict(figures_of_filter(flat, truth))
    return found


def traced(ask: Ask, image: Path, tracing: Path, threshold: float) -> dict[str, float]:
    """Shares of a tracing near the mask, and of the mask near the tracing."""
    with open_volume(image) as source:
        voxels = source.read(Box.whole(source.shape))
    mask = ask(voxels) >= threshold
    points, _, _ = read_swc(tracing).samples(0.5)
    line = draw_line(points, mask.shape)
    to_mask = ndimage.distance_transform_edt(~mask)
    to_line = ndimage.distance_transform_edt(~line)
    return {
        "line_within_3": float((to_mask[line] <= 3).mean()),
        "mask_within_3": float((to_line[mask] <= 3).mean()),
        "mask_within_8": float((to_line[mask] <= 8).mean()),
    }


def asker(folder: Path) -> tuple[Ask, float]:
    """A checkpoint as a function of an image, and its threshold."""
    network, checkpoint = load_checkpoint(folder)

    def ask(image: np.ndarray, normalisation: Normalisation | None = None):
        return predict(
            network,
            checkpoint.network,
            image,
            normalisation,
            overlap=checkpoint.overlap[0],
        )

    return ask, checkpoint.threshold


def by_halves(asks: Sequence[Ask], cubes: Sequence[AnnotatedVolume]) -> list:
    """Every voxel of the cubes, answered by the network of the half it is not in."""
    answers = []
    for cube in cubes:
        one, two = (ask(cube.image, cube.normalisation) for ask in asks)
        answers.append(np.where(half_of(cube, 0), one, two))
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("cubes", type=Path)
    parser.add_argument("brain", type=Path)
    parser.add_argument("--image", type=Path, help="an image of Gold166")
    parser.add_argument("--tracing", type=Path, help="its SWC, in voxels")
    options = parser.parse_args()
    started = stamp()
    ask, threshold = asker(options.run / "latest")
    network = asdict(load_checkpoint(options.run / "latest")[1].network)
    halves = [asker(options.run / f"half-{half}" / "last")[0] for half in (0, 1)]
    cubes = read_cubes(options.cubes)
    rng = np.random.default_rng(0)
    asis = by_halves(halves, cubes)
    # The same axons go, whatever network is measured.
    first, _ = asker(options.run / "simulated" / "last")
    few = [with_fewer_axons(c, first(c.image), 0.1, rng) for c in cubes]
    depth = len(cubes[0].image)
    end = read_brain(options.brain)[-depth:]
    tissue = unmarked(end, first(end))
    seen = [first(c.image) for c in cubes]

    def elsewhere(dimming: Dimming) -> list[AnnotatedVolume]:
        mine = np.random.default_rng(1)
        return [
            planted(c, p, tissue, 0.1, mine, dimming)
            for c, p in zip(cubes, seen, strict=True)
        ]

    sets = {
        "cubes, normalised by themselves": cubes,
        "cubes, as in their brain": [as_in_its_brain(c) for c in cubes],
        "cubes, dimmed": [dimmed(c, rng) for c in cubes],
        "cubes, sparse": few,
        "cubes, sparse and dimmed": [dimmed(c, rng) for c in few],
        "axons planted in a brain": elsewhere(Dimming()),
        "axons planted and dimmed": elsewhere(Dimming(0.5, 2.0, 80.0)),
    }
    found = {}

    def note(name: str, items: list[Item], answers: list[np.ndarray]) -> None:
        found[name] = figures(items, answers, threshold)
        print(*row(name, found[name]), sep=" | ", flush=True)

    for name, volumes in sets.items():
        answers = asis if volumes is cubes else by_halves(halves, volumes)
        note(name, [of(v) for v in volumes], answers)
    for name in SIMULATED:
        items = simulated(name)
        note(name, items, [ask(i.image) for i in items])
    written = json.loads((options.run / "figures.json").read_text("utf-8"))
    expected = written["held_out_halves"]["average_precision"]
    here = found["cubes, normalised by themselves"]["average_precision"]
    assert abs(here - expected) < 2e-3, (here, expected)
    values = {
        "threshold": threshold,
        "network": network,
        "five_folds": written.get("five_folds"),
        "figures": found,
    }
    if options.image is not None:
        near = traced(ask, options.image, options.tracing, threshold)
        values["traced"] = {"image": options.image.name, **near}
    save("default_model", values, started)
    print(text(values, values["five_folds"]))


if __name__ == "__main__":
    main()
