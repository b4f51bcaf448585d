"""The default model, from nothing: ``python -m neurodeploy.training.default``.

1. Simulated volumes, light-sheet and confocal in manner, over wide ranges of
   brightness, background, density, optics and anisotropy (`neurodeploy.simulate`);
   half of the confocal ones show traced neurons where tracings are given.
2. A network trained on those alone.
3. A teacher: fine-tuned on the ten TRAILMAP cubes, each normalised by itself and as
   the brain around it would be (`trailmap.as_in_its_brain`), on the same cubes with
   most of their axons taken away (`axons.with_fewer_axons`), and on some of the
   simulated volumes so that it forgets nothing.
4. The model: fine-tuned like the teacher, and beside all that on an unlabelled volume
   of the same microscope, a piece of a brain with few axons, labelled where the teacher
   is sure (`trailmap.labelled_where_sure`).
5. Two halves of the volume that the cubes are cut from: teacher and model made in the
   same way with the labels of one, measured on those of the other. No label is on both
   sides. The model's threshold is the one that serves best, on average, the cubes
   normalised as the brain around them would be, and the cubes with few axons.
6. Five folds over the cubes, eight for training and two to measure on. The cubes
   overlap (`trailmap`), so these show how well the model fits one volume.

Steps that are finished are not repeated, an interrupted one is resumed; one of another
recipe is refused.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from neurodeploy._errors import ConfigError, DataError
from neurodeploy.data import IGNORE, NEURITE, AnnotatedVolume, Augmentation
from neurodeploy.morphology import read_swc
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
from neurodeploy.training._loop import require_settings, train
from neurodeploy.training._losses import LossSettings
from neurodeploy.training._predict import predict
from neurodeploy.training._settings import TrainSettings
from neurodeploy.training._validate import Score, pooled_score
from neurodeploy.training.axons import with_fewer_axons
from neurodeploy.training.trailmap import (
    as_in_its_brain,
    folds,
    half_of,
    halves,
    labelled_where_sure,
    read_brain,
    read_cubes,
    require_origins,
)
from neurodeploy_runtime import Histogram, NeurodeployError

#: For the cubes: milder in shape than for simulated volumes. Axons dimmed below the
#: tissue's texture would teach to mark the texture, so they are ignored; a background
#: that changes widens the histogram of its volume.
_NEAR = Augmentation(
    rotation_probability=0.2,
    scale_probability=0.3,
    scale_range=(0.85, 1.2),
    anisotropy=1.2,
    degrade_probability=0.6,
    gain_range=(0.25, 1.3),
    noise_range=(0.0, 1.4),
    shot_range=(0.0, 0.3),
    gamma_range=(0.9, 1.1),
    blur_probability=0.1,
    haze_probability=0.4,
    haze_limit=5.0,
    haze_widens=0.4,
    visible_from=1.5,
    noise_jitter=1.4,
    background_jitter=0.4,
)

#: Of the samples of a fine-tuning: without the unlabelled volume, and with it.
_TEACHERS = {"trailmap": 0.5, "light-sheet": 0.33, "confocal": 0.17}
_WITH_BRAIN = {"trailmap": 0.4, "brain": 0.25, "light-sheet": 0.23, "confocal": 0.12}

#: What is left of a cube's axons where the threshold is chosen.
_FEW = 0.1


#: The image of Gold166 that the model is measured on: its tracing is not used.
_MEASURED_ON = "245"

_Job = tuple[int, str, Path | None]
Answer = NDArray[np.float32]


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
    sparse
        How often each cube is shown with few of its axons.
    sparse_share
        Least and most share of its axons that are left then.
    sure, least
        Where the teacher labels the unlabelled volume, and the least number of voxels
        of a neurite there: see `trailmap.labelled_where_sure`.
    """

    seed: int = 20261122
    light_sheet: int = 384
    confocal: int = 192
    simulated_steps: int = 7000
    cube_steps: int = 400
    rehearsal_every: int = 6
    sparse: int = 2
    sparse_share: tuple[float, float] = (0.03, 0.4)
    sure: tuple[float, float] = (0.15, 0.6)
    least: int = 60
    folds: int = 5
    batch: int = 4
    #: Of tiles, on every axis. From 0.5 to 0.125, average precision on simulated
    #: volumes falls by 0.0005 and the tiles for a volume by more than half.
    overlap: float = 0.125
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
            validate_every=500,
            save_every=250,
            log_every=25,
            network=self.network,
        )

    def cube_settings(
        self, out: Path, start: Path, number: int, shares: dict[str, float]
    ) -> TrainSettings:
        """Settings of a fine-tuning; `number` tells the folds' samples apart."""
        return TrainSettings(
            out=str(out),
            name="neurodeploy-default",
            init=str(start),
            seed=self.seed + 1 + number,
            steps=self.cube_steps,
            batch=self.batch,
            learning_rate=1e-3,
            warmup=min(40, self.cube_steps // 4),
            # A long average: the start, trained on simulated tissue, keeps a share.
            ema=0.995,
            layer_decay=1.0,
            workers=1,
            # Mostly cross-entropy, and mostly crops from anywhere: both keep a
            # probability near what it says in tissue with few axons.
            loss=LossSettings(dice=0.3),
            neurite_share=0.25,
            shares=shares,
            validate_every=self.cube_steps,
            save_every=self.cube_steps,
            log_every=25,
            augmentation=_NEAR,
            network=self.network,
        )


def simulated_volumes(
    recipe: Recipe, tracings: Path | None, first: int = 0, every: int = 1
) -> list[AnnotatedVolume]:
    """The recipe's simulated volumes, by two processes; the seeds alone decide."""
    shapes: list[Path | None] = [None]
    if tracings is not None:
        shapes = [p for p in sorted(tracings.glob("*.swc")) if p.stem != _MEASURED_ON]
        if not shapes:
            raise DataError(f"{tracings} has no .swc file to simulate neurons from")
    jobs: list[_Job] = [
        (recipe.seed + i, "light-sheet", None) for i in range(recipe.light_sheet)
    ]
    for i in range(recipe.confocal):
        shape = shapes[i % len(shapes)] if i // 4 % 2 else None
        jobs.append((recipe.seed + 100_000 + i, "confocal", shape))
    jobs = jobs[first::every]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return [v for v in pool.map(_simulated, jobs, chunksize=4) if v is not None]


def _simulated(job: _Job) -> AnnotatedVolume | None:
    seed, manner, tracing = job
    settings = (
        SimulationSettings((64, 160, 160), LIGHT_SHEET)
        if manner == "light-sheet"
        else SimulationSettings((48, 176, 176), CONFOCAL)
    )
    name = f"{manner} {seed}"
    if tracing is not None:
        settings = dataclasses.replace(settings, neurites=(read_swc(tracing),))
        name = f"{name} {tracing.stem}"
    volume = simulate_volume(settings, seed)
    labels = np.where(volume.ignore & (volume.truth == 0), IGNORE, volume.truth)
    if (volume.image == volume.image.flat[0]).all():
        return None
    return AnnotatedVolume(volume.image, labels.astype(np.uint8), name, manner)


def seen_ranges(volumes: Sequence[AnnotatedVolume]) -> dict[str, list[float]]:
    """What the runtime's out-of-range alarm looks at, over all but the odd ones.

    From the 5th to the 95th percentile of the volumes: a few odd ones do not widen it.
    """
    background, bright = [], []
    for volume in volumes:
        constants = volume.normalisation
        histogram = Histogram(volume.image.dtype)
        histogram.add(volume.image)
        (top,) = histogram.quantiles([0.999])
        background.append(constants.background / constants.noise)
        bright.append((top - constants.background) / constants.noise)
    return {
        "background_over_noise": np.quantile(background, [0.05, 0.95]).tolist(),
        "bright_over_noise": np.quantile(bright, [0.05, 0.95]).tolist(),
    }


def _keep_recipe(recipe: Recipe, path: Path) -> None:
    """Write the recipe; a folder that was begun by another is refused.

    Raises
    ------
    ConfigError
        Names the fields that differ.
    """
    plain = json.dumps(dataclasses.asdict(recipe), indent=1)
    if path.exists():
        then, now = json.loads(path.read_text("utf-8")), json.loads(plain)
        changed = [name for name in now if name in then and then[name] != now[name]]
        if changed:
            raise ConfigError(
                f"{path} was begun with another {', '.join(changed)}: choose another "
                "folder, or make it with the recipe of then"
            )
    path.write_text(plain + "\n", "utf-8")


def _done(last: Path, settings: TrainSettings) -> bool:
    """Whether a step is finished; one that was made by another recipe is refused."""
    if not is_checkpoint(last):
        return False
    checkpoint = read_checkpoint(last)
    require_settings(last, checkpoint, settings)
    return checkpoint.step == settings.steps


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


def sparse_cubes(
    recipe: Recipe,
    cubes: Sequence[AnnotatedVolume],
    seen: dict[str, Answer],
    number: int,
) -> list[AnnotatedVolume]:
    """Each cube that has axons, with few of them left, `recipe.sparse` times."""
    rng = np.random.default_rng([recipe.seed, number])
    low, high = np.log(recipe.sparse_share)
    return [
        with_fewer_axons(cube, seen[cube.name], float(np.exp(share)), rng)
        for cube in cubes
        if (cube.labels == NEURITE).any()
        for share in rng.uniform(low, high, recipe.sparse)
    ]


def _fine_tuned(
    recipe: Recipe,
    run: Path,
    number: int,
    cubes: list[AnnotatedVolume],
    seen: dict[str, Answer],
    rehearsal: list[AnnotatedVolume],
    brain: NDArray[Any],
    held: Sequence[AnnotatedVolume],
    say: Callable[[object], None],
) -> tuple[Path, list[Answer]]:
    """Train a teacher and its model; the last checkpoint, its answers on `held`."""
    start = run.parent / "simulated" / "last"
    settings = recipe.cube_settings(run, start, number, _WITH_BRAIN)
    last = run / "last"
    if not _done(last, settings):
        few = sparse_cubes(recipe, cubes, seen, number)
        known = [*cubes, *map(as_in_its_brain, cubes), *few, *rehearsal]
        before = run.with_name(f"teacher-{run.name}")
        teacher = _fit(
            recipe.cube_settings(before, start, number, _TEACHERS), known, [], say
        )
        network, checkpoint = load_checkpoint(teacher)
        answer = predict(network, checkpoint.network, brain, overlap=recipe.overlap)
        more = labelled_where_sure(brain, answer, recipe.sure, recipe.least)
        share = (more.labels == NEURITE).mean()
        say(f"{before.name} marks {share:.2%} of the unlabelled volume")
        _fit(settings, [*known, more], [], say)
    network, checkpoint = load_checkpoint(last)
    config = checkpoint.network
    return last, [
        predict(network, config, c.image, c.normalisation, overlap=recipe.overlap)
        for c in held
    ]


def _flat(
    cubes: Sequence[AnnotatedVolume],
    answers: Sequence[Answer],
    where: Sequence[NDArray[np.bool_]],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Probabilities and truth of those voxels of all cubes."""
    truth = [c.labels[w] == NEURITE for c, w in zip(cubes, where, strict=True)]
    said = [a[w] for a, w in zip(answers, where, strict=True)]
    return np.concatenate(said), np.concatenate(truth)


def _score(
    cubes: Sequence[AnnotatedVolume],
    answers: Sequence[Answer],
    where: Sequence[NDArray[np.bool_]],
) -> Score:
    score = pooled_score(*_flat(cubes, answers, where))
    if score is None:
        raise DataError("the cubes hold one class only: nothing can be measured")
    return score


def carrying_threshold(
    parts: Sequence[tuple[NDArray[np.float32], NDArray[np.bool_]]],
) -> float:
    """The threshold at which the mean Dice over several sets is best.

    Each set is (probabilities, truth), flat. The best one of each set alone would
    serve the others badly: where axons are few, it is higher.
    """
    grid = np.linspace(0.02, 0.98, 97)
    total = np.zeros(len(grid))
    for said, truth in parts:
        for i, at in enumerate(grid):
            marked = said >= at
            total[i] += 2 * (marked & truth).sum() / max(marked.sum() + truth.sum(), 1)
    return float(grid[total.argmax()])


def make(
    recipe: Recipe,
    cubes_folder: Path,
    tracings: Path | None,
    brain_file: Path,
    out: Path,
) -> dict[str, Any]:
    """Make the default model in a folder; its figures on held-out labels.

    `out/latest` is the checkpoint to use, `out/held_out.npz` holds the probabilities
    of the halves and of the folds, cube by cube.
    """
    started = time.perf_counter()

    def say(text: object) -> None:
        click.echo(f"[{time.perf_counter() - started:7.1f} s] {text}")

    out.mkdir(parents=True, exist_ok=True)
    _keep_recipe(recipe, out / "recipe.json")
    cubes = read_cubes(cubes_folder)
    require_origins(cubes)
    brain = read_brain(brain_file)
    first = recipe.simulated_settings(out / "simulated")
    if not _done(out / "simulated" / "last", first):
        simulated = simulated_volumes(recipe, tracings)
        say(f"{len(simulated)} simulated volumes")
        # A look at volumes that are not trained on; the cubes stay unseen.
        check = simulated[:: max(1, len(simulated) // 4)][:4]
        kept = [v for v in simulated if all(v is not c for c in check)]
        _fit(first, kept, check, say)
        del simulated, kept
    rehearsal = simulated_volumes(recipe, tracings, 1, recipe.rehearsal_every)
    say(f"{len(rehearsal)} of them beside the cubes")
    known = [c.labels != IGNORE for c in cubes]
    # Where a network that has seen none of their labels sees axons.
    network, checkpoint = load_checkpoint(out / "simulated" / "last")
    seen = {c.name: predict(network, checkpoint.network, c.image) for c in cubes}

    last, _ = _fine_tuned(
        recipe, out / "final", 0, cubes, seen, rehearsal, brain, [], say
    )
    save_checkpoint(out / "latest", read_checkpoint(last), load_weights(last))
    say(f"the model is {out / 'latest'}, its threshold not yet measured")

    # Every cube thrice: normalised by itself, as its brain would be, with few axons.
    rng = np.random.default_rng(recipe.seed)
    few = [with_fewer_axons(c, seen[c.name], _FEW, rng) for c in cubes]
    asked = [*cubes, *map(as_in_its_brain, cubes), *few]
    by_half = [np.zeros(c.image.shape, np.float32) for c in asked]
    for half, kept in enumerate(halves(cubes)):
        run = out / f"half-{half}"
        _, answers = _fine_tuned(
            recipe, run, 1 + half, kept, seen, rehearsal, brain, asked, say
        )
        for whole, cube, answer in zip(by_half, asked, answers, strict=True):
            mine = half_of(cube, half)
            whole[mine] = answer[mine]
    own, in_brain, sparse = (
        by_half[i : i + len(cubes)] for i in range(0, len(asked), len(cubes))
    )
    figures = {
        "held_out_halves": dataclasses.asdict(_score(cubes, own, known)),
        "held_out_halves_in_brain": dataclasses.asdict(_score(cubes, in_brain, known)),
        "held_out_halves_sparse": dataclasses.asdict(_score(few, sparse, known)),
    }
    checkpoint = dataclasses.replace(
        read_checkpoint(last),
        threshold=carrying_threshold(
            [_flat(cubes, in_brain, known), _flat(few, sparse, known)]
        ),
        overlap=(recipe.overlap,) * 3,
        validated_on=seen_ranges([*cubes, *rehearsal]),
    )

    def write() -> None:
        say(figures)
        told = dataclasses.replace(checkpoint, figures=figures)
        save_checkpoint(out / "latest", told, load_weights(last))
        text = json.dumps(figures, indent=1) + "\n"
        (out / "figures.json").write_text(text, "utf-8")

    # Enough to ship; what follows tells more of it.
    write()
    by_fold: list[Answer] = []
    for number, held in enumerate(folds(len(cubes), recipe.folds)):
        run = out / f"fold-{number}"
        kept = [c for i, c in enumerate(cubes) if i not in held]
        out_of_it = [cubes[i] for i in held]
        _, answers = _fine_tuned(
            recipe, run, 3 + number, kept, seen, rehearsal, brain, out_of_it, say
        )
        by_fold += answers
    figures["five_folds"] = dataclasses.asdict(_score(cubes, by_fold, known))
    write()
    np.savez_compressed(
        out / "held_out.npz",
        names=np.array([c.name for c in cubes]),
        halves=np.stack(own),
        halves_in_brain=np.stack(in_brain),
        folds=np.stack(by_fold),
    )
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
    "--tracings",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of SWC files in voxels (Gold166's): shapes for the simulator.",
)
@click.option(
    "--brain",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TRAILMAP's unlabelled volume, whole_brain_crop_303.tif.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the runs and of the model.",
)
def main(cubes: Path, tracings: Path | None, brain: Path, out: Path) -> None:
    """Make the default model."""
    try:
        make(Recipe(), cubes, tracings, brain, out)
    except NeurodeployError as error:
        click.echo(f"neurodeploy: {error}", err=True)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
