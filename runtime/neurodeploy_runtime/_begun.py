"""With what an unfinished run was begun, where that is chosen by the machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from neurodeploy_runtime._journal import Journal
from neurodeploy_runtime._paths import Paths
from neurodeploy_runtime._settings import SegmentSettings


def as_begun(settings: SegmentSettings, output: str | Path) -> SegmentSettings:
    """The settings with the batch of the unfinished run of `output`, if there is one.

    Where no batch is asked for, a GPU's memory or the bundle's local settings decide
    it; and it is part of what a result's last bits depend on. So a run goes on, and is
    shared by other machines, with the batch that it was begun with.

    Raises
    ------
    ResumeError
        What lies there cannot be read.
    """
    journal = Journal(Paths.of(Path(output), settings.output_kind).work)
    if settings.engine.batch is not None or not journal.exists:
        return settings
    batch = journal.read_batch()
    if batch is None:
        return settings
    return replace(settings, engine=replace(settings.engine, batch=batch))
