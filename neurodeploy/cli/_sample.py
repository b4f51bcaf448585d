"""`neurodeploy sample`."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import click

from neurodeploy.cli._options import Triple
from neurodeploy.cli._progress import voxel_progress

#: What `--look` may be; the first is the default.
LOOKS = ("light-sheet", "varied", "confocal")


@click.command()
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--shape",
    type=Triple(whole=True),
    default="256,1024,1024",
    show_default=True,
    help="Extent in voxels.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which volume.")
@click.option(
    "--swc",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Traced neuron, in voxels unless it says micrometres, instead of simulated "
    "ones; may be repeated.",
)
@click.option(
    "--truth",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the true mask goes (0 and 255).",
)
@click.option(
    "--look",
    type=click.Choice(LOOKS),
    default=LOOKS[0],
    show_default=True,
    help="light-sheet: sparse bright axons; varied: any cleared tissue, as in "
    "training; confocal: 8 bits, one or few filled neurons.",
)
@click.option(
    "--voxel-size",
    type=Triple(whole=False),
    default="2,1.6,1.6",
    show_default=True,
    help="Micrometres.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
def sample(
    output: Path,
    shape: tuple[int, int, int],
    seed: int,
    swc: tuple[Path, ...],
    truth: Path | None,
    look: str,
    voxel_size: tuple[float, float, float],
    threads: int | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Make a realistic light-sheet volume with known truth.

    OUTPUT is a TIFF that ImageJ opens, of any size: it is made block by block. The
    same seed gives the same voxels, whatever the machine's memory and cores.
    """
    from neurodeploy.morphology import read_swc
    from neurodeploy.simulate import (
        CONFOCAL,
        LIGHT_SHEET,
        SHOWCASE,
        SampleSettings,
        write_sample,
    )
    from neurodeploy_runtime._progress import Progress

    appearance = dict(zip(LOOKS, (SHOWCASE, LIGHT_SHEET, CONFOCAL), strict=True))
    settings = SampleSettings(shape, seed, appearance[look], voxel_size_um=voxel_size)
    if threads is not None:
        settings = replace(settings, threads=threads)
    neurites = [
        # Where it says that it is in micrometres, this volume's voxels decide.
        n if n.voxel_size_um is None else n.to_voxels(voxel_size)
        for n in map(read_swc, swc)
    ]
    for path, neurite in zip(swc, neurites, strict=True):
        for note in neurite.notes if not quiet else ():
            click.echo(f"{path}: {note}", err=True)
    total = shape[0] * shape[1] * shape[2]
    began = time.monotonic()
    done = 0
    with voxel_progress("sample", quiet) as show:

        def advance(voxels: int) -> None:
            nonlocal done
            done += voxels
            if show is not None:
                show(Progress(done, total, 0, time.monotonic() - began))

        write_sample(
            output,
            settings,
            truth=truth,
            neurites=neurites,
            overwrite=overwrite,
            progress=advance,
        )
    if not quiet:
        seconds = time.monotonic() - began
        extent = " × ".join(map(str, shape))
        with_truth = "" if truth is None else f", its truth is {truth}"
        click.echo(f"{output}: {extent} voxels in {seconds:.0f} s{with_truth}")
