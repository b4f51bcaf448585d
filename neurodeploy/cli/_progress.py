"""A progress bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from neurodeploy.cli._console import on_terminal

if TYPE_CHECKING:
    from neurodeploy_runtime._progress import Progress, ProgressCallback

#: Seconds between lines where there is no terminal.
EVERY_S = 60.0


@contextmanager
def voxel_progress(title: str, quiet: bool) -> Iterator[ProgressCallback | None]:
    """A callback that shows Mvoxel/s and the time left, on standard error."""
    if quiet:
        yield None
        return
    if not on_terminal():
        yield _lines(title)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:5.1f} %  {task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task(title, total=None, rate="")

        def show(progress: Progress) -> None:
            if progress.note:
                bar.console.print(f"{title}: {progress.note}", markup=False)
                return
            bar.update(
                task,
                total=progress.total_voxels,
                completed=progress.done_voxels,
                rate=f"{_rate(progress):.2f} Mvoxel/s",
            )

        yield show


def _rate(progress: Progress) -> float:
    fresh = progress.done_voxels - progress.resumed_voxels
    return fresh / max(progress.seconds, 1e-6) / 1e6


def _lines(title: str) -> ProgressCallback:
    last = time.monotonic()

    def show(progress: Progress) -> None:
        nonlocal last
        if progress.note:
            click.echo(f"{title}: {progress.note}", err=True)
            return
        if time.monotonic() - last < EVERY_S:
            return
        last = time.monotonic()
        rate = _rate(progress)
        left = progress.total_voxels - progress.done_voxels
        minutes = left / max(rate * 1e6, 1) / 60
        share = progress.done_voxels / progress.total_voxels
        click.echo(
            f"{title}: {share:.1%}, {rate:.2f} Mvoxel/s, {minutes:.0f} min left",
            err=True,
        )

    return show
