"""The most that this machine multiplies and copies: what everything else is held to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime.engines._cores import usable_cores

#: Edges of the square matrices: from what a cache holds to what amortises every start.
EDGES = (512, 1024, 2048, 4096)
#: Products in a row, each of the answer before: values then stay in the precision in
#: which they are multiplied, as they do in a network, and only the ends are converted.
CHAIN = 4
#: Tries that take so many times the seconds asked for are not begun; the rate that says
#: so is that of a smaller size, and low.
PATIENCE = 2
#: Bytes of each of the two arrays that are copied: beyond any cache.
COPY_BYTES = 2**28


#: Of two square matrices, products to be timed.
Make = Callable[[NDArray[np.float32], NDArray[np.float32]], Callable[[], object]]


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
    seconds: float = 1.0,
    *,
    edges: Sequence[int] = EDGES,
    copy_bytes: int = COPY_BYTES,
) -> Peaks:
    """Multiply and copy for about `seconds` each; the best of all sizes counts.

    A size of which one try would take `PATIENCE` times that is left out.

    >>> peaks = measure_peaks(0.01, edges=(32, 64), copy_bytes=4096)
    >>> "fp32 numpy" in peaks.matmul_flop_per_s and peaks.best("fp32") > 0
    True
    """
    kinds = {"fp32 numpy": _numpy_products}
    if find_spec("openvino") is not None:
        kinds["fp32 openvino"] = partial(_openvino_products, precision="fp32")
        kinds["bf16 openvino"] = partial(_openvino_products, precision="bf16")
    rates = {name: _fastest(make, edges, seconds) for name, make in kinds.items()}
    cores = usable_cores()
    return Peaks(rates, _copy_rate(seconds, cores, copy_bytes), cores)


def _fastest(make: Make, edges: Sequence[int], seconds: float) -> float:
    """FLOP per second of the size that suits this machine best."""
    rng = np.random.default_rng(0)
    best = 0.0
    for edge in edges:
        flop = 2.0 * CHAIN * edge**3
        if best and flop / best > PATIENCE * seconds:
            break
        # Scaled so that products in a row neither grow nor vanish.
        a = rng.random((edge, edge), np.float32)
        b = rng.random((edge, edge), np.float32) * np.float32(2 / edge)
        best = max(best, flop / _best(make(a, b), seconds / len(edges)))
    return best


def _numpy_products(
    a: NDArray[np.float32], b: NDArray[np.float32]
) -> Callable[[], object]:
    answers = np.empty_like(a), np.empty_like(a)

    def products() -> None:
        left = a
        for n in range(CHAIN):
            left = np.matmul(left, b, out=answers[n % 2])

    return products


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


def _openvino_products(
    a: NDArray[np.float32], b: NDArray[np.float32], precision: str
) -> Callable[[], object]:
    import openvino
    from openvino import opset13

    left = opset13.parameter(list(a.shape), np.float32)
    product = left
    for _ in range(CHAIN):
        product = opset13.matmul(product, opset13.constant(b), False, False)
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
