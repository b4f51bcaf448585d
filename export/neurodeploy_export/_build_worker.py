"""The process in which TensorRT builds: its crash is not ours.

It reads one request as a line of JSON, then waits for ``cancel`` or the end of its
input, which is its parent's death. It answers with lines of JSON on the descriptor
that was its standard output; what the libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from neurodeploy_export import _errors
from neurodeploy_export._tensorrt import PlanRequest, build_plan
from neurodeploy_runtime._errors import DeviceError, EngineError, NeurodeployError
from neurodeploy_runtime._golden import batches
from neurodeploy_runtime.engines import _tensorrt_plans as plans
from neurodeploy_runtime.engines._cuda_driver import Device
from neurodeploy_runtime.engines._tensorrt_session import TensorRtSession, process_log


def main() -> int:
    """Serve one request; always 0 unless the process dies."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def send(**message: Any) -> None:
        with lock:
            channel.write(json.dumps(message) + "\n")
            channel.flush()

    asked = json.loads(sys.stdin.readline())
    stop = threading.Event()

    def work() -> None:
        try:
            send(done=serve(asked, send, stop.is_set))
        except NeurodeployError as error:
            send(error=type(error).__name__, text=str(error))
        except Exception as error:
            send(error="BuildError", text=f"{type(error).__name__}: {error}")

    # Beside the main thread, which has to hear of a cancellation meanwhile.
    worker = threading.Thread(target=work)
    worker.start()
    listener = threading.Thread(target=_listen, args=(stop,), daemon=True)
    listener.start()
    worker.join()
    channel.close()
    sys.stderr.flush()
    # No interpreter shutdown: TensorRT's destructors may crash after a good build.
    os._exit(0)


def _listen(stop: threading.Event) -> None:
    sys.stdin.readline()
    stop.set()


def serve(
    asked: dict[str, Any], send: Callable[..., None], cancelled: Callable[[], bool]
) -> dict[str, Any]:
    """Do what a request asks, on the GPU that it names; None names no GPU.

    TensorRT takes the GPU whose context is current on the calling thread, which is
    the first one where nobody chose.
    """
    trt = plans.import_library(asked["library"])
    if asked["gpu"] is None:
        return _do(trt, asked, send, cancelled)
    with Device(asked["gpu"]) as device:
        if asked["do"] == "run":
            return run_plan(trt, asked, device)
        return _do(trt, asked, send, cancelled)


def _do(
    trt: Any,
    asked: dict[str, Any],
    send: Callable[..., None],
    cancelled: Callable[[], bool],
) -> dict[str, Any]:
    if asked["do"] == "load":
        return {"refused": _refusal(trt, asked)}
    request = asked["request"]
    request["tile"] = tuple(request["tile"])
    facts = build_plan(
        trt,
        PlanRequest(**request),
        lambda phase, share: send(phase=phase, share=share),
        cancelled,
    )
    return facts.to_json()


def run_plan(trt: Any, asked: dict[str, Any], device: Device) -> dict[str, Any]:
    """Run an engine on a bundle's golden tiles; the answers go into a file.

    In batches of ``batch``, the file in the order of :func:`batches`.
    """
    import time

    with np.load(asked["golden"], allow_pickle=False) as golden:
        voxels = golden["voxels"].astype(np.float32)
        window = golden["probability"].shape[1:]
    tiles = batches(len(voxels), asked["batch"])
    answers = np.empty((*tiles.shape, *window), np.float32)
    session = TensorRtSession(
        trt,
        Path(asked["engine"]).read_bytes(),
        device,
        (asked["batch"], *voxels.shape[1:]),
        (asked["batch"], *window),
        host_code=asked["host_code"],
    )
    times = []
    for numbers, out in zip(tiles, answers, strict=True):
        batch = voxels[numbers]
        began = time.perf_counter()
        session.infer(batch, out)
        times.append((time.perf_counter() - began) / asked["batch"])
    session.close()
    np.save(asked["answers"], answers.reshape(-1, *window), allow_pickle=False)
    return {"gpu": device.gpu.name, "seconds_a_tile": min(times)}


def _refusal(trt: Any, asked: dict[str, Any]) -> str | None:
    """Why this library does not load that engine; None where it does."""
    log = process_log(trt)
    runtime = trt.Runtime(log)
    if asked["host_code"]:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(Path(asked["engine"]).read_bytes())
    return None if engine is not None else str(log.said())


ERRORS: dict[str, type[NeurodeployError]] = {
    name: getattr(_errors, name)
    for name in (
        "BuildError",
        "ExportRequestError",
        "PrecisionError",
        "TensorRtMissingError",
    )
} | {"EngineError": EngineError, "DeviceError": DeviceError}

if __name__ == "__main__":
    sys.exit(main())
