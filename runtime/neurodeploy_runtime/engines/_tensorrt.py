"""TensorRT: one module for `tensorrt` 10.13+, 11 and `tensorrt_rtx`."""

from __future__ import annotations

from importlib.util import find_spec

from neurodeploy_runtime._bundle import Bundle
from neurodeploy_runtime._errors import DeviceError
from neurodeploy_runtime.engines._base import Engine, EngineSettings


def why_not(bundle: Bundle, settings: EngineSettings) -> str | None:
    """Why TensorRT cannot serve this; None where it can."""
    if find_spec("tensorrt") is None and find_spec("tensorrt_rtx") is None:
        return 'tensorrt is not installed: pip install "neurodeploy[tensorrt]"'
    return "this version runs no TensorRT engines yet"


def TensorRtEngine(bundle: Bundle, settings: EngineSettings) -> Engine:
    """Refuses; the engine class takes this place."""
    raise DeviceError(f"{why_not(bundle, settings)}")
