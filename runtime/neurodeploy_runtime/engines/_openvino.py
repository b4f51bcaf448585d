"""OpenVINO on a CPU: the same ONNX file, in f32 or bf16."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from math import prod
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._bundle import Bundle
from neurodeploy_runtime._errors import EngineError
from neurodeploy_runtime._spec import INPUT_NAME, OUTPUT_NAME
from neurodeploy_runtime.engines._base import Engine, EngineSettings, take_answer
from neurodeploy_runtime.engines._cores import usable_cores
from neurodeploy_runtime.engines._local import local_settings
from neurodeploy_runtime.engines._resident import why_not_resident

#: Voxels of the tiles that are computed at once: a larger tile is work enough for all
#: cores, and each call holds the features of its own.
_AT_ONCE_VOXELS = 1 << 20


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
    """One compiled model on the CPU, and a request for each call at once.

    The cores share out small tiles: all of them in one would wait for each other at
    every layer, and for whatever else a core does meanwhile.
    """

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
        asked = settings.threads or (local.threads if local else None)
        threads = asked or usable_cores()
        most = _AT_ONCE_VOXELS // prod(self.input_shape)
        self.at_once = max(1, min(threads, most))
        path = bundle.onnx("fp32")
        config: dict[str, Any] = {
            # Left to itself it computes in bf16 wherever the CPU can.
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "NUM_STREAMS": self.at_once,
            "INFERENCE_NUM_THREADS": threads,
        }
        self._requests: SimpleQueue[Any] = SimpleQueue()
        try:
            core = openvino.Core()
            model = core.read_model(str(path))
            model.reshape(list(self.input_shape))
            self._compiled = core.compile_model(model, "CPU", config)
            for _ in range(self.at_once):
                self._requests.put(self._compiled.create_infer_request())
        except Exception as error:
            raise EngineError(f"OpenVINO cannot load {path}: {error}") from error

    def infer(self, batch: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """See :meth:`Engine.infer`."""
        # A request is one caller's at a time: another would take its answer.
        request = self._requests.get()
        try:
            request.infer({INPUT_NAME: batch}, share_inputs=True)
            take_answer(request.get_tensor(OUTPUT_NAME).data, out)
        except Exception as error:
            raise EngineError(
                f"OpenVINO failed at batch {self.batch}: {error}"
            ) from error
        finally:
            self._requests.put(request)

    def close(self) -> None:
        """See :meth:`Engine.close`."""
        self._requests = SimpleQueue()
        self.__dict__.pop("_compiled", None)
