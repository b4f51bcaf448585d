"""Where tables are printed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def on_terminal() -> bool:
    """Whether standard error is looked at; it is None where a program has none."""
    return sys.stderr is not None and sys.stderr.isatty()


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console that prints text as it is: ``[cluster]`` names an extra, no colour."""
    from rich.console import Console

    return Console(stderr=stderr, width=width, markup=False, highlight=False)
