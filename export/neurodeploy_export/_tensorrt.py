"""Building a TensorRT engine: one strongly typed path for 10.13+, 11 and RTX.

Every name used here exists with this arity in `tensorrt` 10.13 to 11.4 and in
`tensorrt_rtx` 1.7. Precision is the graph's: TensorRT 11 has no switch for it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neurodeploy_export._errors import (
    BuildError,
    ExportRequestError,
    PrecisionError,
    TensorRtMissingError,
)
from neurodeploy_export._settings import Precision
from neurodeploy_runtime._errors import CancelledError
from neurodeploy_runtime._spec import INPUT_NAME
from neurodeploy_runtime.engines._tensorrt_plans import Compatibility
from neurodeploy_runtime.engines._tensorrt_session import process_log

#: Layers that do the arithmetic; names of trt.LayerType.
_COMPUTE_LAYERS = (
    "CONVOLUTION",
    "DECONVOLUTION",
    "MATRIX_MULTIPLY",
    "ATTENTION_INPUT",
)
#: In the name of a region that TensorRT compiles as one layer, and of its reformats.
_FUSED = "ForeignNode["
#: Below this share of an engine's layers in half, it is an FP32 engine by another name.
MIN_ENGINE_SHARE = 0.2
#: The same for the parsed network's arithmetic.
MIN_NETWORK_SHARE = 0.2

#: Told the phase and the share of it that is done.
Report = Callable[[str, float], None]


@dataclass(frozen=True)
class PlanRequest:
    """What is to be built, as plain values that travel to another process."""

    onnx: str
    out: str
    timing_cache: str
    tile: tuple[int, int, int]
    max_batch: int
    precision: Precision
    workspace_bytes: int | None = None
    optimisation: int = 3
    version_compatible: bool = False
    hardware_compatibility: Compatibility = "none"


@dataclass(frozen=True)
class PlanFacts:
    """What was built, and what could be read back of its precision.

    `network_half_share` is of the convolutions and matrix products of the parsed,
    strongly typed network, which TensorRT may not change; `engine_half_share` is of
    the built engine's layers, by the inspector, and None where that could not look;
    then `engine_unread` says why.
    """

    seconds: float
    bytes: int
    layers: int
    io: Precision
    network_half_share: float
    engine_half_share: float | None
    engine_unread: str | None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def build_plan(
    trt: Any, request: PlanRequest, report: Report, cancelled: Callable[[], bool]
) -> PlanFacts:
    """Build an engine into `request.out`; only the file, no side-car.

    Raises
    ------
    BuildError
        The parser or the builder refuses; the text has the node and the operator.
    PrecisionError
        FP16 was asked for and the network or the engine is not.
    CancelledError
        `cancelled` said so.
    """
    began = time.monotonic()
    log = process_log(trt)
    try:
        builder = trt.Builder(log)
    except Exception as error:
        raise TensorRtMissingError(
            f"{trt.__name__} {trt.__version__} cannot build on this machine: {error} "
            f"({log.said()}); it needs an NVIDIA driver and GPU: run `neurodeploy "
            "doctor`, or build with tensorrt_rtx, which needs neither"
        ) from error
    network = builder.create_network(
        1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    parser = trt.OnnxParser(network, log)
    try:
        if not parser.parse_from_file(request.onnx):
            raise BuildError(_parser_errors(parser, request.onnx))
        _decompose_attention(trt, network)
        share = _network_half_share(trt, network)
        if request.precision == "fp16" and share < MIN_NETWORK_SHARE:
            raise PrecisionError(
                f"{Path(request.onnx).name} was to be built in fp16, but only "
                f"{share:.0%} of its convolutions and matrix products are in half: "
                "export the checkpoint again with --precision fp16"
            )
        config, monitor = _configure(trt, builder, request, report, cancelled)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            if monitor.failure is not None:
                raise monitor.failure
            if cancelled():
                raise CancelledError("the build was cancelled; nothing was written")
            raise BuildError(
                f"TensorRT could not build {Path(request.onnx).name}: {log.said()}"
            )
        blob = bytes(plan)
        _keep_timing_cache(config, request)
        layers = network.num_layers
        half_io = network.get_input(0).dtype == trt.DataType.HALF
    finally:
        # The parser refers to the network; freed the other way round it crashes.
        del parser
    Path(request.out).write_bytes(blob)
    engine_share, unread = _engine_half_share(trt, blob, request)
    if (
        request.precision == "fp16"
        and engine_share is not None
        and engine_share < MIN_ENGINE_SHARE
    ):
        Path(request.out).unlink()
        raise PrecisionError(
            f"fp16 was asked for, and {engine_share:.0%} of the engine's layers run in "
            "half: TensorRT built an FP32 engine; nothing was kept"
        )
    return PlanFacts(
        round(time.monotonic() - began, 2),
        len(blob),
        layers,
        "fp16" if half_io else "fp32",
        round(share, 4),
        engine_share,
        unread,
    )


def _parser_errors(parser: Any, onnx: str) -> str:
    found = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        found.append(
            f"node {error.node_name() or error.node()!r} "
            f"({error.node_operator() or 'no operator'}): {error.desc()}"
        )
    text = "; ".join(found[:5]) or "no reason given"
    return f"TensorRT's parser refuses {Path(onnx).name}: {text}"


def _decompose_attention(trt: Any, network: Any) -> None:
    """Let TensorRT take FP32 attention apart (10.14+), which it cannot build whole."""
    if not hasattr(trt, "IAttentionInputLayer"):
        return
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _network_half_share(trt: Any, network: Any) -> float:
    """Of the layers that do arithmetic, the share whose output is FP16."""
    kinds = [
        getattr(trt.LayerType, name)
        for name in _COMPUTE_LAYERS
        if hasattr(trt.LayerType, name)
    ]
    total = half = 0
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type in kinds:
            total += 1
            half += layer.get_output(0).dtype == trt.DataType.HALF
    return half / max(1, total)


def _configure(
    trt: Any,
    builder: Any,
    request: PlanRequest,
    report: Report,
    cancelled: Callable[[], bool],
) -> tuple[Any, Any]:
    config = builder.create_builder_config()
    if request.workspace_bytes is not None:
        config.set_memory_pool_limit(
            trt.MemoryPoolType.WORKSPACE, request.workspace_bytes
        )
    config.builder_optimization_level = request.optimisation
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # On by default: FP32 would be rounded to 10 bits of mantissa.
    config.clear_flag(trt.BuilderFlag.TF32)
    if request.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if request.hardware_compatibility != "none":
        config.hardware_compatibility_level = getattr(
            trt.HardwareCompatibilityLevel, request.hardware_compatibility.upper()
        )
    profile = builder.create_optimization_profile()
    shapes = [(b, 1, *request.tile) for b in (1, request.max_batch, request.max_batch)]
    profile.set_shape(INPUT_NAME, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise BuildError(
            f"TensorRT refuses the profile {shapes[0]} to {shapes[2]} for "
            f"{INPUT_NAME}: it does not fit the graph's tile"
        )
    if hasattr(config, "create_timing_cache"):
        file = Path(request.timing_cache)
        old = file.read_bytes() if file.is_file() else b""
        cache = config.create_timing_cache(old)
        # None where the file is damaged; refused where another GPU's.
        if cache is None or not config.set_timing_cache(cache, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)
    monitor = _make_monitor(trt, report, cancelled)
    config.progress_monitor = monitor
    return config, monitor


def _keep_timing_cache(config: Any, request: PlanRequest) -> None:
    cache = config.get_timing_cache() if hasattr(config, "get_timing_cache") else None
    if cache is None:
        return
    file = Path(request.timing_cache)
    part = file.with_suffix(".part")
    part.write_bytes(bytes(cache.serialize()))
    part.replace(file)


def _make_monitor(trt: Any, report: Report, cancelled: Callable[[], bool]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """The builder's phases as a share; it may not raise into the builder."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.failure: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(
            self, phase_name: str, parent_phase: str | None, num_steps: int
        ) -> None:
            del parent_phase
            self._steps[phase_name] = num_steps
            self._tell(phase_name, 0.0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, (step + 1) / max(1, self._steps.get(phase_name, 1)))
            return self.failure is None and not cancelled()

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

        def _tell(self, phase: str, share: float) -> None:
            try:
                report(phase, min(1.0, share))
            except BaseException as error:
                self.failure = error

    return Monitor()


def _engine_half_share(
    trt: Any, blob: bytes, request: PlanRequest
) -> tuple[float | None, str | None]:
    """Read the built engine's precision back; or why it could not be read."""
    log = process_log(trt)
    runtime = trt.Runtime(log)
    if request.version_compatible:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(blob)
    if engine is None:
        return None, f"the engine does not load on this machine: {log.said()}"
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    share = half_share_of(text)
    if share is None:
        return None, "the inspector names no layer's precision"
    return share, None


def half_share_of(information: str) -> float | None:
    """The share of layers with an FP16 output, from the inspector's JSON.

    Layers whose outputs are integers or booleans do not count, nor do regions that
    TensorRT compiles as one layer, of whatever is inside (TensorRT #4157: a whole
    network), whose output may be the network's own in FP32. None where the JSON says
    nothing of types: its keys differ between versions.
    """
    try:
        layers = json.loads(information)["Layers"]
    except (ValueError, KeyError, TypeError):
        return None
    half = wide = 0
    for layer in layers:
        if not isinstance(layer, dict) or _FUSED in str(layer.get("Name")):
            continue
        text = json.dumps(layer.get("Outputs", [])).lower()
        if "half" in text or "fp16" in text or "float16" in text:
            half += 1
        elif "float" in text or "fp32" in text:
            wide += 1
    return half / (half + wide) if half + wide else None


def check_options(request: PlanRequest, library: str) -> None:
    """Refuse what a library does not have, before its process starts."""
    if library == "tensorrt_rtx" and (
        request.version_compatible or request.hardware_compatibility != "none"
    ):
        raise ExportRequestError(
            "tensorrt_rtx has no version or hardware compatibility options: its "
            "engines are portable among GPUs as they are, and bound to its version"
        )
