"""Planes beside a camera: overhead, push latency, sustained rate, delay, memory.

    python benchmarks/live.py                       # all parts, a few minutes
    python benchmarks/live.py --parts memory --minutes 60
    python benchmarks/live.py --parts rig --model BUNDLE

Parts
    overhead    what the live path adds to an engine that takes a fixed time for a tile
                and no core, as a GPU does: wall time over the engine's own.
    push        how long a push takes while planes come at a constant rate and every
                tile is being computed, p50, p99 and the largest.
    streamed    the same in a program that was started so that it copies planes past
                the cache, as `neurodeploy rig-check` advises.
    path        planes per second, and the delay, with an engine that costs nothing:
                what the path itself sustains.
    rig         what `neurodeploy rig-check` says of a real network on this machine.
    memory      resident memory over a run at a constant rate, and its trend.

Every part checks the answer: an identity network's result is its input. A row during
which the host of a virtual machine gave more than `--stolen` of its time to others is
measured again, up to `--tries` times, whatever it showed; the least disturbed one
counts, and says how much was stolen.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _bundles import identity_bundle
from _results import RESULTS, load, save, stamp, table
from _stolen import StolenTime, least_disturbed

from neurodeploy_runtime import Bundle, Normalisation, NumpyEngine, load_bundle
from neurodeploy_runtime._rss import current_rss
from neurodeploy_runtime.live import (
    LivePlane,
    LiveSegmenter,
    LiveSettings,
    measure_rig,
)
from neurodeploy_runtime.live._plane_copy import past_the_cache

TILE = (32, 96, 96)
UNIT = Normalisation("unit", 0.0, 65535.0)
SIDES = (512, 1024, 2048)
#: The share that the live path may add to the engine's time.
LIMIT_OVERHEAD = 0.05
LIMIT_PUSH_S = 0.002


class Paced(NumpyEngine):
    """The identity, after a fixed time for each tile in which no core is used."""

    def __init__(self, bundle: Bundle, tile_s: float) -> None:
        super().__init__(bundle)
        self.tile_s = tile_s

    def infer(self, batch: Any, out: Any) -> None:
        end = time.perf_counter() + self.tile_s
        super().infer(batch, out)
        time.sleep(max(0.0, end - time.perf_counter()))


class Check:
    """Takes finished planes, checks them, and keeps their latencies."""

    def __init__(self, plane: np.ndarray) -> None:
        self._expected = np.where(plane >= 32768, 255, 0).astype(np.uint8)
        self.planes = 0
        self.latencies: list[float] = []
        self.lags: list[int] = []

    def __call__(self, plane: LivePlane) -> None:
        self.planes += 1
        if not plane.valid:
            return
        self.latencies.append(plane.latency_s)
        self.lags.append(plane.lag_planes)
        # Every plane would take a core from what is measured.
        if plane.z % 16 == 0 and not np.array_equal(plane.voxels, self._expected):
            raise AssertionError(f"plane {plane.z} is wrong")


def opened(
    bundle: Bundle, engine: NumpyEngine, side: int, check: Check, **options: Any
) -> LiveSegmenter:
    settings = LiveSettings(**({"normalisation": UNIT} | options))
    return LiveSegmenter(
        bundle, (side, side), "uint16", settings, engines=[engine], on_plane=check
    )


def plane_of(side: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    # Not at the threshold, where a weight's last bit would decide.
    return rng.choice(np.array([1000, 20000, 50000, 65535], np.uint16), (side, side))


def overhead(bundle: Bundle, side: int, tile_s: float) -> dict[str, Any]:
    plane, engine = plane_of(side), Paced(bundle, tile_s)
    check = Check(plane)
    with opened(bundle, engine, side, check) as live:
        z_axis = live.plan.axes[0]
        for _ in range(z_axis.window + 3 * z_axis.stride):
            live.push(plane, timeout_s=600)
        live.finish()
        live.flush(600)
        seconds = live.stage_seconds
        wall = live.wall_s
        tiles = live.tiles_run
    return {
        "side": side,
        "tile_s": tile_s,
        "tiles": tiles,
        "wall_s": wall,
        "engine_s": seconds["infer"],
        "overhead": wall / seconds["infer"] - 1,
        # The engine wakes up late on a busy machine; that is in here.
        "over_nominal": wall / (tiles * tile_s) - 1,
        "within_limit": wall / seconds["infer"] - 1 <= LIMIT_OVERHEAD,
        "stages_s": {k: round(v, 4) for k, v in seconds.items()},
    }


def bare_copy_s(plane: np.ndarray) -> float:
    """What copying the plane costs by itself, on a machine that does nothing else."""
    ring = np.ones((16, *plane.shape), plane.dtype)
    times = []
    for i in range(64):
        before = time.perf_counter()
        np.copyto(ring[i % len(ring)], plane)
        times.append(time.perf_counter() - before)
    return float(np.median(times))


def push(bundle: Bundle, side: int, rate: float, seconds: float) -> dict[str, Any]:
    """Times of a push, and of a plain copy of the plane half a period later.

    The copy does what a push must do at the least, on the same busy cores: what both
    take is the machine's, what only a push takes is ours. Every fourth plane is
    written in its slot in the ring: what that takes beside the writing itself, which
    is the camera's in any case.
    """
    plane = plane_of(side)
    bare_s = bare_copy_s(plane)
    # A tile in the time that keeps up with the rate, and no faster.
    tiles = len(range(0, side - 24, 72)) ** 2
    check = Check(plane)
    engine = Paced(bundle, 24 / rate / tiles * 0.8)
    ring = np.ones((16, *plane.shape), plane.dtype)
    with opened(bundle, engine, side, check, when_full="drop") as live:
        times, copies, slots = [], [], []
        start = time.perf_counter()
        n = 0
        while (now := time.perf_counter()) - start < seconds:
            due = start + n / rate
            if now < due:
                time.sleep(due - now)
            before = time.perf_counter()
            if n % 4 == 3:
                with live.slot() as voxels:
                    writing = time.perf_counter()
                    if voxels is not None:
                        np.copyto(voxels, plane)
                    writing = time.perf_counter() - writing
                slots.append(time.perf_counter() - before - writing)
            else:
                live.push(plane)
                times.append(time.perf_counter() - before)
            time.sleep(max(0.0, due + 0.5 / rate - time.perf_counter()))
            before = time.perf_counter()
            np.copyto(ring[n % len(ring)], plane)
            copies.append(time.perf_counter() - before)
            n += 1
        status = live.status
    pushes = np.array(times)
    return {
        "side": side,
        "rate_hz": rate,
        "planes": n,
        "bare_copy_s": bare_s,
        "copy_p50_s": float(np.median(copies)),
        "copy_p99_s": float(np.quantile(copies, 0.99)),
        "p50_s": float(np.median(pushes)),
        "p95_s": float(np.quantile(pushes, 0.95)),
        "p99_s": float(np.quantile(pushes, 0.99)),
        "max_s": float(pushes.max()),
        "slot_p50_s": float(np.median(slots)),
        "slot_p99_s": float(np.quantile(slots, 0.99)),
        "dropped": status.dropped,
        "delay_p50_s": status.latency_p50_s,
        "delay_p99_s": status.latency_p99_s,
        "within_limit": bool(np.quantile(pushes, 0.99) < LIMIT_PUSH_S),
        "pushes_s": [round(t, 6) for t in times],
    }


def streamed(bundle: Bundle, side: int, rate: float, seconds: float) -> dict[str, Any]:
    """As `push`, in a process of its own that copies planes past the cache."""
    variable = past_the_cache()
    if variable is None:
        raise SystemExit(
            "part streamed wants the GNU C library on x86-64, and a start without "
            "glibc.cpu.x86_non_temporal_threshold in GLIBC_TUNABLES"
        )
    before = dict(os.environ)
    os.environ.update(variable)
    try:
        # A process that is forked would copy as this one does.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(_push_of, (str(bundle.path), side, rate, seconds))
    finally:
        os.environ.clear()
        os.environ.update(before)
    return {**row, "environment": variable}


def _push_of(bundle: str, side: int, rate: float, seconds: float) -> dict[str, Any]:
    return push(load_bundle(bundle), side, rate, seconds)


def path(bundle: Bundle, side: int, seconds: float) -> dict[str, Any]:
    plane = plane_of(side)
    check = Check(plane)
    with opened(bundle, NumpyEngine(bundle), side, check) as live:
        start, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - start < seconds:
            live.push(plane, timeout_s=600)
        live.finish()
        live.flush(600)
        wall = time.perf_counter() - start
        cpu = time.process_time() - cpu
        status = live.status
        stages = live.stage_seconds
    return {
        "side": side,
        "planes": check.planes,
        "sustained_hz": check.planes / wall,
        "mvoxel_per_s": check.planes * side * side / wall / 1e6,
        "mvoxel_per_cpu_s": check.planes * side * side / cpu / 1e6,
        "delay_p50_s": status.latency_p50_s,
        "delay_p99_s": status.latency_p99_s,
        "lag_planes": live.lag_planes,
        "buffer_bytes": status.buffer_bytes,
        "stages_s": {k: round(v, 4) for k, v in stages.items()},
    }


def rig(bundle: Bundle, side: int, seconds: float) -> dict[str, Any]:
    return measure_rig(bundle, (side, side), 20.0, seconds=seconds).to_json()


def watched(row: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row, and the share of the machine that the host took meanwhile."""
    watch = StolenTime()
    found = row()
    return {**found, "stolen": watch.share}


def real_bundle(model: str | None, folder: Path) -> Bundle:
    """What was asked for, the one that ships, or a small ViT that was not trained."""
    from neurodeploy_runtime import BundleError, default_bundle_path

    if model is not None or default_bundle_path().is_dir():
        return load_bundle(model)
    try:
        from _bundles import network_bundle
        from _unetr import TINY, flop_per_tile, unetr
    except ImportError as error:
        raise BundleError(f"name a bundle with --model ({error})") from None
    network = unetr(TINY, folder / "last.npz")
    return network_bundle(
        folder / "unetr",
        network,
        name="tiny ViT, not trained",
        tile=(TINY.tile,) * 3,
        overlap=0.25,
        flop_per_tile=flop_per_tile(network, TINY),
    )


def memory(bundle: Bundle, minutes: float, rate: float) -> dict[str, Any]:
    side = 512
    plane = plane_of(side)
    check = Check(plane)
    samples: list[tuple[float, int]] = []
    stop = threading.Event()

    def sample() -> None:
        start = time.perf_counter()
        while not stop.wait(1.0):
            samples.append((time.perf_counter() - start, current_rss()))

    sampler = threading.Thread(target=sample)
    with opened(bundle, Paced(bundle, 0.005), side, check, when_full="drop") as live:
        sampler.start()
        start = time.perf_counter()
        n = 0
        while (now := time.perf_counter()) - start < minutes * 60:
            due = start + n / rate
            if now < due:
                time.sleep(due - now)
            live.push(plane)
            n += 1
            # What was kept is not to count as growth.
            check.latencies.clear()
            check.lags.clear()
        status = live.status
        stop.set()
        sampler.join()
    # The first tenth brings in what is used for the first time.
    later = samples[len(samples) // 10 :]
    seconds, rss = (np.array(column, float) for column in zip(*later, strict=True))
    slope = float(np.polyfit(seconds, rss, 1)[0]) if len(later) > 2 else float("nan")
    return {
        "side": side,
        "rate_hz": rate,
        "minutes": minutes,
        "planes": n,
        "dropped": status.dropped,
        "rss_first_bytes": int(rss[0]),
        "rss_last_bytes": int(rss[-1]),
        "rss_span_bytes": int(rss.max() - rss.min()),
        "slope_bytes_per_hour": slope * 3600,
        "pushed_bytes": n * side * side * 2,
        "samples": [
            [round(t, 1), r] for t, r in samples[:: max(1, len(samples) // 200)]
        ],
    }


def draw(values: dict[str, Any]) -> None:
    """The push latencies and the memory, as a picture beside the figures."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for part, style, note in (
        ("push", "-", ""),
        ("streamed", "--", ", past the cache"),
    ):
        left.set_prop_cycle(None)
        for row in values.get(part, []):
            times = np.sort(np.array(row["pushes_s"])) * 1e3
            share = np.arange(1, len(times) + 1) / len(times)
            label = f"{row['side']}², {row['rate_hz']:g}/s{note}"
            left.plot(times, share, style, label=label)
    left.axvline(LIMIT_PUSH_S * 1e3, color="gray", linestyle=":")
    left.set(xscale="log", xlabel="push, ms", ylabel="share of pushes")
    left.legend()
    samples = values.get("memory", {}).get("samples", [])
    held = [r / 1e6 for _, r in samples]
    right.plot([t / 60 for t, _ in samples], held)
    # From nothing, and with room above: a line that is flat is seen to be.
    room = (0, 1.5 * max(held, default=1))
    right.set(xlabel="minutes", ylabel="resident memory, MB", ylim=room)
    figure.savefig(RESULTS / "live.png", dpi=110)


def show(values: dict[str, Any]) -> None:
    if "overhead" in values:
        rows = [
            (
                r["side"],
                f"{r['tile_s'] * 1e3:g} ms",
                r["tiles"],
                f"{r['overhead']:.1%}",
                f"{r['over_nominal']:.1%}",
            )
            for r in values["overhead"]
        ]
        head = ["plane", "tile", "tiles", "over the engine", "over the nominal time"]
        print(table(head, rows), "\n")
    for part in ("push", "streamed"):
        if part not in values:
            continue
        rows = [
            (
                r["side"],
                f"{r['rate_hz']:g}/s",
                f"{r['bare_copy_s'] * 1e3:.2f}",
                f"{r['p50_s'] * 1e3:.2f}",
                f"{r['p99_s'] * 1e3:.2f}",
                f"{r['copy_p50_s'] * 1e3:.2f}",
                f"{r['copy_p99_s'] * 1e3:.2f}",
                f"{r['max_s'] * 1e3:.2f}",
                f"{r['slot_p99_s'] * 1e3:.3f}",
                r["dropped"],
                f"{r['delay_p50_s']:.2f} s",
            )
            for r in values[part]
        ]
        head = [
            *("plane", "rate", "bare copy ms", "p50 ms", "p99 ms"),
            *("a copy p50 ms", "p99 ms", "max ms", "slot p99 ms", "dropped"),
            "delay p50",
        ]
        print(f"{part}\n{table(head, rows)}\n")
    if "path" in values:
        rows = [
            (
                r["side"],
                f"{r['sustained_hz']:.1f}/s",
                f"{r['mvoxel_per_s']:.1f}",
                f"{r['mvoxel_per_cpu_s']:.1f}",
                f"{r['delay_p50_s']:.2f} s",
                f"{r['buffer_bytes'] / 1e6:.0f} MB",
            )
            for r in values["path"]
        ]
        head = ["plane", "sustained", "Mvoxel/s", "per CPU-s", "delay p50", "buffers"]
        print(table(head, rows), "\n")
    if "rig" in values:
        rows = [
            (
                r["plane_shape"][0],
                r["model"],
                f"{r['tile_s'] * 1e3:.4g} ms",
                f"{r['overhead']:.1%}",
                f"{r['sustained_hz']:.3g}/s",
            )
            for r in values["rig"]
        ]
        print(table(["plane", "model", "tile", "overhead", "sustained"], rows), "\n")
    if "memory" in values:
        m = values["memory"]
        print(
            f"memory: {m['minutes']:g} min, {m['planes']} planes, "
            f"{m['rss_first_bytes'] / 1e6:.1f} to {m['rss_last_bytes'] / 1e6:.1f} MB, "
            f"{m['slope_bytes_per_hour'] / 1e6:+.2f} MB/h"
        )


def main() -> None:
    parts = ("overhead", "push", "streamed", "path", "rig", "memory")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--rate", type=float, default=50.0, help="of part memory, Hz")
    parser.add_argument("--model")
    parser.add_argument("--stolen", type=float, default=0.05)
    parser.add_argument("--tries", type=int, default=4)
    options = parser.parse_args()
    # What other parts found before stays in the file, with its own stamp.
    before = load("live") or {}
    kept = (*parts, "stamps", "default")
    found = {name: before[name] for name in kept if name in before}
    started = stamp()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = identity_bundle(folder / "identity", TILE)
        seconds = options.seconds
        real = real_bundle(options.model, folder) if "rig" in options.parts else bundle
        # 30 ms for a tile of 0.3 Mvoxel is 10 Mvoxel/s; 100 ms is 3.
        paces = ((512, 0.03), (512, 0.1), (1024, 0.03))
        rates = ((512, 100.0), (1024, 50.0), (2048, 20.0))
        rows = {
            "overhead": [partial(overhead, bundle, *pace) for pace in paces],
            "push": [partial(push, bundle, *rate, seconds) for rate in rates],
            "streamed": [partial(streamed, bundle, *rate, seconds) for rate in rates],
            "path": [partial(path, bundle, side, seconds) for side in SIDES],
            "rig": [partial(rig, real, side, seconds) for side in SIDES],
        }
        for part in options.parts:
            if part == "memory":
                found[part] = memory(bundle, options.minutes, options.rate)
            else:
                found[part] = [
                    least_disturbed(
                        partial(watched, row), options.stolen, options.tries
                    )
                    for row in rows[part]
                ]
            found.setdefault("stamps", {})[part] = {
                k: started[k] for k in ("commit", "date", "command", "load_at_start")
            }
            if part == "rig":
                found["default"] = {"name": real.spec.name, "digest": real.digest}
            save("live", {"tile": TILE, **found}, started)
            show({part: found[part]})
    draw(found)


if __name__ == "__main__":
    main()
