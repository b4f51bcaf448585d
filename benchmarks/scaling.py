"""What a run costs as volume, overlap, tile, batch, threads, format and cap change.

    python benchmarks/scaling.py                     # every part
    python benchmarks/scaling.py --parts depth cap   # some
    python benchmarks/scaling.py --tiny              # every part in seconds, no figures

Parts: size, overlap, tile, batch, format, depth, cap, seams, wall. Runs go from file
to file, each in a process of its own, with the identity as network (NumPy), so that
what is measured is ours; its output is compared with its input, every voxel of it.
`cap` also runs a small network of convolutions in ONNX Runtime, which gives its input
back too. `batch`, `seams` and `wall` need a bundle: the one that ships, or --model.
`wall` holds a run from file to file against its tiles alone, timed right before and
after it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from _bundles import convolution_bundle, identity_bundle
from _process import answer, in_fresh_process, metered
from _results import load, save, stamp, table
from _stolen import StolenTime
from numpy.typing import NDArray

from neurodeploy_runtime import (
    Box,
    DeviceError,
    EngineSettings,
    Normalisation,
    NumpyEngine,
    Segmenter,
    SegmentSettings,
    default_bundle_path,
    load_bundle,
    open_engine,
    open_volume,
)
from neurodeploy_runtime._rss import peak_rss
from neurodeploy_runtime.measure import agreement, tile_seconds

Shape = tuple[int, int, int]

PARTS = ("size", "overlap", "tile", "batch", "format", "depth", "cap", "seams", "wall")
#: Overlaps that are compared, the largest first.
OVERLAPS = (0.5, 0.375, 0.25, 0.125, 0.0)
#: Tiles along each axis without overlap. Of fewer, some of these overlaps need equally
#: many tiles, and would seem to cost the same: 3 do at 0.25 and at 0.125.
ACROSS = 5
SUFFIXES = {
    "TIFF": ".tif",
    "OME-Zarr": ".ome.zarr",
    "precomputed": ".precomputed",
    "v3draw": ".v3draw",
}


# -- volumes that cost nothing to make and to check ------------------------------------


def plane(z: int, height: int, width: int) -> NDArray[np.uint8]:
    """Plane z: noise that no plane shares, and that nobody has to keep."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    return np.roll(noise, 97 * z) + np.uint8(z % 251)


def write_volume(path: Path, shape: Shape) -> None:
    def planes() -> Iterator[NDArray[np.uint8]]:
        for z in range(shape[0]):
            yield plane(z, *shape[1:])

    tifffile.imwrite(
        path,
        planes(),
        shape=shape,
        dtype=np.uint8,
        bigtiff=True,
        photometric="minisblack",
        contiguous=True,
        ome=True,  # precomputed output asks for a voxel size
        metadata={
            "axes": "ZYX",
            **{f"PhysicalSize{axis}": 1.0 for axis in "XYZ"},
            **{f"PhysicalSize{axis}Unit": "µm" for axis in "XYZ"},
        },
    )


def wrong_voxels(path: Path, shape: Shape) -> int:
    """Voxels of a result that differ from the volume, all of it."""
    wrong = 0
    with open_volume(path) as result:
        assert result.shape == shape
        for z in range(0, shape[0], 64):
            stop = min(z + 64, shape[0])
            part = result.read(Box((z, 0, 0), (stop, *shape[1:])))
            for i, found in enumerate(part):
                wrong += int(np.count_nonzero(found != plane(z + i, *shape[1:])))
    return wrong


# -- one run ---------------------------------------------------------------------------


def job(values: dict[str, Any]) -> None:
    """Segment a volume with a network that gives its input back, in this process."""
    folder = Path(values["folder"])
    tile: Shape = tuple(values["tile"])
    name = values["network"]
    make = {"identity": identity_bundle, "convolutions": convolution_bundle}[name]
    bundle = make(folder / f"{name}-{tile}", tile)
    settings = SegmentSettings(
        output_kind="probability",
        normalisation=Normalisation("unit", 0.0, 255.0),
        overlap=values["overlap"],
        memory_bytes=values["memory"],
        engine=EngineSettings("onnxruntime", "cpu", "fp32"),
    )
    engines = [NumpyEngine(bundle)] if name == "identity" else None
    output = Path(values["output"])
    with (
        open_volume(values["input"]) as source,
        Segmenter(bundle, settings, engines=engines) as segmenter,
    ):
        shape = source.shape
        report, figures = metered(
            lambda: segmenter.segment(source, output, overwrite=True)
        )
        highest = peak_rss()
    assert report is not None
    answer(
        {
            **figures,
            "error": None,
            "peak_rss_bytes": highest,
            "planned_bytes": report.memory_plan_bytes,
            "seconds": report.seconds,
            "redundancy": report.redundancy,
            "tiles": report.tiles_run,
            "wrong_voxels": wrong_voxels(output, shape),
        }
    )


class Bench:
    """A folder, and how its runs are made."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.options = options
        self.started = stamp()

    def volume(self, shape: Shape) -> Path:
        path = self.folder / ("-".join(map(str, shape)) + ".ome.tif")
        if not path.exists():
            write_volume(path, shape)
        return path

    def run(
        self,
        shape: Shape,
        *,
        tile: Shape | None = None,
        overlap: float | None = None,
        memory: int | None = None,
        suffix: str = ".tif",
        repeat: int | None = None,
        network: str = "identity",
    ) -> dict[str, Any]:
        """The run of median CPU time of some equal ones."""
        output = self.folder / f"out{suffix}"
        values = {
            "folder": str(self.folder),
            "input": str(self.volume(shape)),
            "output": str(output),
            "tile": tile or self.tile,
            "overlap": overlap,
            "memory": memory,
            "network": network,
        }
        found = []
        for _ in range(repeat or self.options.repeat):
            got = in_fresh_process(__file__, values, threads=1)
            for path in self.folder.glob("out*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if got.get("error"):
                raise SystemExit(f"{values}: {got['error']}")
            if got["wrong_voxels"]:
                raise SystemExit(
                    f"{values}: {got['wrong_voxels']} voxels are wrong, so it is no "
                    "figure"
                )
            found.append(got)
        found.sort(key=lambda one: float(one["cpu_s"]))
        middle = dict(found[len(found) // 2])
        middle["cpu_s_all"] = [one["cpu_s"] for one in found]
        middle["wall_s_all"] = [one["wall_s"] for one in found]
        middle["wrong_voxels"] = max(one["wrong_voxels"] for one in found)
        return {"shape": list(shape), **middle}

    @property
    def tile(self) -> Shape:
        return (16,) * 3 if self.options.tiny else (96,) * 3

    def keep(self, part: str, rows: list[dict[str, Any]], **more: Any) -> None:
        if not self.options.tiny:
            save(f"scaling-{part}", {**more, "rows": rows}, self.started)


def covered(tile: Shape) -> Shape:
    """A volume of which every overlap needs another number of tiles."""
    z, y, x = tile
    return ACROSS * z, ACROSS * y, ACROSS * x


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Exponent of y against x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _ns(run: dict[str, Any]) -> str:
    return f"{run['cpu_s'] / prod(run['shape']) * 1e9:.1f}"


# -- the parts -------------------------------------------------------------------------


def size(bench: Bench) -> None:
    edges = [32, 48] if bench.options.tiny else bench.options.edges
    rows = [bench.run((n, n, n)) for n in edges]
    for edge in edges:
        bench.volume((edge, edge, edge)).unlink()
    exponent = slope([prod(r["shape"]) for r in rows], [r["cpu_s"] for r in rows])
    bench.keep("size", rows, cpu_exponent=exponent)
    print(
        table(
            [
                "edge",
                "wall s",
                "CPU s",
                "CPU ns/voxel",
                "× voxels",
                "peak MiB",
                "wrong",
            ],
            [
                [
                    r["shape"][0],
                    f"{r['wall_s']:.2f}",
                    f"{r['cpu_s']:.2f}",
                    _ns(r),
                    f"{r['redundancy']:.2f}",
                    f"{r['peak_bytes'] / 2**20:.0f}",
                    r["wrong_voxels"],
                ]
                for r in rows
            ],
        )
    )
    print(f"CPU time grows as voxels to the {exponent:.3f}")


def overlap(bench: Bench) -> None:
    shape = covered(bench.tile)
    rows = []
    for share in reversed(OVERLAPS):
        rows.append({"overlap": share, **bench.run(shape, overlap=share)})
    bench.keep("overlap", rows)
    print(
        table(
            [
                "overlap",
                "tiles",
                "× voxels",
                "CPU ns/voxel",
                "CPU ns/tile voxel",
                "wrong",
            ],
            [
                [
                    r["overlap"],
                    r["tiles"],
                    f"{r['redundancy']:.2f}",
                    _ns(r),
                    f"{r['cpu_s'] / prod(shape) / r['redundancy'] * 1e9:.1f}",
                    r["wrong_voxels"],
                ]
                for r in rows
            ],
        )
    )


def tile(bench: Bench) -> None:
    shape: Shape = (40, 40, 40) if bench.options.tiny else (384, 384, 384)
    edges = (8, 16) if bench.options.tiny else (32, 48, 64, 96, 128)
    rows = []
    for edge in edges:
        rows.append({"tile": edge, **bench.run(shape, tile=(edge,) * 3)})
    bench.keep("tile", rows)
    print(
        table(
            ["tile", "tiles", "× voxels", "CPU ns/voxel", "CPU ms/tile", "wrong"],
            [
                [
                    f"{r['tile']}³",
                    r["tiles"],
                    f"{r['redundancy']:.2f}",
                    _ns(r),
                    f"{r['cpu_s'] / r['tiles'] * 1e3:.2f}",
                    r["wrong_voxels"],
                ]
                for r in rows
            ],
        )
    )


def output_format(bench: Bench) -> None:
    shape: Shape = (40, 40, 40) if bench.options.tiny else (512, 512, 512)
    rows = []
    for name, suffix in SUFFIXES.items():
        rows.append({"format": name, **bench.run(shape, suffix=suffix)})
    bench.keep("format", rows)
    print(
        table(
            ["format", "wall s", "CPU s", "write s", "finish s", "peak MiB", "wrong"],
            [
                [
                    r["format"],
                    f"{r['wall_s']:.2f}",
                    f"{r['cpu_s']:.2f}",
                    f"{r['seconds'].get('write', 0):.2f}",
                    f"{r['seconds'].get('finish', 0):.2f}",
                    f"{r['peak_bytes'] / 2**20:.0f}",
                    r["wrong_voxels"],
                ]
                for r in rows
            ],
        )
    )


def depth(bench: Bench) -> None:
    tiny = bench.options.tiny
    planes, across = ((40, 80), 64) if tiny else ((256, 512, 1024, 2048), 512)
    rows = []
    for count in planes:
        rows.append(bench.run((count, across, across), repeat=1))
        bench.volume((count, across, across)).unlink()
    change = rows[-1]["peak_rss_bytes"] / rows[0]["peak_rss_bytes"] - 1
    bench.keep("depth", rows, change=change)
    print(
        table(
            ["planes", "peak RSS MiB", "over held MiB", "wrong"],
            [
                [
                    r["shape"][0],
                    f"{r['peak_rss_bytes'] / 2**20:.1f}",
                    f"{r['peak_bytes'] / 2**20:.1f}",
                    r["wrong_voxels"],
                ]
                for r in rows
            ],
        )
    )
    print(f"{planes[-1]} planes take {change:+.2%} of the memory of {planes[0]}")


def cap(bench: Bench) -> None:
    tiny = bench.options.tiny
    shape: Shape = (40, 64, 64) if tiny else tuple(bench.options.cap_shape)
    cases = [("convolutions", 1, ".ome.zarr"), ("identity", 1, ".tif")]
    if not tiny:
        cases += [("identity", 4, ".tif"), ("identity", 2, ".tif")]
        cases += [("identity", 1, ".ome.zarr"), ("convolutions", 1, ".tif")]
        cases += [("convolutions", 2, ".tif"), ("convolutions", 4, ".ome.zarr")]
    cases = cases[bench.options.cap_skip :]
    # A run takes minutes: what an earlier one found of other cases stays.
    earlier = [] if tiny else (load("scaling-cap") or {"rows": []})["rows"]
    rows = []
    for network, gigabytes, suffix in cases:
        memory = gigabytes * 10**9
        run = bench.run(shape, memory=memory, suffix=suffix, repeat=1, network=network)
        given = {"network": network, "cap_bytes": memory, "suffix": suffix}
        rows.append({**given, **run})
        print(_cap_table(rows[-1:]), flush=True)
        ours = [_case(row) for row in rows]
        others = [row for row in earlier if _case(row) not in ours]
        bench.keep("cap", others + rows)
    bench.volume(shape).unlink()
    print(_cap_table(rows))


def _case(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["network"], row["cap_bytes"], row["suffix"]


def _cap_table(rows: list[dict[str, Any]]) -> str:
    return table(
        [
            "network",
            "--memory",
            "output",
            "peak RSS GB",
            "planned GB",
            "× voxels",
            "CPU s",
            "wrong",
        ],
        [
            [
                r["network"],
                f"{r['cap_bytes'] / 1e9:.0f} GB",
                r["suffix"],
                f"{r['peak_rss_bytes'] / 1e9:.2f}",
                f"{r['planned_bytes'] / 1e9:.2f}",
                f"{r['redundancy']:.2f}",
                f"{r['cpu_s']:.0f}",
                r["wrong_voxels"],
            ]
            for r in rows
        ],
    )


def batch(bench: Bench) -> None:
    """A tile in the engine alone, by batch and threads; what both cost or give."""
    if not bench.options.model.is_dir():
        print("batch: not run, there is no bundle: pass --model")
        return
    bundle = load_bundle(bench.options.model)
    rows = []
    counts = sorted({1, os.cpu_count() or 1})
    for engine in ("onnxruntime", "openvino"):
        for threads in counts:
            for n in (1, 2, 4):
                asked = EngineSettings(engine, "cpu", "fp32", threads, n)  # type: ignore[arg-type]
                with open_engine(bundle, asked) as opened:
                    seconds = tile_seconds(opened, 1 if bench.options.tiny else 7)
                rows.append(
                    {
                        "engine": engine,
                        "threads": threads,
                        "batch": n,
                        "tile_s": statistics.median(seconds),
                        "tile_s_all": seconds,
                    }
                )
    bench.keep("batch", rows, bundle=bundle.spec.name, digest=bundle.digest)
    print(
        table(
            ["engine", "threads", "batch", "ms a tile"],
            [
                [r["engine"], r["threads"], r["batch"], f"{r['tile_s'] * 1e3:.1f}"]
                for r in rows
            ],
        )
    )


def seams(bench: Bench) -> None:
    """What overlap buys: labels against the truth and against overlap 0.5."""
    if not bench.options.model.is_dir():
        print("seams: not run, there is no bundle: pass --model")
        return
    from neurodeploy.simulate import SampleSettings, write_sample

    bundle = load_bundle(bench.options.model)
    shape = covered(bundle.spec.tile)
    volume = bench.folder / "simulated.tif"
    truth = bench.folder / "truth.tif"
    write_sample(volume, SampleSettings(shape, seed=5), truth=truth)
    rows = []
    for share in OVERLAPS:
        output = bench.folder / f"seams-{share}.tif"
        settings = SegmentSettings(overlap=share)
        with open_volume(volume) as source, Segmenter(bundle, settings) as segmenter:
            report = segmenter.segment(source, output, overwrite=True)
        assert report is not None
        same, dice = agreement(bench.folder / "seams-0.5.tif", output)
        rows.append(
            {
                "overlap": share,
                "redundancy": report.redundancy,
                "tiles": report.tiles_run,
                "mvoxel_per_s": report.mvoxel_per_s,
                "same_labels": same,
                "dice": dice,
                "dice_truth": agreement(truth, output)[1],
                "foreground": report.foreground_voxels / prod(shape),
            }
        )
    bench.keep(
        "seams", rows, shape=shape, bundle=bundle.spec.name, digest=bundle.digest
    )
    print(
        table(
            [
                "overlap",
                "× voxels",
                "Mvoxel/s",
                "labels as at 0.5",
                "Dice with 0.5",
                "Dice with truth",
            ],
            [
                [
                    r["overlap"],
                    f"{r['redundancy']:.2f}",
                    f"{r['mvoxel_per_s']:.3f}",
                    f"{r['same_labels']:.5f}",
                    f"{r['dice']:.4f}",
                    f"{r['dice_truth']:.4f}",
                ]
                for r in rows
            ],
        )
    )


#: What `wall` runs in, and the edges of its volumes.
CPU_ENGINES = (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))
WALL_EDGES = (168, 256, 384)


def wall(bench: Bench) -> None:
    """A run over its tiles in isolation: what reading, blending and writing add."""
    if not bench.options.model.is_dir():
        print("wall: not run, there is no bundle: pass --model")
        return
    from neurodeploy.simulate import SampleSettings, write_sample

    bundle = load_bundle(bench.options.model)
    calls = 1 if bench.options.tiny else 5
    rows = []
    for edge in (48,) if bench.options.tiny else WALL_EDGES:
        volume = bench.folder / f"simulated-{edge}.tif"
        write_sample(volume, SampleSettings((edge,) * 3, seed=5))
        for engine, precision in CPU_ENGINES:
            asked = EngineSettings(engine, "cpu", precision)  # type: ignore[arg-type]
            try:
                segmenter = Segmenter(bundle, SegmentSettings(engine=asked))
            except DeviceError as error:
                print(f"{engine} {precision}: not run, {error}")
                continue
            with open_volume(volume) as source, segmenter:
                alone = tile_seconds(segmenter.engines[0], calls)
                watch = StolenTime()
                began = time.perf_counter()
                output = bench.folder / "wall.tif"
                report = segmenter.segment(source, output, overwrite=True)
                seconds = time.perf_counter() - began
                stolen = watch.share
                alone += tile_seconds(segmenter.engines[0], calls)
            assert report is not None
            tile_s = statistics.median(alone)
            rows.append(
                {
                    "engine": f"{engine} {precision}",
                    "shape": [edge] * 3,
                    "tiles": report.tiles_run,
                    "wall_s": seconds,
                    "tile_s": tile_s,
                    "over_tiles": seconds / (report.tiles_run * tile_s),
                    "engine_busy": report.engine_busy,
                    "stolen": stolen,
                }
            )
        volume.unlink()
    bench.keep("wall", rows, bundle=bundle.spec.name, digest=bundle.digest)
    print(
        table(
            ["engine", "edge", "tiles", "ms a tile", "wall s", "wall / tiles", "busy"],
            [
                [
                    r["engine"],
                    r["shape"][0],
                    r["tiles"],
                    f"{r['tile_s'] * 1e3:.1f}",
                    f"{r['wall_s']:.2f}",
                    f"{r['over_tiles']:.3f}",
                    f"{r['engine_busy']:.3f}",
                ]
                for r in rows
            ],
        )
    )


RUN = {
    "size": size,
    "overlap": overlap,
    "tile": tile,
    "batch": batch,
    "format": output_format,
    "depth": depth,
    "cap": cap,
    "seams": seams,
    "wall": wall,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--edges", type=int, nargs="+", default=[128, 256, 384, 512, 768, 1024]
    )
    parser.add_argument("--cap-shape", type=int, nargs=3, default=[1024, 2048, 2048])
    parser.add_argument("--cap-skip", type=int, default=0, help="Cases left out.")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--model", type=Path, default=default_bundle_path())
    parser.add_argument("--scratch", type=Path, help="A folder with room for volumes.")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job(json.loads(options.job))
        return
    if options.tiny:
        options.repeat = 1
    for part in options.parts:
        print(f"\n{part}", flush=True)
        with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
            RUN[part](Bench(Path(folder), options))


if __name__ == "__main__":
    main()
