"""`neurodeploy ingest`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from neurodeploy.cli._options import Size, input_options, open_input
from neurodeploy.cli._progress import voxel_progress


@click.command()
@click.argument("input")
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--memory", type=Size(), default="4GB", show_default=True, help="Cap on memory."
)
@click.option(
    "--scratch",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder for a scratch file, where one is needed.",
)
@input_options
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace a store that exists, or an unfinished one of another input.",
)
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
def ingest(**options: Any) -> None:
    """Rewrite a volume as sharded OME-Zarr with a pyramid, in one pass.

    For an INPUT that is read more than once. OUTPUT ends in .zarr; voxels, type and
    voxel size stay as they are. Stopped at any moment, the same command goes on.
    """
    from neurodeploy_runtime import ingest as run

    quiet: bool = options.pop("quiet")
    path: str = options.pop("input")
    with (
        open_input(path, options, options["memory"]) as source,
        voxel_progress("ingest", quiet) as progress,
    ):
        report = run(
            source,
            options["output"],
            memory_bytes=options["memory"],
            overwrite=options["overwrite"],
            scratch=options["scratch"],
            progress=progress,
        )
    if quiet:
        return
    z, y, x = report.shape
    click.echo(
        f"{report.output}: {z} × {y} × {x} {report.dtype}, {report.levels} levels, "
        f"{report.input_bytes / 1e9:.3f} GB in {report.output_bytes / 1e9:.3f} GB on "
        f"disk, {report.seconds:.1f} s, {report.mvoxel_per_s:.1f} Mvoxel/s",
        err=True,
    )
    if report.reading.how != "direct":
        click.echo(f"reading: {report.reading.reason}", err=True)
