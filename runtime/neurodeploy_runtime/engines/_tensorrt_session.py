"""An engine on a GPU: loaded, with its buffers, ready to run one fixed batch.

The calls have the same names and arities in `tensorrt` 10.13 to 11 and `tensorrt_rtx`.
"""

from __future__ import annotations

import re
import threading
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import EngineError, GpuMemoryError
from neurodeploy_runtime._spec import INPUT_NAME, OUTPUT_NAME
from neurodeploy_runtime.arrays import Arrays
from neurodeploy_runtime.engines._cuda_driver import Device

#: How CUDA and TensorRT's own checks say that memory is short.
_NO_MEMORY = re.compile(r"out ?of ?memory", re.IGNORECASE)


@cache
def process_log(trt: Any) -> Any:
    """The process's logger, which keeps the last errors for a message after a None.

    TensorRT takes the first logger of a process and ignores all later ones.
    """

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            kinds = trt.ILogger.Severity
            if severity in (kinds.INTERNAL_ERROR, kinds.ERROR):
                self.lines.append(msg.strip())
                del self.lines[:-4]

        def said(self) -> str:
            text = " | ".join(list(dict.fromkeys(self.lines))[:2])[:300]
            self.lines.clear()
            return text or "no reason given"

    return Log()


class TensorRtSession:
    """One engine, one execution context, one stream.

    Parameters
    ----------
    trt
        The module: `tensorrt` or `tensorrt_rtx`.
    plan
        The engine file's bytes.
    device
        Where it runs; owned by the caller, closed after this.
    input_shape, output_shape
        (B, 1, z, y, x) of every call.
    host_code
        The plan is VERSION_COMPATIBLE: it carries code that runs on the host.
    """

    def __init__(
        self,
        trt: Any,
        plan: bytes,
        device: Device,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        *,
        host_code: bool = False,
    ) -> None:
        self._device = device
        #: Held by who runs: the context and its buffers are one.
        self._using = threading.Lock()
        device.make_current()
        self._log = process_log(trt)
        self._runtime = trt.Runtime(self._log)
        if host_code:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            said = self._log.said()
            if _NO_MEMORY.search(said):
                raise GpuMemoryError(
                    f"no memory for the engine's weights on {device.gpu.name} ({said})",
                    input_shape[0],
                )
            raise EngineError(
                f"TensorRT refuses the engine ({said}): build it again on "
                "this machine with `neurodeploy build`"
            )
        types = {trt.DataType.FLOAT: np.float32, trt.DataType.HALF: np.float16}
        modes = {
            INPUT_NAME: trt.TensorIOMode.INPUT,
            OUTPUT_NAME: trt.TensorIOMode.OUTPUT,
        }
        dtypes: dict[str, np.dtype[Any]] = {}
        count = self._engine.num_io_tensors
        names = [self._engine.get_tensor_name(i) for i in range(count)]
        if set(names) != set(modes):
            raise EngineError(
                f"the engine has the tensors {names}, not {sorted(modes)}: it was not "
                "built from this bundle"
            )
        for name, mode in modes.items():
            kind = self._engine.get_tensor_dtype(name)
            if self._engine.get_tensor_mode(name) != mode or kind not in types:
                raise EngineError(f"the engine's {name} is {kind}: build it again")
            dtypes[name] = np.dtype(types[kind])
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise GpuMemoryError(
                f"no memory for the engine on {device.gpu.name} "
                f"({self._log.said()}): build one with a smaller --max-batch",
                input_shape[0],
            )
        if not self._context.set_input_shape(INPUT_NAME, input_shape):
            raise EngineError(
                f"the engine does not take {input_shape}: use a batch within the "
                "profile it was built with, or build it again with --max-batch"
            )
        missing = self._context.infer_shapes()
        got = tuple(self._context.get_tensor_shape(OUTPUT_NAME))
        if missing or got != output_shape:
            raise EngineError(f"the engine gives {got}, the model says {output_shape}")
        self._dtypes = dtypes
        self._in = device.pinned(input_shape, dtypes[INPUT_NAME])
        self._out = device.pinned(output_shape, dtypes[OUTPUT_NAME])
        self._addresses = {
            INPUT_NAME: device.allocate(self._in.nbytes),
            OUTPUT_NAME: device.allocate(self._out.nbytes),
        }
        self._bind(self._addresses)

    def infer(self, batch: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Run; `batch` and `out` may be used again as soon as it returns."""
        device = self._device
        with self._using:
            device.make_current()
            np.copyto(self._in, batch, casting="same_kind")
            device.upload(self._in, self._addresses[INPUT_NAME])
            self._bind(self._addresses)
            self._execute()
            device.download(self._addresses[OUTPUT_NAME], self._out)
            device.synchronise()
            np.copyto(out, self._out)

    def infer_resident(self, batch: Any, out: Any, arrays: Arrays) -> None:
        """Run on arrays that lie on this GPU; done when it returns."""
        into, outof = self._dtypes[INPUT_NAME], self._dtypes[OUTPUT_NAME]
        with arrays.step():
            feed = batch.astype(into, copy=False)
            answer = out if out.dtype == outof else arrays.xp.empty(out.shape, outof)
        with self._using:
            self._device.make_current()
            self._bind({INPUT_NAME: feed.data.ptr, OUTPUT_NAME: answer.data.ptr})
            self._execute()
            self._device.synchronise()
        if answer is not out:
            with arrays.step():
                out[...] = answer

    def _bind(self, addresses: dict[str, int]) -> None:
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise EngineError(f"TensorRT refuses the memory of {name}")

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._device.stream):
            text = f"TensorRT could not run: {self._log.said()}"
            if _NO_MEMORY.search(text):
                raise GpuMemoryError(text, self._in.shape[0])
            raise EngineError(text)

    def close(self) -> None:
        """Give back the context, then the engine, then its runtime."""
        for name in ("_context", "_engine", "_runtime"):
            self.__dict__.pop(name, None)
