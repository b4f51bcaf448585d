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
from typing import Any

from neurodeploy_export import _errors
from neurodeploy_export._tensorrt import PlanRequest, build_plan
from neurodeploy_runtime._errors import NeurodeployError
from neurodeploy_runtime.engines import _tensorrt_plans as plans


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

    def serve() -> None:
        try:
            send(done=_serve(asked, send, stop.is_set))
        except NeurodeployError as error:
            send(error=type(error).__name__, text=str(error))
        except Exception as error:
            send(error="BuildError", text=f"{type(error).__name__}: {error}")

    # Beside the main thread, which has to hear of a cancellation meanwhile.
    work = threading.Thread(target=serve)
    work.start()
    listener = threading.Thread(target=_listen, args=(stop,), daemon=True)
    listener.start()
    work.join()
    channel.close()
    sys.stderr.flush()
    # No interpreter shutdown: TensorRT's destructors may crash after a good build.
    os._exit(0)


def _listen(stop: threading.Event) -> None:
    sys.stdin.readline()
    stop.set()


def _serve(
    asked: dict[str, Any], send: Callable[..., None], cancelled: Callable[[], bool]
) -> dict[str, Any]:
    trt = plans.import_library(asked["library"])
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


def _refusal(trt: Any, asked: dict[str, Any]) -> str | None:
    """Why this library does not load that engine; None where it does."""
    from pathlib import Path

    from neurodeploy_runtime.engines._tensorrt_session import process_log

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
}

if __name__ == "__main__":
    sys.exit(main())
