"""A TensorRT that knows the real bindings' names and arities, and nothing else.

What it does is decided by a :class:`Script`; that every member exists, may be set and
takes that many arguments is held to ``export/tensorrt_signatures.json``, for
TensorRT 10 and 11. A GPU's driver is faked beside it, with memory that is this
process's own.
"""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

_TABLE = json.loads(
    (Path(__file__).parent / "export" / "tensorrt_signatures.json").read_text()
)["versions"]
VERSIONS = tuple(_TABLE)

#: LayerType is no part of the table; these names are in the documentation of both.
LAYER_TYPES = (
    "CONVOLUTION",
    "DECONVOLUTION",
    "MATRIX_MULTIPLY",
    "ELEMENTWISE",
    "ATTENTION_INPUT",
)


@dataclass
class Script:
    """What the fake library does, and what was asked of it."""

    #: (LayerType name, DataType name of the output), in the network's order.
    layers: list[tuple[str, str]] = field(
        default_factory=lambda: [("CONVOLUTION", "HALF"), ("ELEMENTWISE", "FLOAT")]
    )
    edge: str = "FLOAT"
    parser_error: tuple[str, str, str] | None = None
    profile_index: int = 0
    plan: bytes | None = b"a plan"
    steps: int = 3
    inspector: str = '{"Layers": [], "Bindings": []}'
    loads: bool = True
    accepts_old_cache: bool = True
    says: str = "something is wrong"
    builder_error: str | None = None
    context: bool = True
    shape_ok: bool = True
    run_ok: bool = True
    output_shape: tuple[int, ...] = ()
    #: The network on the GPU, on an array of the input's type.
    network: Callable[[Any], Any] = lambda x: x
    asked: dict[str, Any] = field(default_factory=dict)


class Strict:
    """An object of one class of the bindings."""

    def __init__(self, module: FakeTensorRt, kind: str, **values: Any) -> None:
        store = self.__dict__
        store["_module"], store["_kind"] = module, kind
        store["_values"] = values
        store["_table"] = module._classes[kind]

    def __getattr__(self, name: str) -> Any:
        table = self.__dict__["_table"]
        if name in table["properties"]:
            return self._values[name]
        if name not in table["methods"]:
            raise AttributeError(f"TensorRT's {self._kind} has no {name}")
        arities = table["methods"][name]
        behaviour = getattr(self._module, f"{self._kind}_{name}")

        def call(*arguments: Any) -> Any:
            if not any(low <= len(arguments) <= high for low, high in arities):
                raise TypeError(
                    f"{self._kind}.{name} takes {arities}, not {len(arguments)}"
                )
            return behaviour(self, *arguments)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__class__":  # how a layer is taken as one of its kind
            self.__dict__["_table"] = self._module._classes[value.__name__]
            object.__setattr__(self, name, value)
            return
        properties = self._table["properties"]
        if name not in properties:
            raise AttributeError(f"TensorRT's {self._kind} has no {name}")
        if not properties[name]:
            raise AttributeError(f"TensorRT's {self._kind}.{name} cannot be set")
        self._values[name] = value

    def __bytes__(self) -> bytes:
        if self._kind != "IHostMemory":
            raise TypeError(f"{self._kind} has no bytes")
        return bytes(self._values["content"])


class FakeTensorRt:
    """The module; an attribute that the version lacks is an AttributeError."""

    __name__ = "tensorrt"

    def __init__(self, version: str, script: Script | None = None) -> None:
        table = _TABLE[version]
        self.__version__ = version
        self._classes = table["classes"]
        self.script = script or Script()
        self.log: Any = None
        for name, members in {**table["enums"], "LayerType": LAYER_TYPES}.items():
            setattr(
                self, name, enum.IntEnum(name, {m: i for i, m in enumerate(members)})
            )
        severity = enum.IntEnum(
            "Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"]
        )
        self.ILogger = type("ILogger", (_Base,), {"Severity": severity})
        self.IProgressMonitor = type("IProgressMonitor", (_Base,), {})
        if "IAttentionInputLayer" in table["members"]:
            self.IAttentionInputLayer = type("IAttentionInputLayer", (Strict,), {})
            self._classes = {**self._classes, "IAttentionInputLayer": _ATTENTION}

    # --- the objects that a caller makes

    def Builder(self, logger: Any) -> Strict:
        logger.check()
        self.log = logger
        if self.script.builder_error is not None:
            self.complain()
            raise TypeError(self.script.builder_error)
        return Strict(self, "Builder")

    def OnnxParser(self, network: Strict, logger: Any) -> Strict:
        assert network._kind == "INetworkDefinition"
        logger.check()
        failed = int(self.script.parser_error is not None)
        return Strict(self, "OnnxParser", num_errors=failed)

    def Runtime(self, logger: Any) -> Strict:
        logger.check()
        self.log = logger
        return Strict(self, "Runtime")

    def complain(self) -> None:
        """Log an error as the library does before it gives None."""
        self.log.log(self.ILogger.Severity.ERROR, self.script.says)

    # --- what their methods do, by class and name

    def Builder_create_network(self, _: Strict, flags: int) -> Strict:
        assert flags == 1 << self.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return Strict(self, "INetworkDefinition", num_layers=len(self.script.layers))

    def OnnxParser_parse_from_file(self, _: Strict, path: str) -> bool:
        assert isinstance(path, str)
        self.script.asked["onnx"] = path
        return self.script.parser_error is None

    def OnnxParser_get_error(self, _: Strict, index: int) -> Strict:
        assert index == 0
        return Strict(self, "ParserError")

    def ParserError_node_name(self, _: Strict) -> str:
        assert self.script.parser_error is not None
        return self.script.parser_error[0]

    def ParserError_node_operator(self, _: Strict) -> str:
        assert self.script.parser_error is not None
        return self.script.parser_error[1]

    def ParserError_desc(self, _: Strict) -> str:
        assert self.script.parser_error is not None
        return self.script.parser_error[2]

    def INetworkDefinition_get_layer(self, _: Strict, index: int) -> Strict:
        kind, dtype = self.script.layers[index]
        layer = Strict(self, "ILayer", type=self.LayerType[kind], dtype=dtype)
        if kind == "ATTENTION_INPUT":
            fresh = Strict(self, "IAttention")
            attention = self.script.asked.setdefault("attention", fresh)
            layer._values["attention"] = attention
        return layer

    def ILayer_get_output(self, layer: Strict, index: int) -> Strict:
        assert index == 0
        return Strict(self, "ITensor", dtype=self.DataType[layer._values["dtype"]])

    def INetworkDefinition_get_input(self, _: Strict, index: int) -> Strict:
        assert index == 0
        return Strict(self, "ITensor", dtype=self.DataType[self.script.edge])

    def Builder_create_builder_config(self, _: Strict) -> Strict:
        config = Strict(self, "IBuilderConfig")
        self.script.asked["config"] = config._values
        return config

    def Builder_create_optimization_profile(self, _: Strict) -> Strict:
        return Strict(self, "IOptimizationProfile")

    def IOptimizationProfile_set_shape(self, _: Strict, *shapes: Any) -> None:
        self.script.asked["profile"] = shapes

    def IBuilderConfig_add_optimization_profile(self, _: Strict, p: Strict) -> int:
        assert p._kind == "IOptimizationProfile"
        return self.script.profile_index

    def IBuilderConfig_set_memory_pool_limit(
        self, _: Strict, pool: Any, n: int
    ) -> None:
        assert pool is self.MemoryPoolType.WORKSPACE
        self.script.asked["workspace"] = n

    def IBuilderConfig_clear_flag(self, _: Strict, flag: Any) -> None:
        assert isinstance(flag, self.BuilderFlag)
        self.script.asked.setdefault("cleared", []).append(flag.name)

    def IBuilderConfig_set_flag(self, _: Strict, flag: Any) -> None:
        assert isinstance(flag, self.BuilderFlag)
        self.script.asked.setdefault("set", []).append(flag.name)

    def IBuilderConfig_create_timing_cache(
        self, _: Strict, old: bytes
    ) -> Strict | None:
        self.script.asked.setdefault("caches", []).append(old)
        if old.startswith(b"damaged"):
            return None
        return Strict(self, "ITimingCache", content=old)

    def IBuilderConfig_set_timing_cache(
        self, _: Strict, cache: Strict, ignore_mismatch: bool
    ) -> bool:
        assert ignore_mismatch is False
        self.script.asked["cache"] = cache
        return self.script.accepts_old_cache or not cache._values["content"]

    def IBuilderConfig_get_timing_cache(self, _: Strict) -> Strict:
        cache: Strict = self.script.asked["cache"]
        return cache

    def ITimingCache_serialize(self, cache: Strict) -> Strict:
        return Strict(self, "IHostMemory", content=cache._values["content"] + b"+new")

    def Builder_build_serialized_network(
        self, _: Strict, network: Strict, config: Strict
    ) -> Strict | None:
        assert (network._kind, config._kind) == ("INetworkDefinition", "IBuilderConfig")
        monitor = config._values["progress_monitor"]
        monitor.check()
        monitor.phase_start("Building engine", None, self.script.steps)
        for step in range(self.script.steps):
            if not monitor.step_complete("Building engine", step):
                monitor.phase_finish("Building engine")
                return None
        monitor.phase_finish("Building engine")
        if self.script.plan is None:
            self.complain()
            return None
        return Strict(self, "IHostMemory", content=self.script.plan)

    def Runtime_deserialize_cuda_engine(self, _: Strict, plan: bytes) -> Strict | None:
        assert isinstance(plan, bytes)
        if not self.script.loads:
            self.complain()
            return None
        return Strict(self, "ICudaEngine", num_io_tensors=2)

    def ICudaEngine_create_engine_inspector(self, _: Strict) -> Strict:
        return Strict(self, "EngineInspector")

    def EngineInspector_get_engine_information(self, _: Strict, kind: Any) -> str:
        assert kind is self.LayerInformationFormat.JSON
        return self.script.inspector

    def ICudaEngine_get_tensor_name(self, _: Strict, index: int) -> str:
        return ("voxels", "probability")[index]

    def ICudaEngine_get_tensor_mode(self, _: Strict, name: str) -> Any:
        modes = self.TensorIOMode
        return modes.INPUT if name == "voxels" else modes.OUTPUT

    def ICudaEngine_get_tensor_dtype(self, _: Strict, name: str) -> Any:
        return self.DataType[self.script.edge]

    def ICudaEngine_create_execution_context(self, _: Strict) -> Strict | None:
        if not self.script.context:
            self.complain()
            return None
        return Strict(self, "IExecutionContext", addresses={})

    def IExecutionContext_set_input_shape(
        self, context: Strict, name: str, shape: tuple[int, ...]
    ) -> bool:
        context._values["shape"] = shape
        return self.script.shape_ok

    def IExecutionContext_infer_shapes(self, _: Strict) -> list[str]:
        return []

    def IExecutionContext_get_tensor_shape(
        self, context: Strict, name: str
    ) -> tuple[int, ...]:
        return self.script.output_shape or context._values["shape"]

    def IExecutionContext_set_tensor_address(
        self, context: Strict, name: str, address: int
    ) -> bool:
        context._values["addresses"][name] = address
        return True

    def IExecutionContext_execute_async_v3(self, context: Strict, stream: int) -> bool:
        assert stream != 0, "the default stream costs synchronisation"
        if not self.script.run_ok:
            self.complain()
            return False
        dtype = np.float16 if self.script.edge == "HALF" else np.float32
        shape = context._values["shape"]
        count = int(np.prod(shape))

        def array(name: str) -> Any:
            raw = (ctypes.c_uint8 * (count * np.dtype(dtype).itemsize)).from_address(
                context._values["addresses"][name]
            )
            return np.ctypeslib.as_array(raw).view(dtype).reshape(shape)

        array("probability")[:] = self.script.network(array("voxels"))
        return True


_ATTENTION = {"methods": {}, "properties": {"attention": False}}


class _Base:
    """A class that callers derive from; its own __init__ is mandatory."""

    def __init__(self) -> None:
        self._initialised = True

    def check(self) -> None:
        assert self.__dict__.get("_initialised"), "the base's __init__ was not called"


#: The context of GPU 0; GPU n's is n more.
CONTEXT = 77


class FakeDriver:
    """GPUs of one kind, by the driver's C functions; their memory is this process's."""

    def __init__(self, name: str = "Fake GPU", capability: tuple[int, int] = (8, 9)):
        self.name, self.capability = name, capability
        self.blocks: dict[int, Any] = {}
        self.current: Any = None
        self.fails: dict[str, int] = {}

    def __getattr__(self, function: str) -> Callable[..., int]:
        behaviour: Callable[..., None] | None = getattr(
            type(self), f"_{function}", None
        )
        if behaviour is None:
            raise AttributeError(f"the driver has no {function}")

        def call(*arguments: Any) -> int:
            if function in self.fails:
                return self.fails[function]
            behaviour(self, *arguments)
            return 0

        return call

    def _cuGetErrorName(self, code: int, text: Any) -> None:
        text._obj.value = b"CUDA_ERROR_FAKE"

    def _cuDeviceGetCount(self, count: Any) -> None:
        count._obj.value = 1

    def _cuDriverGetVersion(self, version: Any) -> None:
        version._obj.value = 13020

    def _cuDeviceGet(self, device: Any, index: int) -> None:
        device._obj.value = index

    def _cuDeviceGetName(self, text: Any, size: int, device: Any) -> None:
        text.value = self.name.encode()

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> None:
        value._obj.value = self.capability[attribute - 75]

    def _cuDeviceTotalMem_v2(self, total: Any, device: Any) -> None:
        total._obj.value = 8 << 30

    def _cuMemGetInfo_v2(self, free: Any, total: Any) -> None:
        assert self.current >= CONTEXT
        total._obj.value = 8 << 30
        free._obj.value = total._obj.value - sum(map(len, self.blocks.values()))

    def _cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> None:
        context._obj.value = CONTEXT + device.value

    def _cuDevicePrimaryCtxRelease_v2(self, device: Any) -> None:
        self.current = None

    def _cuCtxSetCurrent(self, context: Any) -> None:
        self.current = context.value

    def _cuStreamCreate(self, stream: Any, flags: int) -> None:
        assert self.current >= CONTEXT
        stream._obj.value = 5

    def _cuStreamDestroy_v2(self, stream: Any) -> None:
        assert stream.value == 5

    def _cuStreamSynchronize(self, stream: Any) -> None:
        assert stream.value == 5

    def _allocate(self, address: Any, size: Any) -> None:
        assert self.current >= CONTEXT
        block = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(block)
        self.blocks[ctypes.addressof(block)] = block

    _cuMemAlloc_v2 = _cuMemAllocHost_v2 = _allocate

    def _free(self, address: Any) -> None:
        del self.blocks[address.value]

    _cuMemFree_v2 = _cuMemFreeHost = _free

    def _copy(self, target: Any, source: Any, size: Any, stream: Any) -> None:
        assert stream.value == 5
        ctypes.memmove(target.value, source.value, size.value)

    _cuMemcpyHtoDAsync_v2 = _cuMemcpyDtoHAsync_v2 = _copy
