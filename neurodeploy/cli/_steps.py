"""Progress of work that goes by named steps: what is done now, and for how long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from neurodeploy.cli._console import on_terminal

if TYPE_CHECKING:
    from neurodeploy_export._progress import Progress


@contextmanager
def steps(quiet: bool) -> Iterator[Progress]:
    """A callback of text and share; a bar on a terminal, a line a step elsewhere."""
    if quiet:
        yield lambda text, share: None
        return
    if not on_terminal():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task("starting", total=None)

        def show(text: str, share: float | None) -> None:
            bar.update(
                task,
                description=text,
                total=None if share is None else 1.0,
                completed=share or 0.0,
            )

        yield show


def _lines() -> Callable[[str, float | None], None]:
    began = time.monotonic()
    last = ""

    def show(text: str, share: float | None) -> None:
        nonlocal last
        # A builder's inner phases come by the hundred.
        topic = text.partition(":")[0]
        if topic != last:
            click.echo(f"{time.monotonic() - began:6.1f} s  {text}", err=True)
        last = topic

    return show
