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

__all__ = [
    "BACKGROUND",
    "IGNORE",
    "NEURITE",
    "SKELETON",
    "AnnotatedVolume",
    "Augmentation",
    "Samples",
]
