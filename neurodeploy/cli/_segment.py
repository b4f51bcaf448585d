"""`neurodeploy segment`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neurodeploy.cli._console import console
from neurodeploy.cli._options import (
    INPUT_NAMES,
    Finite,
    Share,
    default_output,
    open_input,
    refuse_without,
    segment_options,
    segment_settings,
)
from neurodeploy.cli._progress import voxel_progress

if TYPE_CHECKING:
    from neurodeploy_runtime import Report


@click.command()
@segment_options
@click.option(
    "--worker", type=Share(), default=(1, 1), help="Do share I of N of the work."
)
@click.option(
    "--follow",
    is_flag=True,
    help="INPUT is still being written: a Zarr, or a folder of planes. --memory then "
    "caps its buffers.",
)
@click.option(
    "--follow-timeout",
    type=Finite(least=1.5),
    default=60.0,
    show_default=True,
    help="End after so many seconds without a new plane.",
)
@click.option(
    "--follow-planes", type=click.IntRange(1), help="End after so many planes."
)
@click.option(
    "--normalisation-from",
    metavar="REPORT",
    help="With --follow: the constants of this report (.json), and none are learnt.",
)
@click.option("--overwrite", is_flag=True, help="Replace a result that exists.")
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
def segment(**options: Any) -> None:
    """Segment a volume of any size in bounded memory.

    INPUT is a TIFF, a folder of planes, OME-Zarr, N5, precomputed, HDF5, v3draw,
    v3dpbd or .npy. The result lies beside it, with a picture and a report. Stopped,
    it continues when the same words are said again.
    """
    from neurodeploy_runtime import Segmenter, as_begun, load_bundle

    if options.pop("follow"):
        from neurodeploy.cli._segment_follow import segment_followed

        followed = segment_followed(options)
        if not options["quiet"]:
            show_report(followed)
        return
    followed_only = ("follow_timeout", "follow_planes", "normalisation_from")
    refuse_without("--follow", *followed_only)
    for name in followed_only:
        del options[name]
    quiet: bool = options.pop("quiet")
    path: str = options.pop("input")
    output: str | None = options.pop("output")
    overwrite: bool = options.pop("overwrite")
    model: str | None = options.pop("model")
    opened = {name: options[name] for name in INPUT_NAMES}
    with open_input(path, options, options["memory"]) as source:
        settings = segment_settings(options)
        target = Path(output) if output else default_output(path, source)
        bundle = load_bundle(model)
        if settings.engine.batch is None and not overwrite:
            settings = as_begun(settings, target)
        with (
            Segmenter(bundle, settings) as segmenter,
            voxel_progress("segment", quiet) as progress,
        ):
            report = segmenter.segment(
                source,
                target,
                overwrite=overwrite,
                progress=progress,
                notes={"opened_with": opened},
            )
    if report is None:
        i, n = settings.worker
        if not quiet:
            click.echo(f"share {i}/{n} is done; the others are not all yet", err=True)
        return
    if not quiet:
        show_report(report)


def show_report(report: Report) -> None:
    """One screen of what a run did."""
    from rich.table import Table

    out = console(stderr=True)
    seconds = report.seconds
    table = Table(show_header=False, box=None, padding=(0, 2))
    engine = report.provenance["engine"]
    z, y, x = report.shape
    table.add_row("result", " ".join(report.outputs))
    table.add_row("picture", report.picture)
    share = report.foreground_voxels / report.voxels
    table.add_row("volume", f"{z} × {y} × {x} voxels, {share:.3%} foreground")
    table.add_row(
        "ran on",
        f"{engine['engine']} {engine['precision']} on {engine['device']}, "
        f"{report.tiles_run} tiles, {report.redundancy:.2f} × the voxels",
    )
    table.add_row(
        "speed",
        f"{report.mvoxel_per_s:.3f} Mvoxel/s, {report.wall_s:.1f} s, "
        f"engine busy {report.engine_busy:.0%}",
    )
    stages = ("read", "normalise", "infer", "blend", "quantise", "write")
    table.add_row("seconds", ", ".join(f"{s} {seconds.get(s, 0):.2f}" for s in stages))
    if report.peak_rss_bytes:
        table.add_row("memory", f"{report.peak_rss_bytes / 1e9:.2f} GB at most")
    for reason in report.provenance["notes"]["passed_over"]:
        table.add_row("not used", reason)
    if report.skip:
        lost = "what they hold is not known: none was checked"
        if report.skip["audited"]:
            lost = f"no foreground in the {report.skip['audited']} that were checked"
        if report.skip["lost_share_upper"] is not None:
            lost = (
                f"lost foreground {report.skip['lost_share']:.3%} "
                f"(at most {report.skip['lost_share_upper']:.3%}, "
                f"{report.skip['audited']} tiles checked)"
            )
        table.add_row(
            "background",
            f"{report.skip['skipped']} of {report.skip['tiles']} tiles skipped, {lost}",
        )
    for warning in report.warnings:
        table.add_row("warning", warning)
    out.print(table)
