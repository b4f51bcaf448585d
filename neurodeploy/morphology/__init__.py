"""Traced neurons: SWC files, distances between tracings, masks from tracings."""

from neurodeploy.morphology._annotate import AnnotationSettings, annotate
from neurodeploy.morphology._balls import patches, stamp_mask
from neurodeploy.morphology._distances import (
    TracingDistances,
    distances_to,
    tracing_distances,
)
from neurodeploy.morphology._morphology import Morphology
from neurodeploy.morphology._overlap import require_overlap
from neurodeploy.morphology._swc import read_swc, write_swc

__all__ = [
    "AnnotationSettings",
    "Morphology",
    "TracingDistances",
    "annotate",
    "distances_to",
    "patches",
    "read_swc",
    "require_overlap",
    "stamp_mask",
    "tracing_distances",
    "write_swc",
]
