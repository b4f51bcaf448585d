"""The default model, from nothing: ``python -m neurodeploy.training.default``.

1. Simulated volumes, light-sheet and confocal in manner, over wide ranges of
   brightness, background, density, optics and anisotropy (`neurodeploy.simulate`).
2. A network trained on those alone.
3. The model: fine-tuned on the ten TRAILMAP cubes, with some of the simulated
   volumes so that it forgets nothing.
4. Five folds over the cubes: fine-tuned in the same way on eight, measured on the
   other two. The model's threshold is the best one of the ten pooled.

The ten cubes overlap: they are cut from one volume of about 100³ voxels, and 4 and 7
share 97 % of theirs. Folds over them measure how well the model fits that volume,
not how well it carries over to another.

Steps that are finished are not repeated, an interrupted one is resumed.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from neurodeploy._errors import DataError
from neurodeploy.data import IGNORE, AnnotatedVolume, Augmentation
from neurodeploy.networks import NetworkConfig
from neurodeploy.simulate import (
    CONFOCAL,
    LIGHT_SHEET,
    SimulationSettings,
    simulate_volume,
)
from neurodeploy.training._checkpoint import (
    is_checkpoint,
    load_checkpoint,
    load_weights,
    read_checkpoint,
    save_checkpoint,
)
from neurodeploy.training._loop import train
from neurodeploy.training._predict import predict
from neurodeploy.training._settings import TrainSettings
from neurodeploy.training._validate import pooled_score
from neurodeploy_runtime import Histogram

#: TRAILMAP's labels 0 to 4: unlabelled, background, axon, artifact, axon edge.
_MEANING = np.array([IGNORE, 0, 1, 0, IGNORE], np.uint8)


#: For the cubes: how bright an axon must be to have been labelled can only be learnt
#: where brightness is not changed too much.
_NEAR = Augmentation(
    rotation_probability=0.2,
    scale_probability=0.3,
    scale_range=(0.85, 1.2),
    anisotropy=1.2,
    degrade_probability=0.5,
    gain_range=(0.4, 1.2),
    noise_range=(0.0, 0.8),
    shot_range=(0.0, 0.4),
    gamma_range=(0.9, 1.1),
    blur_probability=0.1,
    haze_probability=0.15,
    noise_jitter=1.25,
    background_jitter=0.4,
)


@dataclass(frozen=True)
class Recipe:
    """How the default model is made.

    Parameters
    ----------
    light_sheet, confocal
        Number of simulated volumes in either manner.
    simulated_steps, cube_steps
        Optimiser steps on simulated volumes alone, and with the cubes.
    rehearsal_every
        Every how many-th simulated volume goes with the cubes.
    """

    seed: int = 20261122
    light_sheet: int = 160
    confocal: int = 96
    simulated_steps: int = 2200
    cube_steps: int = 240
    rehearsal_every: int = 4
    folds: int = 5
    batch: int = 4
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)

    def simulated_settings(self, out: Path) -> TrainSettings:
        """Settings of the training on simulated volumes."""
        return TrainSettings(
            out=str(out),
            name="neurodeploy-default",
            seed=self.seed,
            steps=self.simulated_steps,
            batch=self.batch,
            learning_rate=1.5e-3,
            warmup=min(150, self.simulated_steps // 4),
            ema=0.998,
            workers=1,
            shares={"light-sheet": 0.65, "confocal": 0.35},
            validate_every=250,
            save_every=250,
            log_every=25,
            network=self.network,
        )

    def cube_settings(self, out: Path, start: Path, number: int) -> TrainSettings:
        """Settings of a fine-tuning; `number` tells the folds' samples apart."""
        return TrainSettings(
            out=str(out),
            name="neurodeploy-default",
            init=str(start),
            seed=self.seed + 1 + number,
            steps=self.cube_steps,
            batch=self.batch,
            learning_rate=2e-3,
            warmup=min(40, self.cube_steps // 4),
            ema=0.98,
            layer_decay=1.0,
            workers=1,
            shares={"trailmap": 0.75, "light-sheet": 0.1, "confocal": 0.15},
            validate_every=self.cube_steps,
            save_every=self.cube_steps,
            log_every=25,
            augmentation=_NEAR,
            network=self.network,
        )


def simulated_volumes(
    recipe: Recipe, first: int = 0, every: int = 1
) -> list[AnnotatedVolume]:
    """The recipe's simulated volumes, by two processes; the seeds alone decide."""
    jobs = [
        *((recipe.seed + i, "light-sheet") for i in range(recipe.light_sheet)),
        *((recipe.seed + 100_000 + i, "confocal") for i in range(recipe.confocal)),
    ]
    jobs = jobs[first::every]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return [v for v in pool.map(_simulated, jobs, chunksize=4) if v is not None]


def _simulated(job: tuple[int, str]) -> AnnotatedVolume | None:
    seed, manner = job
    settings = (
        SimulationSettings((64, 160, 160), LIGHT_SHEET)
        if manner == "light-sheet"
        else SimulationSettings((48, 176, 176), CONFOCAL)
    )
    volume = simulate_volume(settings, seed)
    labels = np.where(volume.ignore & (volume.truth == 0), IGNORE, volume.truth)
    if (volume.image == volume.image.flat[0]).all():
        return None
    return AnnotatedVolume(
        volume.image, labels.astype(np.uint8), f"{manner} {seed}", manner
    )


def read_cubes(folder: Path) -> list[AnnotatedVolume]:
    """The ten TRAILMAP cubes: `volumes/volume-N.tiff` and `labels/label-N.tiff`."""
    import tifffile

    cubes = []
    for path in sorted((folder / "volumes").glob("volume-*.tiff")):
        marks = folder / "labels" / path.name.replace("volume", "label")
        labels: NDArray[Any] = tifffile.imread(marks)
        if labels.max(initial=0) >= len(_MEANING):
            raise DataError(f"{marks} has labels above {len(_MEANING) - 1}")
        cubes.append(
            AnnotatedVolume(
                tifffile.imread(path),
                _MEANING[labels],
                path.stem,
                "trailmap",
                isotropic=True,
            )
        )
    if not cubes:
        raise DataError(
            f"{folder} has no volumes/volume-*.tiff: give TRAILMAP's training folder "
            "(github.com/AlbertPun/TRAILMAP, data/training)"
        )
    return cubes


def folds(count: int, number: int) -> Iterator[list[int]]:
    """Which cubes are held out of each fold: neighbours in the list, all once."""
    for part in np.array_split(np.arange(count), number):
        yield part.tolist()


def seen_ranges(volumes: Sequence[AnnotatedVolume]) -> dict[str, list[float]]:
    """Least and greatest of what the runtime's out-of-range alarm looks at."""
    background, bright = [], []
    for volume in volumes:
        constants = volume.normalisation
        histogram = Histogram(volume.image.dtype)
        histogram.add(volume.image)
        (top,) = histogram.quantiles([0.999])
        background.append(constants.background / constants.noise)
        bright.append((top - constants.background) / constants.noise)
    return {
        "background_over_noise": [min(background), max(background)],
        "bright_over_noise": [min(bright), max(bright)],
    }


def _done(last: Path, settings: TrainSettings) -> bool:
    return is_checkpoint(last) and read_checkpoint(last).step == settings.steps


def _fit(
    settings: TrainSettings,
    volumes: list[AnnotatedVolume],
    validation: list[AnnotatedVolume],
    say: Callable[[object], None],
) -> Path:
    """Train, or go on where it stopped; the folder of the last checkpoint."""
    last = Path(settings.out) / "last"
    if not _done(last, settings):
        again = Path(settings.out).exists()
        train(settings, volumes, validation, resume=again, on_row=say)
    return last


def make(recipe: Recipe, cubes_folder: Path, out: Path) -> dict[str, Any]:
    """Make the default model in a folder; its figures on held-out cubes.

    `out/latest` is the checkpoint to use; `out/folds.npz` holds the
    held-out probabilities.
    """
    started = time.perf_counter()

    def say(text: object) -> None:
        click.echo(f"[{time.perf_counter() - started:7.1f} s] {text}")

    out.mkdir(parents=True, exist_ok=True)
    plain = json.dumps(dataclasses.asdict(recipe), indent=1)
    (out / "recipe.json").write_text(plain + "\n", "utf-8")
    cubes = read_cubes(cubes_folder)
    first = recipe.simulated_settings(out / "simulated")
    start = out / "simulated" / "last"
    if not _done(start, first):
        simulated = simulated_volumes(recipe)
        say(f"{len(simulated)} simulated volumes")
        # A look at volumes that are not trained on; the cubes stay unseen.
        check = simulated[:: max(1, len(simulated) // 4)][:4]
        kept = [v for v in simulated if all(v is not c for c in check)]
        _fit(first, kept, check, say)
        del simulated, kept
    rehearsal = simulated_volumes(recipe, 1, recipe.rehearsal_every)
    say(f"{len(rehearsal)} of them beside the cubes")
    settings = recipe.cube_settings(out / "final", start, recipe.folds)
    last = _fit(settings, [*cubes, *rehearsal], [], say)
    save_checkpoint(out / "latest", read_checkpoint(last), load_weights(last))
    say(f"the model is {out / 'latest'}, its threshold not yet measured")
    answers: dict[str, NDArray[np.float32]] = {}
    for number, held in enumerate(folds(len(cubes), recipe.folds)):
        settings = recipe.cube_settings(out / f"fold-{number}", start, number)
        trained_on = [c for i, c in enumerate(cubes) if i not in held]
        fold = _fit(settings, [*trained_on, *rehearsal], [], say)
        network, checkpoint = load_checkpoint(fold)
        for index in held:
            cube = cubes[index]
            answers[cube.name] = predict(network, checkpoint.network, cube.image)
        say(f"fold {number} measured on {[cubes[i].name for i in held]}")
    known = [c.labels != IGNORE for c in cubes]
    truth = np.concatenate(
        [c.labels[k] == 1 for c, k in zip(cubes, known, strict=True)]
    )
    pooled = np.concatenate(
        [answers[c.name][k] for c, k in zip(cubes, known, strict=True)]
    )
    score = pooled_score(pooled, truth)
    if score is None:
        raise DataError("the cubes hold one class only: nothing can be measured")
    figures = {"held_out_cubes": dataclasses.asdict(score)}
    say(figures)
    np.savez_compressed(
        out / "folds.npz",
        names=np.array([c.name for c in cubes]),
        probability=np.stack([answers[c.name] for c in cubes]),
    )
    checkpoint = dataclasses.replace(
        read_checkpoint(last),
        threshold=score.threshold,
        figures=figures,
        validated_on=seen_ranges([*cubes, *rehearsal]),
    )
    save_checkpoint(out / "latest", checkpoint, load_weights(last))
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    say(f"the model is {out / 'latest'}")
    return figures


@click.command()
@click.option(
    "--cubes",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="TRAILMAP's training folder, with volumes/ and labels/.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the runs and of the model.",
)
def main(cubes: Path, out: Path) -> None:
    """Make the default model."""
    make(Recipe(), cubes, out)


if __name__ == "__main__":
    main()
