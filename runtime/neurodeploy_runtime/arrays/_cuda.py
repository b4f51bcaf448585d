"""Tiles in the memory of a GPU, computed on by CuPy.

Raw voxels go to the GPU, finished planes of one byte a voxel come back; what is
between stays there. Each thread has a stream of its own, so copies run beside the
network, and a step ends when its stream is done.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import EngineError, GpuMemoryError
from neurodeploy_runtime.arrays._base import Arrays, Normaliser, PlaneKind

#: Inputs, outputs and body, element by element. The intrinsics round after every
#: operation: without them a product and a sum become one, with other last bits.
_KERNELS = {
    "look_up": ("T voxel, raw float32 table", "float32 out", "out = table[voxel]"),
    "add": (
        "float32 answer, float32 weight, float32 depth",
        "float32 into",
        "into = __fadd_rn(into, __fmul_rn(__fmul_rn(answer, weight), depth))",
    ),
    "add_square": (
        "float32 answer, float32 weight, float32 depth",
        "float32 into",
        "into = __fadd_rn(into, "
        "__fmul_rn(__fmul_rn(__fmul_rn(answer, weight), depth), answer))",
    ),
    "mask": (
        "float32 value, float32 threshold",
        "uint8 out",
        "out = value >= threshold ? 255 : 0",
    ),
    "probability": (
        "float32 value",
        "uint8 out",
        "out = (unsigned char) "
        "fminf(fmaxf(rintf(__fmul_rn(value, 255.0f)), 0.0f), 255.0f)",
    ),
    "spread": (
        "float32 mean, float32 square",
        "float32 out",
        "out = __fsqrt_rn(fmaxf(__fsub_rn(square, __fmul_rn(mean, mean)), 0.0f))",
    ),
}


def why_not() -> str | None:
    """Why CuPy cannot be had; None where it is installed."""
    if find_spec("cupy") is None:
        return 'CuPy is not installed: pip install "neurodeploy[cuda]"'
    return None


class CudaArrays(Arrays):
    """CuPy arrays on one GPU, and a stream for each thread that works on them.

    Their memory is a pool of their own, which goes back to the GPU with them.

    Raises
    ------
    GpuMemoryError
        The GPU has no memory left; any method may raise it.
    EngineError
        CuPy does not fit the driver, finds no compiler, or the GPU fails.
    """

    def __init__(self, index: int, cupy: Any | None = None) -> None:
        self.place = f"cuda:{index}"
        try:
            self._cupy = cupy or _import_cupy()
        except Exception as error:
            # An import of CuPy fails in as many ways as there are libraries it loads.
            raise EngineError(
                f"CuPy cannot be imported ({type(error).__name__}: {error})"
            ) from error
        self.xp = self._cupy
        cuda = self._cupy.cuda
        # What CUDA, its driver and a library or header that is not found raise.
        self._failures = RuntimeError, cuda.compiler.CompileException
        self._device = cuda.Device(index)
        self._pool = cuda.MemoryPool()
        #: By the thread's name: threads of a later stream take those of the earlier.
        self._streams: dict[str, Any] = {}
        self._staging: dict[Any, tuple[NDArray[Any], Any]] = {}
        self._levels: dict[Any, Any] = {}
        # What an earlier run held goes back now, and is counted as free.
        gc.collect()
        with self.step():
            self._run = _kernels(self._cupy)
            self.free_bytes = int(self._device.mem_info[0])

    @contextmanager
    def step(self) -> Iterator[None]:
        """See :meth:`Arrays.step`."""
        cuda = self._cupy.cuda
        try:
            with self._device, cuda.using_allocator(self._pool.malloc):
                name = threading.current_thread().name
                stream = self._streams.get(name)
                if stream is None:
                    stream = cuda.Stream(non_blocking=True)
                    self._streams[name] = stream
                with stream:
                    try:
                        yield
                    finally:
                        stream.synchronize()
        except cuda.memory.OutOfMemoryError as error:
            raise GpuMemoryError(
                f"{self.place} has no memory left for tiles ({error}): use a smaller "
                "--batch, or --blend-on host",
                batch=0,
            ) from error
        except self._failures as error:
            raise EngineError(
                f"{self.place} failed ({type(error).__name__}: {error})"
            ) from error

    def zeros(self, shape: tuple[int, ...]) -> Any:
        """See :meth:`Arrays.zeros`."""
        with self.step():
            return self._cupy.zeros(shape, np.float32)

    def keep(self, constant: NDArray[np.float32]) -> Any:
        """See :meth:`Arrays.keep`."""
        with self.step():
            return self._cupy.asarray(constant)

    def normalise(
        self, parts: Sequence[NDArray[Any]], normaliser: Normaliser, out: Any
    ) -> None:
        """See :meth:`Arrays.normalise`."""
        table = normaliser.table
        dtype = np.dtype(np.float32) if table is None else normaliser.unsigned
        host, device = self._stage(out.shape, dtype)
        z = 0
        for part in parts:
            into = host[z : z + len(part)]
            if table is None:
                normaliser.normalisation.apply(part, into)
            else:
                np.copyto(into, part.view(dtype))
            z += len(part)
        with self.step():
            stream = self._cupy.cuda.get_current_stream()
            if table is None:
                out.set(host, stream=stream)
            else:
                device.set(host, stream=stream)
                self._run["look_up"](device, table, out)

    def add_weighted(
        self, window: Any, weights: Any, depth: Any, into: Any, squares: Any | None
    ) -> None:
        """See :meth:`Arrays.add_weighted`; within a step."""
        deep = depth[:, None, None]
        self._run["add"](window, weights, deep, into)
        if squares is not None:
            self._run["add_square"](window, weights, deep, squares)

    def quantise(
        self, kind: PlaneKind, threshold: float, plane: Any, out: NDArray[np.uint8]
    ) -> None:
        """See :meth:`Arrays.quantise`."""
        with self.step():
            levels = self._levels.get(plane.shape)
            if levels is None:
                levels = self._cupy.empty(plane.shape, np.uint8)
                self._levels[plane.shape] = levels
            if kind == "mask":
                self._run["mask"](plane, np.float32(threshold), levels)
            else:
                self._run["probability"](plane, levels)
            levels.get(out=out)

    def spread(self, mean: Any, squares: Any) -> NDArray[np.float32]:
        """See :meth:`Arrays.spread`."""
        with self.step():
            self._run["spread"](mean, squares, squares)
            root: NDArray[np.float32] = squares.get()
            return root

    def fetch(self, array: Any) -> NDArray[np.float32]:
        """See :meth:`Arrays.fetch`."""
        with self.step():
            copy: NDArray[np.float32] = array.get()
            return copy

    def _stage(
        self, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> tuple[NDArray[Any], Any]:
        """Page-locked memory of the host and its twin on the GPU, made once."""
        key = shape, dtype
        if key not in self._staging:
            with self.step():
                pinned = self._cupy.cuda.alloc_pinned_memory(
                    prod(shape) * dtype.itemsize
                )
                host = np.frombuffer(pinned, dtype, prod(shape)).reshape(shape)
                twin = self._cupy.empty(shape, dtype)
            self._staging[key] = host, twin
        return self._staging[key]


def _import_cupy() -> Any:
    import cupy

    return cupy


@cache
def _kernels(cupy: Any) -> dict[str, Callable[..., Any]]:
    """Compiled at their first call, and kept by CuPy on disk."""
    return {
        name: cupy.ElementwiseKernel(*parts, f"neurodeploy_{name}")
        for name, parts in _KERNELS.items()
    }
