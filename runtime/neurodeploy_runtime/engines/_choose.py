"""From what was asked for to an engine that runs, with the reasons."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from neurodeploy_runtime._bundle import Bundle
from neurodeploy_runtime._errors import DeviceError, GpuMemoryError, SettingsError
from neurodeploy_runtime.engines import _onnxruntime, _openvino, _tensorrt
from neurodeploy_runtime.engines._base import Engine, EngineSettings
from neurodeploy_runtime.engines._resident import settle_residence

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def require_device(device: str) -> None:
    """Refuse what names no device, or several.

    Raises
    ------
    SettingsError
        It is not auto, cpu, cuda or cuda:N.
    """
    if not _DEVICE.fullmatch(device):
        raise SettingsError(f"device {device!r} is unknown: use auto, cpu or cuda:N")


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
    require_device(settings.device)
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
            ("blending on", settings.blend_on),
        )
        if value != "auto"
    )
    raise DeviceError(
        f"no engine can serve {asked or 'this model'} here: "
        + ("; ".join(reasons) or f"there is {' and '.join(others)}")
    )


def choose_engines(bundle: Bundle, settings: EngineSettings) -> tuple[Choice, ...]:
    """One engine for each device of a list such as ``cuda:0,cuda:1``.

    Raises
    ------
    DeviceError
        One of them is not possible here, or they would be different engines.
    """
    devices = [device.strip() for device in settings.device.split(",")]
    if len(devices) > 1 and "auto" in devices:
        raise SettingsError(
            f"device {settings.device!r} mixes auto with others: name every device"
        )
    if len(devices) > 1 and settings.blend_on == "gpu":
        raise SettingsError(
            f"{settings.device} have no memory in common: their tiles are blended on "
            "the host; leave out --blend-on, or name one GPU"
        )
    choices = tuple(
        choose_engine(bundle, replace(settings, device=device)) for device in devices
    )
    kinds = {(choice.adapter.name, choice.adapter.device) for choice in choices}
    if len(kinds) > 1:
        names = " and ".join(f"{name} on {device}" for name, device in sorted(kinds))
        raise DeviceError(
            f"device {settings.device!r} would run {names}, whose answers differ in "
            "the last bits: name devices of one kind, or one engine with --engine"
        )
    return choices


def open_engines(bundle: Bundle, choices: Sequence[Choice]) -> list[Engine]:
    """Load the network into each engine, and warm them up.

    A batch that the memory of a GPU does not hold is halved, for all of them, until it
    does; their `notes` say so.

    Raises
    ------
    DeviceError
        The engines are not the same: which tile went where would decide the result.
    GpuMemoryError
        Not even a single tile fits.
    """
    notes: tuple[str, ...] = ()
    while True:
        opened: list[Engine] = []
        try:
            for choice in choices:
                opened.append(choice.adapter.open(bundle, choice.settings))
                opened[-1].notes = notes
                opened[-1].warm_up()
                if len(choices) == 1:
                    settle_residence(opened[-1], choice.settings)
            same_engine(opened)
            return opened
        except BaseException as error:
            for engine in opened:
                engine.close()
            if not isinstance(error, GpuMemoryError) or error.batch < 2:
                raise
            fewer = error.batch // 2
            notes = (*notes, f"batch {error.batch}, {fewer} instead: {error}")
            choices = [
                replace(choice, settings=replace(choice.settings, batch=fewer))
                for choice in choices
            ]


def same_engine(engines: Sequence[Engine]) -> dict[str, Any]:
    """What all of them are, `device` naming each.

    Raises
    ------
    DeviceError
        They differ in more than their place.
    """
    told = [engine.describe() for engine in engines]
    kinds = [{k: v for k, v in one.items() if k != "device"} for one in told]
    devices = [one["device"] for one in told]
    if any(kind != kinds[0] for kind in kinds):
        raise DeviceError(
            f"the devices {' and '.join(devices)} differ in kind, and so would their "
            "answers: use GPUs of one model"
        )
    return {**told[0], "device": ",".join(devices)}


def open_engine(bundle: Bundle, settings: EngineSettings | None = None) -> Engine:
    """Load the network into the engine that was asked for, and warm it up."""
    choice = choose_engine(bundle, settings or EngineSettings())
    (engine,) = open_engines(bundle, [choice])
    return engine
