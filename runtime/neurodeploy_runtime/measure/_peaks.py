"""The most that this machine multiplies and copies: what everything else is held to."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime.engines._cores import usable_cores

#: Edge of the square matrices: 17 GFLOP a product, 16 MiB each, beyond L2.
EDGE = 2048
#: Bytes of each of the two arrays that are copied: beyond any cache.
COPY_BYTES = 2**28


@dataclass(frozen=True)
class Peaks:
    """The best of a few tries, with every core that this process may use.

    Attributes
    ----------
    matmul_flop_per_s
        By precision and library, such as ``fp32 numpy``; a multiplication and its
        addition count as two.
    copy_bytes_per_s
        Bytes read plus bytes written.
    """

    matmul_flop_per_s: dict[str, float]
    copy_bytes_per_s: float
    cores: int

    def best(self, precision: str) -> float | None:
        """The fastest product in a precision; None where none was measured."""
        found = [
            rate
            for name, rate in self.matmul_flop_per_s.items()
            if name.startswith(f"{precision} ")
        ]
        return max(found, default=None)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def measure_peaks(
    seconds: float = 1.0, *, edge: int = EDGE, copy_bytes: int = COPY_BYTES
) -> Peaks:
    """Multiply and copy for about `seconds` each.

    >>> peaks = measure_peaks(0.01, edge=64, copy_bytes=4096)
    >>> "fp32 numpy" in peaks.matmul_flop_per_s and peaks.best("fp32") > 0
    True
    """
    rng = np.random.default_rng(0)
    a, b = (rng.random((edge, edge), np.float32) for _ in range(2))
    out = np.empty_like(a)
    flop = 2.0 * edge**3
    rates = {"fp32 numpy": flop / _best(lambda: np.matmul(a, b, out=out), seconds)}
    if find_spec("openvino") is not None:
        for precision in ("fp32", "bf16"):
            product = _openvino_product(a, b, precision)
            rates[f"{precision} openvino"] = flop / _best(product, seconds)
    cores = usable_cores()
    return Peaks(rates, _copy_rate(seconds, cores, copy_bytes), cores)


def _best(work: Callable[[], object], seconds: float) -> float:
    work()
    best = float("inf")
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        work()
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            return best


def _openvino_product(
    a: NDArray[np.float32], b: NDArray[np.float32], precision: str
) -> Callable[[], object]:
    import openvino
    from openvino import opset13

    left = opset13.parameter(list(a.shape), np.float32)
    product = opset13.matmul(left, opset13.constant(b), False, False)
    compiled = openvino.Core().compile_model(
        openvino.Model([product], [left], "product"),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": usable_cores(),
        },
    )
    request = compiled.create_infer_request()
    return lambda: request.infer([a], share_inputs=True, share_outputs=True)


def _copy_rate(seconds: float, cores: int, nbytes: int) -> float:
    """NumPy gives up the interpreter's lock while it copies: one thread a core."""
    source = np.ones(nbytes // 8, np.float64)
    target = np.zeros_like(source)
    parts = list(
        zip(np.array_split(source, cores), np.array_split(target, cores), strict=True)
    )
    with ThreadPoolExecutor(cores) as pool:

        def copy() -> None:
            list(pool.map(lambda part: np.copyto(part[1], part[0]), parts))

        return 2.0 * source.nbytes / _best(copy, seconds)
