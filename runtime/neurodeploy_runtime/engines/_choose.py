"""From what was asked for to an engine that runs, with the reasons."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from neurodeploy_runtime._bundle import Bundle
from neurodeploy_runtime._errors import DeviceError, SettingsError
from neurodeploy_runtime.engines import _onnxruntime, _openvino, _tensorrt
from neurodeploy_runtime.engines._base import Engine, EngineSettings

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass(frozen=True)
class Adapter:
    """An engine that may be chosen: why it cannot serve, and how it is opened."""

    name: str
    device: str
    why_not: Callable[[Bundle, EngineSettings], str | None]
    open: Callable[[Bundle, EngineSettings], Engine]


#: Best first. To add an engine, add its module and its line here.
ADAPTERS = (
    Adapter("tensorrt", "cuda", _tensorrt.why_not, _tensorrt.TensorRtEngine),
    Adapter(
        "onnxruntime", "cuda", _onnxruntime.why_not, _onnxruntime.OnnxRuntimeEngine
    ),
    Adapter("openvino", "cpu", _openvino.why_not, _openvino.OpenVinoEngine),
    Adapter("onnxruntime", "cpu", _onnxruntime.why_not, _onnxruntime.OnnxRuntimeEngine),
)


@dataclass(frozen=True)
class Choice:
    """What will run, and why nothing better does."""

    adapter: Adapter
    settings: EngineSettings
    passed_over: tuple[str, ...]


def choose_engine(bundle: Bundle, settings: EngineSettings) -> Choice:
    """The best engine that can serve the request.

    Raises
    ------
    DeviceError
        What was asked for is not possible here; the text says why, and what to do.
    """
    if not _DEVICE.fullmatch(settings.device):
        raise SettingsError(
            f"device {settings.device!r} is unknown: use auto, cpu or cuda:N"
        )
    reasons: list[str] = []
    others: list[str] = []
    for adapter in ADAPTERS:
        if settings.engine not in ("auto", adapter.name):
            continue
        if settings.device != "auto" and not settings.device.startswith(adapter.device):
            others.append(f"{adapter.name} on {adapter.device}")
            continue
        on_cuda = adapter.device == "cuda"
        device = settings.device
        if device == "auto":
            device = "cuda:0" if on_cuda else "cpu"
        resolved = replace(settings, device="cuda:0" if device == "cuda" else device)
        reason = adapter.why_not(bundle, resolved)
        if reason is None:
            return Choice(adapter, resolved, tuple(reasons))
        reasons.append(f"{adapter.name} on {device}: {reason}")
    asked = ", ".join(
        f"{name} {value}"
        for name, value in (
            ("engine", settings.engine),
            ("device", settings.device),
            ("precision", settings.precision),
        )
        if value != "auto"
    )
    raise DeviceError(
        f"no engine can serve {asked or 'this model'} here: "
        + ("; ".join(reasons) or f"there is {' and '.join(others)}")
    )


def open_engine(bundle: Bundle, settings: EngineSettings | None = None) -> Engine:
    """Load the network into the engine that was asked for, and warm it up."""
    choice = choose_engine(bundle, settings or EngineSettings())
    engine = choice.adapter.open(bundle, choice.settings)
    try:
        engine.warm_up()
    except BaseException:
        engine.close()
        raise
    return engine
