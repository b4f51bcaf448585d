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
from neurodeploy_runtime.engines._numpy import NumpyEngine
from neurodeploy_runtime.engines._portions import Portions

__all__ = [
    "Choice",
    "Engine",
    "EngineSettings",
    "NumpyEngine",
    "PlaceName",
    "Portions",
    "choose_engine",
    "choose_engines",
    "open_engine",
    "open_engines",
    "same_engine",
]
