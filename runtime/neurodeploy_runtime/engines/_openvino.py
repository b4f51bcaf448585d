"""OpenVINO on a CPU: the same ONNX file, in f32 or bf16."""

from __future__ import annotations

import threading
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._bundle import Bundle
from neurodeploy_runtime._errors import EngineError
from neurodeploy_runtime.engines._base import Engine, EngineSettings
from neurodeploy_runtime.engines._cores import usable_cores
from neurodeploy_runtime.engines._local import local_settings
from neurodeploy_runtime.engines._resident import why_not_resident


def why_not(bundle: Bundle, settings: EngineSettings) -> str | None:
    """Why OpenVINO cannot serve this; None where it can."""
    if find_spec("openvino") is None:
        return 'openvino is not installed: pip install "neurodeploy[openvino]"'
    if settings.device.startswith("cuda"):
        return "OpenVINO does not run on NVIDIA GPUs: use --device cpu"
    if settings.precision == "fp16":
        return "OpenVINO on a CPU computes in fp32 or bf16: use one of them"
    if settings.precision == "bf16" and "BF16" not in _capabilities():
        return (
            "this CPU has no bf16, and OpenVINO would compute in fp32 without a word: "
            "use --precision fp32"
        )
    return why_not_resident(settings)


@cache
def _capabilities() -> list[str]:
    """What OpenVINO says that this CPU computes in."""
    import openvino

    return list(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


class OpenVinoEngine(Engine):
    """One compiled model and one request, on the CPU."""

    name = "openvino"

    def __init__(self, bundle: Bundle, settings: EngineSettings) -> None:
        import openvino

        bf16 = settings.precision == "bf16"
        precision = "bf16" if bf16 else "fp32"
        local = local_settings(bundle, self.name, "cpu", precision)
        super().__init__(
            bundle,
            device="cpu",
            precision=precision,
            batch=settings.batch or (local.batch if local else 1),
        )
        threads = settings.threads or (local.threads if local else None)
        path = bundle.onnx("fp32")
        config: dict[str, Any] = {
            # Left to itself it computes in bf16 wherever the CPU can.
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads or usable_cores(),
        }
        self._using = threading.Lock()
        try:
            core = openvino.Core()
            model = core.read_model(str(path))
            model.reshape(list(self.input_shape))
            self._compiled = core.compile_model(model, "CPU", config)
            self._request = self._compiled.create_infer_request()
        except Exception as error:
            raise EngineError(f"OpenVINO cannot load {path}: {error}") from error

    def infer(self, batch: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """See :meth:`Engine.infer`."""
        try:
            # Of two streams, one would take the answer of the other.
            with self._using:
                self._request.infer([batch], share_inputs=True)
                np.copyto(out, self._request.get_output_tensor(0).data)
        except Exception as error:
            raise EngineError(
                f"OpenVINO failed at batch {self.batch}: {error}"
            ) from error

    def close(self) -> None:
        """See :meth:`Engine.close`."""
        self.__dict__.pop("_request", None)
        self.__dict__.pop("_compiled", None)
