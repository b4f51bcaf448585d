"""ONNX Runtime: on the CPU everywhere, on CUDA where its provider loads."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._bundle import ONNX, Bundle
from neurodeploy_runtime._errors import (
    DeviceError,
    EngineError,
    GpuMemoryError,
    said_by,
)
from neurodeploy_runtime._spec import INPUT_NAME, OUTPUT_NAME
from neurodeploy_runtime.arrays import Arrays
from neurodeploy_runtime.arrays._cuda import CudaArrays
from neurodeploy_runtime.engines._base import Engine, EngineSettings, take_answer
from neurodeploy_runtime.engines._cores import usable_cores
from neurodeploy_runtime.engines._cuda_driver import gpus
from neurodeploy_runtime.engines._local import local_settings
from neurodeploy_runtime.engines._resident import stays_resident, why_not_resident

#: How the CUDA provider, CUDA itself and cuDNN say that memory is short.
_NO_MEMORY = re.compile(
    r"Failed to allocate memory|smaller than requested bytes|out of memory|"
    r"ALLOC(ATION)?_FAILED|CUDA failure 2\b"
)

DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")


def installed_distributions() -> list[str]:
    """The distributions here that share the import folder `onnxruntime`."""
    have = []
    for name in DISTRIBUTIONS:
        try:
            have.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return have


def why_not(bundle: Bundle, settings: EngineSettings) -> str | None:
    """Why ONNX Runtime cannot serve this; None where it can."""
    if find_spec("onnxruntime") is None:
        return "onnxruntime is not installed: pip install onnxruntime"
    have = installed_distributions()
    if len(have) > 1:
        return (
            f"{' and '.join(have)} are installed in one folder and overwrite each "
            "other: pip uninstall all of them, then pip install one"
        )
    if settings.precision == "bf16":
        return "ONNX Runtime has no bf16 here: use OpenVINO on a CPU, or fp16 on a GPU"
    if settings.device.startswith("cuda"):
        if settings.precision == "fp16" and "fp16" not in bundle.precisions:
            return (
                f"the bundle has no {ONNX['fp16']}: export the checkpoint again with "
                "--precision fp16"
            )
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            return "this onnxruntime has no CUDA provider: pip install onnxruntime-gpu"
        count = cuda_devices()
        if not count:
            return "no NVIDIA driver or GPU was found (libcuda counts no device)"
        index = int(settings.device.partition(":")[2] or 0)
        if index >= count:
            return f"no NVIDIA GPU {index} was found, the driver counts {count}"
        if reason := why_no_cuda(index):
            return (
                f"its CUDA provider does not work ({reason}): pip install "
                '"neurodeploy[cuda]", and see what `neurodeploy doctor` says'
            )
    elif settings.precision == "fp16":
        return "fp16 on a CPU is fp32 with casts between: use a GPU, or fp32"
    return why_not_resident(settings)


def cuda_devices() -> int:
    """How many GPUs the NVIDIA driver counts; 0 without a driver."""
    import ctypes

    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        count = ctypes.c_int(0)
        if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0:
            return count.value
    return 0


@cache
def load_cuda() -> str | None:
    """Load the CUDA and cuDNN libraries that pip installed; why they do not load.

    The provider names them without a folder, and the loader looks in none of pip's.
    """
    import onnxruntime

    if not hasattr(onnxruntime, "preload_dlls"):
        return None  # before 1.21: they are where the loader looks, or nowhere
    said = io.StringIO()
    with redirect_stdout(said):
        onnxruntime.preload_dlls()
    lines = said.getvalue().splitlines()
    # It goes on to the loader's own folders, and adds a line where that failed, too.
    if not any(line.startswith("Please follow") for line in lines):
        return None
    return next(line for line in lines if line.startswith("Failed to load"))


@cache
def why_no_cuda(index: int) -> str | None:
    """Why ONNX Runtime runs nothing on a GPU; None where it ran a convolution there.

    Its provider counts as available wherever it was compiled in. Whether the libraries
    of CUDA are found a session tells, and of cuDNN a convolution.
    """
    import onnxruntime

    if reason := load_cuda():
        return reason
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = onnxruntime.InferenceSession(
            _CONVOLUTION,
            sess_options=options,
            providers=[("CUDAExecutionProvider", {"device_id": str(index)})],
            enable_fallback=0,
        )
        session.run(None, {"x": np.ones((1, 1, 1, 1, 1), np.float32)})
    except Exception as error:
        # One that is full works: what has no room there is the engine's to say.
        return None if _NO_MEMORY.search(str(error)) else said_by(error)
    return None


#: An ONNX graph of one 3-D convolution, opset 20: no onnx is needed to write it.
_CONVOLUTION = (
    b'\x08\x08:m\n\x0f\n\x01x\n\x01w\x12\x01y"\x04Conv\x12\x01g'
    b"*\x15\x08\x01\x08\x01\x08\x01\x08\x01\x08\x01\x10\x01B\x01wJ\x04\x00\x00\x80?"
    b"Z\x1f\n\x01x\x12\x1a\n\x18\x08\x01\x12\x14"
    b"\n\x02\x08\x01\n\x02\x08\x01\n\x02\x08\x01\n\x02\x08\x01\n\x02\x08\x01"
    b"b\x1f\n\x01y\x12\x1a\n\x18\x08\x01\x12\x14"
    b"\n\x02\x08\x01\n\x02\x08\x01\n\x02\x08\x01\n\x02\x08\x01\n\x02\x08\x01"
    b"B\x04\n\x00\x10\x14"
)


class OnnxRuntimeEngine(Engine):
    """A session of ONNX Runtime with one provider, which is the one asked for."""

    name = "onnxruntime"
    divisible = True

    def __init__(self, bundle: Bundle, settings: EngineSettings) -> None:
        import onnxruntime

        on_cuda = settings.device.startswith("cuda")
        half = on_cuda and (
            settings.precision == "fp16"
            or (settings.precision == "auto" and "fp16" in bundle.precisions)
        )
        device = settings.device if on_cuda else "cpu"
        precision = "fp16" if half else "fp32"
        local = local_settings(bundle, self.name, device, precision)
        default_batch = bundle.spec.max_batch if on_cuda else 1
        super().__init__(
            bundle,
            device=device,
            precision=precision,
            batch=settings.batch or (local.batch if local else default_batch),
        )
        threads = settings.threads or (local.threads if local else None)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # Spinning threads would burn the cores that decode and blend.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        wanted = "CUDAExecutionProvider" if on_cuda else "CPUExecutionProvider"
        providers: list[Any] = [wanted]
        self._kind = "cuda" if on_cuda else "cpu"
        self._index = int(settings.device.partition(":")[2] or 0) if on_cuda else 0
        self.resident = on_cuda and stays_resident(settings)
        if on_cuda:
            load_cuda()
            # Sums in the order in which threads end differ from run to run.
            options.use_deterministic_compute = True
            providers = [
                (
                    wanted,
                    {
                        "device_id": str(self._index),
                        "cudnn_conv_algo_search": "HEURISTIC",
                        # Off, it keeps convolutions of any type from tensor cores,
                        # those of half, too; TF32 has the mantissa of half.
                        "use_tf32": "1" if half else "0",
                        "arena_extend_strategy": "kSameAsRequested",
                    },
                )
            ]
        path = bundle.onnx("fp16" if half else "fp32")
        try:
            # What fails on a GPU would be done again on the CPU, with other bits.
            self._session = onnxruntime.InferenceSession(
                str(path), sess_options=options, providers=providers, enable_fallback=0
            )
        except Exception as error:
            text = f"ONNX Runtime cannot load {path}: {error}"
            if on_cuda and _NO_MEMORY.search(text):
                # Weights take the same for any batch.
                raise GpuMemoryError(text, batch=0) from error
            raise EngineError(text) from error
        # It falls back to the CPU with a log line only: what was asked for must run.
        got = self._session.get_providers()[0]
        if got != wanted:
            raise DeviceError(
                f"ONNX Runtime was asked for {wanted} and gave {got}: the CUDA and "
                "cuDNN libraries of this onnxruntime-gpu were not found; run "
                "`neurodeploy doctor`, or pass --device cpu"
            )
        self._half_io = self._session.get_inputs()[0].type == "tensor(float16)"

    def infer(self, batch: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """See :meth:`Engine.infer`."""
        feed = batch.astype(np.float16) if self._half_io else batch
        with self._named():
            (answer,) = self._session.run([OUTPUT_NAME], {INPUT_NAME: feed})
            take_answer(answer, out)

    def arrays(self) -> Arrays:
        """See :meth:`Engine.arrays`."""
        return CudaArrays(self._index) if self.resident else super().arrays()

    def infer_resident(self, batch: Any, out: Any, arrays: Arrays) -> None:
        """See :meth:`Engine.infer_resident`."""
        if not self.resident:
            self.infer(batch, out)
            return
        element = np.float16 if self._half_io else np.float32
        with arrays.step():
            feed = batch.astype(element, copy=False)
            answer = arrays.xp.empty(out.shape, element) if self._half_io else out
        with self._named():
            binding = self._session.io_binding()
            for bind, name, array in (
                (binding.bind_input, INPUT_NAME, feed),
                (binding.bind_output, OUTPUT_NAME, answer),
            ):
                at = array.data.ptr
                bind(name, self._kind, self._index, element, array.shape, at)
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        if answer is not out:
            with arrays.step():
                out[...] = answer

    def describe(self) -> dict[str, Any]:
        """What runs where; of a GPU its name: another model gives other last bits."""
        told = super().describe()
        if self._kind == "cuda":
            names = [gpu.name for gpu in gpus() if gpu.index == self._index]
            told["gpu"] = names[0] if names else "unknown"
        return told

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What the library raises, as an error of ours."""
        try:
            yield
        except Exception as error:
            text = (
                f"ONNX Runtime failed on {self.device} at batch {self.batch}: {error}"
            )
            if self.device != "cpu" and _NO_MEMORY.search(str(error)):
                raise GpuMemoryError(text, self.batch) from error
            raise EngineError(text) from error

    def close(self) -> None:
        """See :meth:`Engine.close`."""
        self.__dict__.pop("_session", None)
