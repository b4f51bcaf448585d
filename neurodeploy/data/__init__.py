"""Annotated volumes, and samples of them for training."""

from neurodeploy.data._augment import Augmentation
from neurodeploy.data._dataset import (
    BACKGROUND,
    IGNORE,
    NEURITE,
    SKELETON,
    AnnotatedVolume,
    Samples,
)
from neurodeploy.data._labels import Labels, describe_kinds, labels_of
from neurodeploy.data._pairs import (
    Found,
    Pair,
    find_pairs,
    label_kinds,
    load_pair,
    read_tracing,
)
from neurodeploy.data._reading import Reading
from neurodeploy.data._skeleton import mark_skeleton
from neurodeploy.data._volumes import Part

__all__ = [
    "BACKGROUND",
    "IGNORE",
    "NEURITE",
    "SKELETON",
    "AnnotatedVolume",
    "Augmentation",
    "Found",
    "Labels",
    "Pair",
    "Part",
    "Reading",
    "Samples",
    "describe_kinds",
    "find_pairs",
    "label_kinds",
    "labels_of",
    "load_pair",
    "mark_skeleton",
    "read_tracing",
]
