"""Five folds over TRAILMAP's cubes: the default network and a ViT-S UNETR, alike.

    .venv-peers/bin/python benchmarks/folds.py CUBES OUT

The network of `peers.py`, MONAI's UNETR on a ViT-S, and the default one are trained on
the same simulated volumes, and from there on eight of the ten cubes, with some of
those volumes; the other two are answered, five times over. Steps, samples, loss,
schedule and voxels of a step are the same; learning rates are each network's own,
those of `cost.py`. Shorter than the training of the model that ships, without its
unlabelled tissue and thinned axons: the figures compare two networks. What is made is
kept in OUT, and a run that was stopped goes on there. The answer is checked: raw
intensity on the same voxels has to give what it is known to give.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from _results import load, save, stamp, table
from _unetr_training import CONFIG, new_unetr, train_unetr
from cost import DEFAULT, RAW, UNETR, score
from safetensors.torch import load_file, save_file
from torch import nn

from neurodeploy.data import AnnotatedVolume
from neurodeploy.networks import Network, NetworkConfig, cost
from neurodeploy.training import TrainSettings, load_checkpoint, predict, train
from neurodeploy.training.default import Recipe, simulated_volumes
from neurodeploy.training.trailmap import as_in_its_brain, folds, read_cubes

#: Crops of a fine-tuning from the cubes and from simulated volumes.
SHARES = {"trailmap": 0.5, "light-sheet": 0.33, "confocal": 0.17}

Trained = tuple[nn.Module, NetworkConfig]
#: A network trained with these settings on these volumes, from another or anew.
Train = Callable[[TrainSettings, list[AnnotatedVolume], Path | None], Trained]


def train_default(
    settings: TrainSettings, volumes: list[AnnotatedVolume], start: Path | None
) -> Trained:
    """Train ours; the checkpoint is ``settings.out`` / last."""
    if start is not None:
        settings = dataclasses.replace(settings, init=str(start / "last"))
    last = Path(settings.out) / "last"
    if not last.is_dir():
        train(settings, volumes, resume=Path(settings.out).exists())
    network, checkpoint = load_checkpoint(last)
    return network, checkpoint.network


def unetr_trainer(rate: float) -> Train:
    """Trains the UNETR, in the first training at this rate; later ones as ours."""

    def train_one(
        settings: TrainSettings, volumes: list[AnnotatedVolume], start: Path | None
    ) -> Trained:
        weights = Path(settings.out) / "weights.safetensors"
        network = new_unetr()
        if weights.is_file():
            network.load_state_dict(load_file(weights))
            return network.eval(), CONFIG
        peak = rate
        if start is not None:
            network.load_state_dict(load_file(start / weights.name))
            peak *= settings.learning_rate / first_learning_rate()
        network = train_unetr(settings, volumes, peak, network).network
        weights.parent.mkdir(parents=True)
        save_file(network.state_dict(), weights)
        return network, CONFIG

    return train_one


def first_learning_rate() -> float:
    """Of ours on simulated volumes, as in `cost.py`."""
    return 1.5e-3


def first_settings(out: Path, steps: int) -> TrainSettings:
    """As `cost.py` trains."""
    return TrainSettings(
        out=str(out), steps=steps, batch=4, learning_rate=first_learning_rate(),
        warmup=steps // 6, ema=0.98, workers=1, save_every=steps,
        validate_every=steps, network=DEFAULT,
    )  # fmt: skip


def fold_settings(out: Path, steps: int, number: int) -> TrainSettings:
    """As the default model's recipe fine-tunes, but for the length and the average."""
    recipe = Recipe(cube_steps=steps)
    settings = recipe.cube_settings(out, out, number, SHARES)
    return dataclasses.replace(settings, init="scratch", ema=0.98)


def folded(
    train_one: Train,
    folder: Path,
    steps: tuple[int, int],
    simulated: list[AnnotatedVolume],
    cubes: list[AnnotatedVolume],
) -> list[np.ndarray]:
    """Each cube's probabilities, of the network that has not seen it."""
    begun = folder / "simulated"
    train_one(first_settings(begun, steps[0]), simulated, None)
    answers: dict[int, np.ndarray] = {}
    for number, held in enumerate(folds(len(cubes), 5)):
        known = [cube for i, cube in enumerate(cubes) if i not in held]
        volumes = [*known, *map(as_in_its_brain, known), *simulated[::4]]
        settings = fold_settings(folder / f"fold-{number}", steps[1], number)
        network, config = train_one(settings, volumes, begun)
        for i in held:
            cube = cubes[i]
            answers[i] = predict(network, config, cube.image, cube.normalisation)
        print(f"{folder.name}: fold {number + 1} of 5", flush=True)
    return [answers[i] for i in range(len(cubes))]


def price(name: str) -> float:
    """Of a network, FLOP per voxel."""
    if name == "default":
        return cost(Network(DEFAULT), DEFAULT).flop_per_voxel
    from _unetr import Size, flop_per_tile

    return flop_per_tile(new_unetr(), Size(tile=CONFIG.tile[0])) / CONFIG.tile[0] ** 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cubes", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=300, help="on simulated volumes")
    parser.add_argument("--cube-steps", type=int, default=150)
    parser.add_argument("--volumes", type=int, default=40)
    parser.add_argument("--rate", type=float, help="of the UNETR; else of cost.json")
    options = parser.parse_args()
    if find_spec("einops") is None:
        raise SystemExit(f"{UNETR} wants einops: use the environment of peers_env.sh")
    if options.rate is None:
        rows = (load("cost") or {"rows": []})["rows"]
        rates = [row["learning_rate"] for row in rows if row["network"] == UNETR]
        if not rates:
            raise SystemExit(
                f"results/cost.json holds no {UNETR}: name its learning rate with "
                f'--rate, or run cost.py CUBES --networks "{UNETR}" first'
            )
        (options.rate,) = rates
    started = stamp()
    cubes = read_cubes(options.cubes)
    raw = score(cubes, [c.image.astype(np.float32) / 65535 for c in cubes])
    assert abs(raw.average_precision - RAW) < 1e-3, raw
    confocal = options.volumes // 3
    recipe = Recipe(seed=1, light_sheet=options.volumes - confocal, confocal=confocal)
    # The same folder with other words would mix two runs.
    said = {**vars(options), "cubes": options.cubes.name, "out": None}
    words = json.dumps(said)
    kept = options.out / "words.json"
    options.out.mkdir(parents=True, exist_ok=True)
    if kept.is_file() and kept.read_text() != words:
        raise SystemExit(f"{options.out} was begun with {kept.read_text()}")
    kept.write_text(words)
    simulated = simulated_volumes(recipe, None)
    steps = (options.steps, options.cube_steps)
    rows = []
    trainers = {"default": train_default, UNETR: unetr_trainer(options.rate)}
    for name, train_one in trainers.items():
        folder = options.out / name.replace(" ", "-")
        found = score(cubes, folded(train_one, folder, steps, simulated, cubes))
        rows.append(
            {
                "network": name,
                "kflop_per_voxel": price(name) / 1e3,
                "average_precision": found.average_precision,
                "dice": found.dice,
            }
        )
        print(rows[-1], flush=True)
    values = {
        "rows": rows,
        "steps": options.steps,
        "cube_steps": options.cube_steps,
        "volumes": len(simulated),
        "unetr_learning_rate": options.rate,
        "raw": {"average_precision": raw.average_precision, "dice": raw.dice},
    }
    save("folds", values, started)
    head = ["network", "kFLOP per voxel", "AP", "best Dice"]
    print(
        table(
            head,
            [
                (
                    r["network"],
                    f"{r['kflop_per_voxel']:.1f}",
                    f"{r['average_precision']:.3f}",
                    f"{r['dice']:.3f}",
                )
                for r in rows
            ],
        )
    )


if __name__ == "__main__":
    main()
