"""`neurodeploy benchmark`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neurodeploy.cli._console import console
from neurodeploy.cli._options import (
    INPUT_NAMES,
    Finite,
    Roi,
    engine_options,
    engine_settings,
    input_options,
    refuse_without,
)

if TYPE_CHECKING:
    from rich.console import Console

    from neurodeploy_runtime import Box, Bundle, EngineSettings
    from neurodeploy_runtime.measure import Comparison, Trial

#: Fewest and most tiles of a run: fewer say nothing, more take minutes.
TILES = (8, 4096)

#: Engines whose stages stand side by side: as many as 80 columns hold.
ABREAST = 4


@click.command()
@click.argument("input", required=False)
@click.option("-m", "--model", help="Bundle; without it, the one that ships.")
@click.option("--roi", type=Roi(), help="Measure on this box of INPUT.")
@click.option(
    "--seconds",
    type=Finite(above=0),
    default=20.0,
    show_default=True,
    help="About how long one run takes; decides how much of INPUT is used.",
)
@click.option(
    "--repeat",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Runs of each engine, in turn.",
)
@input_options
@engine_options
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw a PNG."
)
@click.option("--overwrite", is_flag=True, help="Replace a plot that exists.")
@click.option(
    "--tune",
    is_flag=True,
    help="Sweep batch and threads of the fastest engine, and keep the best in the "
    "bundle's local settings, for this machine.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quiet", is_flag=True, help="Say nothing but the result.")
def benchmark(**options: Any) -> None:
    """Measure every engine that is possible here.

    End to end, from a file to a file, on INPUT or the middle of it, or without INPUT
    on a simulated volume; each run in a process of its own; labels compared with fp32.
    """
    from neurodeploy_runtime import OutputError, load_bundle
    from neurodeploy_runtime.engines import keep_local, may_keep
    from neurodeploy_runtime.measure import compare_engines, sweep

    plot: Path | None = options["plot"]
    if plot is not None:
        if plot.exists() and not options["overwrite"]:
            raise OutputError(
                f"{plot} exists: choose another name for --plot, or pass --overwrite"
            )
        if plot.suffix.lower() != ".png" or not plot.absolute().parent.is_dir():
            raise OutputError(
                f"--plot {plot} cannot be drawn: name a .png in a folder that exists"
            )
        import matplotlib  # noqa: F401  # named as missing before minutes are spent
    as_json, quiet = options["as_json"], options["quiet"]
    bundle = load_bundle(options["model"])
    if options["tune"] and not may_keep(bundle):
        raise OutputError(
            f"{bundle.path} cannot be written to, where --tune keeps what it finds: "
            "copy the bundle to where you may write, and name it with -m"
        )
    engine = engine_settings(options)

    def say(text: str) -> None:
        if not quiet:
            click.echo(text, err=True)

    with ExitStack() as stack:
        tiles = _how_many(bundle, engine, options["seconds"])
        path, roi = options["input"], options["roi"]
        reading = {name: options[name] for name in INPUT_NAMES}
        if path is None:
            refuse_without("INPUT", "roi", *INPUT_NAMES)
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="neurodeploy-")
            )
            path = _simulated(bundle, Path(folder), tiles, say)
        else:
            roi = _part_of(bundle, path, reading, roi, tiles)
        found = compare_engines(
            bundle,
            path,
            settings=engine,
            roi=roi,
            reading=reading,
            repeat=options["repeat"],
            say=say,
        )
    trials: list[Trial] = []
    if options["tune"]:
        fastest = max(found.rows, key=lambda row: row.mvoxel_per_s)
        say(f"sweeping batch and threads of {fastest.name}")
        trials = sweep(bundle, _asked(fastest.engine))
        best = trials[0]
        kept = keep_local(
            bundle,
            engine=best.settings.engine,
            device=best.settings.device,
            precision=best.settings.precision,
            batch=best.settings.batch or 1,
            threads=best.settings.threads,
            tile_s=best.tile_s,
        )
        say(f"kept in {kept}")
    if as_json:
        tuned = [asdict(trial) for trial in trials]
        click.echo(json.dumps({**found.to_json(), "tuned": tuned}, indent=1))
    else:
        _show(found)
        _show_trials(trials, bundle)
    if plot is not None:
        _draw(found, plot)


def _how_many(bundle: Bundle, engine: EngineSettings, seconds: float) -> int:
    """Tiles that the plainest engine runs in `seconds`."""
    from neurodeploy_runtime import open_engine
    from neurodeploy_runtime.measure import candidates, tile_seconds

    possible = [c for c in candidates(bundle, engine) if c.why_not is None]
    if not possible:
        return TILES[0]
    with open_engine(bundle, possible[-1].settings) as plain:
        tile_s = min(tile_seconds(plain, calls=2))
    return max(TILES[0], min(TILES[1], round(seconds / tile_s)))


def _simulated(bundle: Bundle, folder: Path, tiles: int, say: Any) -> str:
    """A simulated volume that about `tiles` tiles cover exactly."""
    from neurodeploy.simulate import SampleSettings, write_sample
    from neurodeploy_runtime import TilePlan

    counts = [1, 1, 1]
    while counts[0] * counts[1] * counts[2] < tiles:
        counts[counts.index(min(counts))] += 1
    axes = TilePlan.of(bundle.spec, bundle.spec.tile).axes
    z, y, x = (
        n * axis.stride + axis.overlap for n, axis in zip(counts, axes, strict=True)
    )
    say(f"simulating {z} × {y} × {x} voxels")
    path = folder / "simulated.tif"
    write_sample(path, SampleSettings((z, y, x)))
    return str(path)


def _part_of(
    bundle: Bundle, path: str, reading: dict[str, Any], roi: Box | None, tiles: int
) -> Box:
    """The box that was asked for, or the middle of the volume."""
    from neurodeploy_runtime import SegmentSettings, TilePlan, open_volume
    from neurodeploy_runtime.measure import middle

    with open_volume(path, **reading) as source:
        if roi is not None:
            return SegmentSettings(roi=roi).region_of(source.shape)
        return middle(TilePlan.of(bundle.spec, source.shape), tiles)


def _asked(engine: dict[str, Any]) -> EngineSettings:
    """What to ask for, to get this engine."""
    from neurodeploy_runtime import EngineSettings

    return EngineSettings(engine["engine"], engine["device"], engine["precision"])


def _show_trials(trials: list[Trial], bundle: Bundle) -> None:
    """The sweep, and the words that ask for the fastest on another machine."""
    if not trials:
        return
    for trial in trials:
        s = trial.settings
        threads = "" if s.threads is None else f", {s.threads} threads"
        low, high = trial.spread
        click.echo(
            f"batch {s.batch}{threads}: {trial.tile_s * 1e3:.1f} ms a tile "
            f"({low * 1e3:.1f}–{high * 1e3:.1f})"
        )
    s = trials[0].settings
    words = f"--engine {s.engine} --device {s.device} --precision {s.precision}"
    words += f" --batch {s.batch}"
    if s.threads is not None:
        words += f" --threads {s.threads}"
    click.echo(f"fastest: {words}")
    z, y, x = bundle.spec.tile
    click.echo(
        "on this machine that is now what this engine runs with where nobody says "
        f"otherwise; the tile is that of the graph, {z} × {y} × {x}: another one is "
        "another export"
    )


def _show(found: Comparison) -> None:
    from neurodeploy_runtime.measure import STAGES

    out = console()
    z, y, x = found.shape
    out.print(
        f"{z} × {y} × {x} voxels, {found.redundancy:.2f} × pass the network; "
        f"{found.machine['cpu']}, {found.peaks.cores} cores: "
        + ", ".join(
            f"{name} {rate / 1e9:.0f} GFLOP/s"
            for name, rate in found.peaks.matmul_flop_per_s.items()
        )
        + f", copies {found.peaks.copy_bytes_per_s / 1e9:.1f} GB/s"
    )
    _print_rows(
        out,
        ("Mvoxel/s", "least–most", "busy", "alone", "GB", "GPU GB"),
        [
            (
                _short(row.name),
                f"{row.mvoxel_per_s:.3g}",
                f"{row.spread[0]:.3g}–{row.spread[1]:.3g}",
                f"{row.engine_busy:.0%}",
                f"{row.over_tiles:.2f}",
                _or_dash(row.peak_rss_bytes, lambda n: f"{n / 1e9:.2f}"),
                _or_dash(row.device_bytes, lambda n: f"{n / 1e9:.2f}"),
            )
            for row in found.rows
        ],
    )
    out.print(
        "busy: share of the time in which the engine computes; alone: wall time over "
        "that of the tiles in the engine alone; GB: peak of the process, and in use on "
        "the GPU",
        style="dim",
    )
    _print_rows(
        out,
        ("GFLOP/s", "of peak", "of copies", "same", "Dice"),
        [
            (
                _short(row.name),
                _or_dash(row.gflop_per_s, "{:.1f}".format),
                _or_dash(row.peak_share, _share),
                f"{row.moved_share:.1%}",
                _or_dash(row.agreement, "{:.5f}".format),
                _or_dash(row.dice, "{:.4f}".format),
            )
            for row in found.rows
        ],
    )
    out.print(
        "peak: this machine's matrix product in that precision, on a CPU; copies: what "
        "the stages around the network move, over what this machine copies; same: "
        "labels that equal those of the first, Dice: of its foreground",
        style="dim",
    )
    if any(row.peak_share is not None and row.peak_share > 1 for row in found.rows):
        out.print(
            "> 100 %: faster than the matrix product that was measured, so the peak "
            "was underestimated: measure again when nothing else runs",
            style="dim",
        )
    shown = [s for s in STAGES if any(s in row.seconds for row in found.rows)]
    out.print("seconds by stage; stages overlap")
    for first in range(0, len(found.rows), ABREAST):
        rows = found.rows[first : first + ABREAST]
        _print_rows(
            out,
            [_short(row.name) for row in rows],
            [
                *((s, *(f"{r.seconds.get(s, 0):.2f}" for r in rows)) for s in shown),
                ("end to end", *(f"{row.wall_s:.2f}" for row in rows)),
            ],
        )
    out.print(
        "read: with decoding; write: with encoding; infer: with the way to a GPU and "
        "back where tiles do not stay there",
        style="dim",
    )
    for row in found.rows:
        out.print(f"{_short(row.name)} waits for {row.bottleneck}")
    for name, why in found.impossible.items():
        out.print(f"{_short(name)} cannot run here: {why}")


def _print_rows(
    out: Console, heads: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), header_style="bold")
    for head in ("", *heads):
        table.add_column(head, no_wrap=not head)
    for row in rows:
        table.add_row(*row)
    out.print(table)


def _or_dash(value: float | None, told: Callable[[float], str]) -> str:
    return "–" if value is None else told(value)


def _share(share: float) -> str:
    return "> 100%" if share > 1 else f"{share:.0%}"


def _short(name: str) -> str:
    return name.removesuffix(" on cpu")


def _draw(found: Comparison, path: Path) -> None:
    """Mvoxel/s with their spread, and where the seconds go."""
    from matplotlib.figure import Figure

    from neurodeploy_runtime import WriteError
    from neurodeploy_runtime._atomic import write_atomically
    from neurodeploy_runtime.measure import STAGES

    names = [row.name for row in found.rows]
    figure = Figure(figsize=(9, 2 + 0.5 * len(names)), layout="constrained")
    rate, stage = figure.subplots(1, 2)
    values = [row.mvoxel_per_s for row in found.rows]
    errors = [
        [row.mvoxel_per_s - row.spread[0] for row in found.rows],
        [row.spread[1] - row.mvoxel_per_s for row in found.rows],
    ]
    rate.barh(names, values, xerr=errors, color="#4c72b0", capsize=3)
    rate.set_xlabel("unique Mvoxel/s, median, least to most")
    left = [0.0] * len(names)
    shown = [s for s in STAGES if any(s in row.seconds for row in found.rows)]
    for name in shown:
        widths = [row.seconds.get(name, 0.0) for row in found.rows]
        stage.barh(names, widths, left=left, label=name)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    stage.set_xlabel("seconds by stage; stages overlap")
    stage.set_yticks([])
    figure.legend(loc="outside lower center", ncols=len(shown), fontsize="small")
    for axes in (rate, stage):
        axes.invert_yaxis()
    drawn = BytesIO()
    figure.savefig(drawn, dpi=120)
    try:
        write_atomically(path, drawn.getvalue())
    except OSError as error:
        raise WriteError(
            f"{path} cannot be drawn: {error.strerror}; the figures were printed"
        ) from error
