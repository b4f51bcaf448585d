"""`neurodeploy plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neurodeploy.cli._console import console
from neurodeploy.cli._options import (
    default_output,
    open_input,
    segment_options,
    segment_settings,
)

if TYPE_CHECKING:
    from neurodeploy_runtime.measure import Forecast


@click.command()
@segment_options
@click.option(
    "--calibrate/--no-calibrate",
    default=True,
    help="Run a few tiles of the volume, for some seconds, to know the time.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(**options: Any) -> None:
    """Predict memory, disk, tiles and time of a segmentation.

    Takes the words of `segment` and writes nothing. A run that cannot fit the
    memory cap or the disk is refused here as there.
    """
    from neurodeploy_runtime import OutputError, Segmenter, load_bundle
    from neurodeploy_runtime.measure import forecast

    path: str = options.pop("input")
    output: str | None = options.pop("output")
    model: str | None = options.pop("model")
    calibrate: bool = options.pop("calibrate")
    as_json: bool = options.pop("as_json")
    with open_input(path, options, options["memory"]) as source:
        settings = segment_settings(options)
        target = Path(output) if output else default_output(path, source)
        with Segmenter(load_bundle(model), settings) as segmenter:
            found = forecast(segmenter, source, target, calibrate=calibrate)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
    else:
        _show(found, target)
    need = found.disk_bytes + found.scratch_bytes
    if need > found.disk_free_bytes:
        raise OutputError(
            f"the output may take {need / 1e9:.2f} GB and "
            f"{found.disk_free_bytes / 1e9:.2f} GB are free there: make room, or "
            "choose another place with -o"
        )


def _show(found: Forecast, target: Path) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row(
        "input", f"{_extent(found.shape)} {found.dtype}, {found.input_format}"
    )
    table.add_row("output", f"{target}, at most {found.disk_bytes / 1e9:.3g} GB")
    table.add_row("disk", f"{found.disk_free_bytes / 1e9:.3g} GB free")
    if found.scratch_bytes:
        table.add_row("scratch file", f"up to {found.scratch_bytes / 1e9:.3g} GB")
    table.add_row(
        "tiles",
        f"{found.tiles_run} of {_extent(found.tile)}, {found.redundancy:.2f} × the "
        "voxels pass the network",
    )
    table.add_row(
        "regions", f"{found.regions}, the first {_extent(found.region_shape)} voxels"
    )
    cap = found.memory_cap_bytes
    of = f" of the {cap / 1e9:.3g} GB allowed" if cap else ""
    table.add_row("memory", f"{found.memory_bytes / 1e9:.3g} GB{of}")
    if found.device_bytes:
        table.add_row(
            "device memory",
            f"{found.device_bytes / 1e9:.3g} GB for tiles, beside the network",
        )
    table.add_row(
        "reading", f"{found.read_amplification:.2f} bytes decoded for each one used"
    )
    engine = found.engine
    table.add_row(
        "runs on",
        f"{engine['engine']} {engine['precision']} on {engine['device']}, "
        f"batch {engine['batch']}",
    )
    for reason in found.passed_over:
        table.add_row("not used", reason)
    if found.calibration and found.seconds and found.mvoxel_per_s:
        c = found.calibration
        table.add_row(
            "measured",
            f"{c.infer_s * 1e3:.1f} ms a tile in the network, {c.handle_s * 1e3:.1f} "
            f"around it, {c.read_bytes_per_s / 1e6:.0f} MB/s read ({c.tiles} tiles)",
        )
        table.add_row(
            "expected",
            f"{_duration(found.seconds)}, {found.mvoxel_per_s:.3g} Mvoxel/s",
        )
    for text in found.advice:
        table.add_row("faster", text)
    console().print(table)


def _extent(shape: tuple[int, int, int]) -> str:
    return " × ".join(map(str, shape))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
