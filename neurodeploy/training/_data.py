"""The annotated volumes that a run's settings name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from neurodeploy._errors import DataError
from neurodeploy.data import (
    AnnotatedVolume,
    describe_kinds,
    find_pairs,
    label_kinds,
    load_pair,
    mark_skeleton,
)
from neurodeploy.training._settings import TrainSettings


def load_volumes(
    settings: TrainSettings, say: Callable[[str], None]
) -> list[AnnotatedVolume]:
    """Every annotated image in the settings' folders; each folder is a group.

    `say` is told what was found and what was left out, and why.

    Raises
    ------
    DataError
        Where there is no folder, or an image and its annotation do not fit.
    """
    if not settings.data:
        raise DataError(
            "there is nothing to train on: name a folder of images and their "
            "annotations with --data"
        )
    volumes = []
    for name in settings.data:
        found = find_pairs(name)
        say(found.describe())
        kinds = label_kinds(found, settings.labels)
        if kinds:
            say(describe_kinds(kinds))
        group = Path(name).name or "data"
        for pair in found.pairs:
            volumes.append(
                load_pair(
                    pair,
                    unit=settings.unit,
                    voxel_size_um=settings.voxel_size_um,
                    group=group,
                    labels=kinds.get(pair.annotation, "auto"),
                    reading=settings.reading,
                    say=say,
                )
            )
    if settings.loss.skeleton_recall:
        volumes = [mark_skeleton(volume) for volume in volumes]
    return volumes
