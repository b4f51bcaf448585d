"""Engines: what runs a bundle's network. One module per library."""

from neurodeploy_runtime.engines._base import Engine, EngineSettings, PlaceName
from neurodeploy_runtime.engines._choose import (
    Choice,
    choose_engine,
    choose_engines,
    open_engine,
    open_engines,
    same_engine,
)
from neurodeploy_runtime.engines._local import (
    LocalSettings,
    keep_local,
    may_keep,
    read_local,
)
from neurodeploy_runtime.engines._numpy import NumpyEngine
from neurodeploy_runtime.engines._portions import Portions
from neurodeploy_runtime.engines._timing import tile_seconds

__all__ = [
    "Choice",
    "Engine",
    "EngineSettings",
    "LocalSettings",
    "NumpyEngine",
    "PlaceName",
    "Portions",
    "choose_engine",
    "choose_engines",
    "keep_local",
    "may_keep",
    "open_engine",
    "open_engines",
    "read_local",
    "same_engine",
    "tile_seconds",
]
