"""Traced neurons: SWC files, distances between tracings, masks from tracings."""

from neurodeploy.morphology._distances import (
    TracingDistances,
    distances_to,
    tracing_distances,
)
from neurodeploy.morphology._morphology import Morphology
from neurodeploy.morphology._swc import read_swc, write_swc

__all__ = [
    "Morphology",
    "TracingDistances",
    "distances_to",
    "read_swc",
    "tracing_distances",
    "write_swc",
]
