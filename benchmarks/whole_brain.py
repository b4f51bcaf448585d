"""Time, cost and disk of a whole brain, simulated from figures that were measured.

    python benchmarks/whole_brain.py                      # writes whole_brain.md
    python benchmarks/whole_brain.py --storage-gb-s 5 --price-per-hour 0.20

The planner's own grid for the real shapes, shared among workers as `--worker I/N`
shares it: whole layers of output units, each with the tiles and the planes that its
region needs. A worker computes and reads at once; the storage is shared by all. Seconds
of a tile and of what is around it come from `results/peers.json`; a rate that nobody
measured here is marked as assumed.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from _results import load, save, stamp, table

from neurodeploy_runtime import Axis, Box, TilePlan
from neurodeploy_runtime.volumes import required_bytes

Shape = tuple[int, int, int]

#: Shapes whose voxels are 10^12 and 10^13, as deep as cleared brains are imaged.
VOLUMES: dict[str, Shape] = {
    "10^12": (5_000, 12_500, 16_000),
    "10^13": (10_000, 25_000, 40_000),
}
WORKERS = (1, 8, 64)
#: Planes of one layer of output units: OME-Zarr's shards, and a TIFF's stripes.
LAYERS = {"OME-Zarr": 256, "TIFF": 64}


@dataclass(frozen=True)
class Machine:
    """One worker: seconds of a tile, all that runs around it included."""

    name: str
    tile_s: float
    tile: Shape
    overlap: float
    measured: bool


@dataclass(frozen=True)
class Ended:
    """What a run took."""

    seconds: float
    machine_hours: float
    tiles: int
    redundancy: float
    read_bytes: int
    written_bytes: int
    read_s: float
    limit: str


def shares(depth: int, layer: int, workers: int) -> list[tuple[int, int]]:
    """Planes of each worker, as `--worker I/N` gives them: whole layers of units."""
    rows = -(-depth // layer)
    used = min(workers, rows)
    return [
        (i * rows // used * layer, min((i + 1) * rows // used * layer, depth))
        for i in range(used)
    ]


def simulate(
    machine: Machine, shape: Shape, workers: int, storage: float, voxel_bytes: int
) -> Ended:
    """A run of `workers` such machines over one volume on one storage."""
    plan = TilePlan(
        shape,
        tuple(Axis(n, 0, round(n * machine.overlap)) for n in machine.tile),  # type: ignore[arg-type]
    )
    parts = shares(shape[0], LAYERS["OME-Zarr"], workers)
    regions = [Box((a, 0, 0), (b, *shape[1:])) for a, b in parts]
    tiles = [plan.tiles_in(region) for region in regions]
    axis = plan.axes[0]
    planes = 0
    for a, b in parts:
        layers = axis.meeting(a, b, shape[0])
        planes += (
            axis.reads(layers[-1], shape[0])[1] - axis.reads(layers[0], shape[0])[0]
        )
    read = planes * shape[1] * shape[2] * voxel_bytes
    # With its coarser levels; as if nothing could be compressed.
    written = required_bytes("ome-zarr", shape, "uint8")
    compute_s = max(tiles) * machine.tile_s
    storage_s = (read + written) / storage
    seconds = max(compute_s, storage_s)
    even = sum(tiles) / workers
    if storage_s > compute_s:
        limit = "storage"
    elif len(parts) < workers:
        limit = f"{len(parts)} layers of units for {workers} workers"
    elif max(tiles) > 1.1 * even:
        limit = "uneven shares: whole layers of units"
    else:
        limit = "the network"
    return Ended(
        seconds=seconds,
        machine_hours=seconds * len(parts) / 3600,
        tiles=sum(tiles),
        redundancy=sum(tiles) * prod(plan.tile) / prod(shape),
        read_bytes=read,
        written_bytes=written,
        read_s=storage_s,
        limit=limit,
    )


def measured_machines() -> list[Machine]:
    """What `peers.py` measured here: wall time over tiles, all stages included."""
    found = load("peers")
    if found is None:
        return []
    machines = []
    for row in found["rows"]:
        name = row["variant"]
        if not name.startswith(("neurodeploy, O", "default")):
            continue
        default = name.startswith("default")
        kind = found["default"] if default else None
        tile = tuple(kind["tile"] if kind else [found["size"]["tile"]] * 3)
        machines.append(
            Machine(
                name=name,
                tile_s=row["wall_s"]["median"] / row["tiles"],
                tile=tile,
                overlap=kind["overlap"] if kind else found["overlap"],
                measured=True,
            )
        )
    return machines


def days(seconds: float) -> str:
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * 86400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def report(options: argparse.Namespace) -> tuple[str, list[dict[str, Any]]]:
    """The Markdown page, and its rows as values."""
    machines = measured_machines()
    if not machines:
        raise SystemExit("results/peers.json is not there: run benchmarks/peers.py")
    fastest = min(machines, key=lambda m: m.tile_s / prod(m.tile))
    for rate in options.assumed:
        plan_voxels = prod(fastest.tile) * (1 - fastest.overlap) ** 3
        machines.append(
            Machine(
                f"assumed: a worker of {rate:g} Mvoxel/s",
                plan_voxels / (rate * 1e6),
                fastest.tile,
                fastest.overlap,
                measured=False,
            )
        )
    values: list[dict[str, Any]] = []
    pages = []
    for name, shape in VOLUMES.items():
        rows = []
        for machine in machines:
            for workers in WORKERS:
                for storage in options.storage_gb_s:
                    ended = simulate(machine, shape, workers, storage * 1e9, 2)
                    price = options.price_per_hour * ended.machine_hours
                    cost = f"{price:,.0f}" if machine.measured else "–"
                    values.append(
                        {
                            "volume": name,
                            "machine": machine.name,
                            "measured": machine.measured,
                            "workers": workers,
                            "storage_gb_s": storage,
                            **vars(ended),
                            "cost": price if machine.measured else None,
                        }
                    )
                    rows.append(
                        [
                            machine.name,
                            workers,
                            f"{storage:g}",
                            days(ended.seconds),
                            cost,
                            f"{ended.redundancy:.2f}",
                            ended.limit,
                        ]
                    )
        raw = prod(shape) * 2
        disk = {
            kind: required_bytes(kind, shape, "uint8") for kind in ("ome-zarr", "tiff")
        }
        layers = -(-shape[0] // LAYERS["OME-Zarr"])
        z, y, x = shape
        pages += [
            f"## {name} voxels: {z} × {y} × {x}",
            "",
            f"Input, 16 bits: {raw / 1e12:.1f} TB. Output, at most: "
            f"{disk['ome-zarr'] / 1e12:.2f} TB as OME-Zarr with its pyramid before "
            f"compression, {disk['tiff'] / 1e12:.2f} TB as TIFF; a unit of background "
            f"takes no disk in OME-Zarr. {layers} layers of OME-Zarr units, "
            f"{-(-shape[0] // LAYERS['TIFF'])} of TIFF: no more workers can share it.",
            "",
            table(
                [
                    "worker",
                    "workers",
                    "GB/s",
                    "time",
                    "cost",
                    "× voxels",
                    "held back by",
                ],
                rows,
            ),
            "",
        ]
    return "\n".join(pages), values


INTRODUCTION = """# A whole brain

Written by `python benchmarks/whole_brain.py` from `results/peers.json` and
`results/whole_brain.json`; not typed. The planner's own grid and shares are walked for
the real shapes; what is simulated is time: tiles of the busiest worker times the
measured wall time of a tile (all stages included), or all bytes over the storage's
bandwidth, whichever is longer: those that are read, and those of OME-Zarr output with
its pyramid before compression. Cost: {price} per hour and machine of the kind that was
measured ({cpu}, {cores} cores), a parameter. Rows marked *assumed* take the rate as
given and say what storage and shares then allow; no GPU was measured for this page.

Where it stops scaling: a share is whole layers of output units, so a volume of n layers
takes at most n workers, and shares of 2 against 1 layers leave half of the workers
waiting; neighbouring shares both run the tiles on their border; and beyond a rate the
storage decides, whatever computes.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storage-gb-s", type=float, nargs="+", default=[0.5, 5.0])
    parser.add_argument("--price-per-hour", type=float, default=0.10)
    parser.add_argument(
        "--assumed", type=float, nargs="*", default=[10.0, 100.0], help="Mvoxel/s"
    )
    options = parser.parse_args()
    started = stamp()
    pages, values = report(options)
    where = (load("peers") or {})["machine"]
    page = (
        INTRODUCTION.format(
            price=f"{options.price_per_hour:.2f}",
            cpu=where["cpu"],
            cores=where["cores"],
        )
        + pages
    )
    Path(__file__).with_suffix(".md").write_text(page)
    save("whole_brain", {"rows": values}, started)
    print(page)


if __name__ == "__main__":
    main()
