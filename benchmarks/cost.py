"""What a cheaper or a dearer network would be worth: quality against kFLOP per voxel.

    python benchmarks/cost.py CUBES [--steps 300]
    .venv-peers/bin/python benchmarks/cost.py CUBES --networks "ViT-S UNETR"

Networks of three costs, the default's in the middle, and where it is named MONAI's
UNETR on a ViT-S, the network of `peers.py`, each trained anew on the same simulated
volumes for the same few steps of equally many voxels, and scored on TRAILMAP's ten
cubes, of which none has seen a voxel. The UNETR is trained at two learning rates, of
which the better one counts. Networks that are not named keep the figures that they
have, where the default one comes out as it did then. Short trainings: they rank the
networks and are no figure of the model that ships, which trains for longer and then on
cubes. Time is that of the network with nothing around it, per voxel, in the engines
that a CPU has and in torch. The answer is checked: raw intensity on the same voxels has
to give what it is known to give.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from _network_times import ENGINES, TORCH, seconds_per_voxel
from _results import load, save, stamp, table
from _unetr_training import CONFIG, SIZE, new_unetr, train_unetr

from neurodeploy.data import IGNORE
from neurodeploy.networks import Network, NetworkConfig, cost
from neurodeploy.training import (
    TrainSettings,
    load_checkpoint,
    pooled_score,
    predict,
    train,
)
from neurodeploy.training.default import Recipe, simulated_volumes
from neurodeploy.training.trailmap import read_cubes

DEFAULT = NetworkConfig()
NETWORKS = {
    "lighter": replace(
        DEFAULT, depth=2, taps=(1, 2), half_channels=16, head_channels=16,
        quarter_channels=32, tap_channels=16,
    ),
    "default": DEFAULT,
    "heavier": replace(
        DEFAULT, depth=8, taps=(4, 8), half_channels=48, head_channels=48,
        quarter_channels=96,
    ),
}  # fmt: skip
#: The network of `peers.py`, and the learning rates that it is trained at.
UNETR = "ViT-S UNETR"
UNETR_RATES = (3e-4, 1e-3)
#: Average precision of raw intensity over the cubes' labelled voxels.
RAW = 0.8755


def config_of(name):
    """A network's configuration as a result holds it."""
    if name == UNETR:
        return asdict(SIZE)
    return json.loads(json.dumps(asdict(NETWORKS[name])))


def require_the_same_networks(rows):
    """Refuse to set times of other networks beside figures that were trained.

    Raises
    ------
    SystemExit
        A network is of another configuration now, or its result does not say of which.
    """
    for row in rows:
        name = row["network"]
        now = config_of(name) if name in (*NETWORKS, UNETR) else {}
        then = row.get("config")
        if then is None:
            raise SystemExit(
                f"results/cost.json does not say how its network {name!r} was "
                "configured, so its time cannot be taken again: run without --times"
            )
        changed = sorted(k for k in {*now, *then} if now.get(k) != then.get(k))
        if changed:
            raise SystemExit(
                f"the network {name!r} of results/cost.json had another "
                f"{', '.join(changed)}: its time cannot be set beside figures of "
                "that one; run without --times, which trains all of them anew"
            )


def kept_rows(before, rows, said):
    """Rows of an earlier result to stand beside these, of networks not trained now.

    Of the same trainings only: as many steps on as many volumes, by the same
    configurations, and the default network scored then as it is scored now.
    """
    if before is None or any(before.get(key) != said[key] for key in said):
        return []
    then = {row["network"]: row for row in before["rows"]}
    now = {row["network"]: row for row in rows}
    figures = ("config", "average_precision", "dice")
    first = then.get("default", {})
    if any(first.get(k) != now["default"][k] for k in figures):
        return []
    kept = [row for name, row in then.items() if name not in now]
    require_the_same_networks(kept)
    return kept


def score(cubes, answers):
    known = [cube.labels != IGNORE for cube in cubes]
    truth = [c.labels[k] == 1 for c, k in zip(cubes, known, strict=True)]
    said = [a[k] for a, k in zip(answers, known, strict=True)]
    return pooled_score(np.concatenate(said), np.concatenate(truth))


def networks_of(names):
    """Each network with random weights, and its tile."""
    found = {n: (Network(NETWORKS[n]), DEFAULT.tile) for n in names if n in NETWORKS}
    if UNETR in names:
        found[UNETR] = (new_unetr(), CONFIG.tile)
    return found


def ratio(row, rows, library):
    """A network's time for a voxel, in that of the default one in the same library."""
    default = next(r for r in rows if r["network"] == "default")
    return row["seconds_per_voxel"][library] / default["seconds_per_voxel"][library]


def unetr_row(settings, volumes, cubes):
    """The better of its trainings, both kept."""
    tries = []
    for rate in UNETR_RATES:
        made = train_unetr(settings, volumes, rate)
        found = score(cubes, [predict(made.network, CONFIG, c.image) for c in cubes])
        tries.append((rate, made, found))
        print(f"{UNETR} at {rate}: {found}", flush=True)
    rate, made, found = max(tries, key=lambda one: one[2].average_precision)
    return {
        "network": UNETR,
        "config": config_of(UNETR),
        "kflop_per_voxel": made.flop_per_voxel / 1e3,
        "parameters": made.parameters,
        "average_precision": found.average_precision,
        "dice": found.dice,
        "learning_rate": rate,
        "tried": {str(r): f.average_precision for r, _, f in tries},
    }


def trained(options):
    """Train each network and score it; rows, number of volumes, raw intensity."""
    cubes = read_cubes(options.cubes)
    raw = score(cubes, [c.image.astype(np.float32) / 65535 for c in cubes])
    assert abs(raw.average_precision - RAW) < 1e-3, raw
    confocal = options.volumes // 3
    recipe = Recipe(seed=1, light_sheet=options.volumes - confocal, confocal=confocal)
    volumes = simulated_volumes(recipe, None)
    rows = []
    for name, config in NETWORKS.items():
        if name not in options.networks:
            continue
        with tempfile.TemporaryDirectory() as folder:
            settings = TrainSettings(
                out=str(Path(folder) / "run"), steps=options.steps, batch=4,
                learning_rate=1.5e-3, warmup=options.steps // 6, ema=0.98, workers=1,
                save_every=options.steps, validate_every=options.steps, network=config,
            )  # fmt: skip
            result = train(settings, volumes)
            network, checkpoint = load_checkpoint(result.checkpoint)
        found = score(
            cubes, [predict(network, checkpoint.network, c.image) for c in cubes]
        )
        price = cost(Network(config), config)
        rows.append(
            {
                "network": name,
                "config": config_of(name),
                "kflop_per_voxel": price.flop_per_voxel / 1e3,
                "parameters": price.parameters,
                "average_precision": found.average_precision,
                "dice": found.dice,
            }
        )
        print(rows[-1], flush=True)
    if UNETR in options.networks:
        rows.append(unetr_row(settings, volumes, cubes))
        print(rows[-1], flush=True)
    return (
        rows,
        len(volumes),
        {"average_precision": raw.average_precision, "dice": raw.dice},
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cubes", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--volumes", type=int, default=40)
    every = [*NETWORKS, UNETR]
    parser.add_argument("--networks", nargs="+", choices=every, default=[*NETWORKS])
    parser.add_argument("--times", action="store_true", help="Only time them again.")
    options = parser.parse_args()
    options.networks.append("default")  # which the others are held against
    before = load("cost")
    there = [row["network"] for row in (before or {"rows": []})["rows"]]
    if UNETR in [*options.networks, *there] and find_spec("einops") is None:
        raise SystemExit(f"{UNETR} wants einops: use the environment of peers_env.sh")
    started = stamp()
    if options.times:
        require_the_same_networks(before["rows"])
        rows, volumes, raw = before["rows"], before["volumes"], before["raw"]
        options.steps = before["steps"]
    else:
        rows, volumes, raw = trained(options)
        said = {"steps": options.steps, "volumes": volumes}
        rows += kept_rows(before, rows, said)
        order = [*NETWORKS, UNETR]
        rows.sort(key=lambda row: order.index(row["network"]))
    seconds = seconds_per_voxel(networks_of([row["network"] for row in rows]))
    for row in rows:
        row.pop("tile_s", None)
        row["seconds_per_voxel"] = seconds[row["network"]]
    libraries = (*ENGINES, TORCH)
    grid = table(
        [
            *("network", "kFLOP per voxel", "parameters, M"),
            *(f"time in {library}" for library in libraries),
            *("AP", "best Dice"),
        ],
        [
            [
                r["network"],
                f"{r['kflop_per_voxel']:.1f}",
                f"{r['parameters'] / 1e6:.2f}",
                *(f"{ratio(r, rows, library):.2f} ×" for library in libraries),
                f"{r['average_precision']:.3f}",
                f"{r['dice']:.3f}",
            ]
            for r in rows
        ],
    )
    summary = (
        f"**What a network of another cost is worth** ({options.steps} steps on "
        f"{volumes} simulated volumes each, scored on TRAILMAP's cubes that none "
        f"has seen; raw intensity {raw['average_precision']:.3f} / "
        f"{raw['dice']:.3f}; a ranking, not the figures of the model that ships)\n\n"
        f"{grid}"
    )
    values = {"rows": rows, "volumes": volumes, "raw": raw, "steps": options.steps}
    save("cost", {**values, "summary": summary}, started)
    print(grid)


if __name__ == "__main__":
    main()
