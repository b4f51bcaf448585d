"""A CuPy whose GPU is this process's own memory.

It knows the few names that are used, refuses what the real one refuses (arrays of the
host in a kernel, work without a current device or stream), and really runs kernels:
their body, which is C, is compiled by the C compiler of this machine.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

COMPILER = shutil.which("cc") or shutil.which("gcc")

#: One operation each: stores to volatile are rounded and never contracted.
_PRELUDE = """
#include <math.h>
#include <stdint.h>
static float __fmul_rn(float a, float b) { volatile float c = a * b; return c; }
static float __fadd_rn(float a, float b) { volatile float c = a + b; return c; }
static float __fsub_rn(float a, float b) { volatile float c = a - b; return c; }
static float __fsqrt_rn(float a) { return sqrtf(a); }
"""
_C = {"float32": "float", "uint8": "uint8_t", "uint16": "uint16_t"}


class GpuArray(np.ndarray[Any, Any]):
    """An array that "lies on the GPU": nothing of the host may be mixed with it."""

    module: FakeCupy

    def __array_finalize__(self, other: Any) -> None:
        self.module = getattr(other, "module", None)  # type: ignore[assignment]

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.ctypes.data)

    def set(self, host: Any, stream: Any = None) -> None:
        self.module.require_stream()
        assert type(host) is np.ndarray
        assert (host.shape, host.dtype) == (self.shape, self.dtype)
        assert self.flags.c_contiguous
        assert host.flags.c_contiguous
        np.copyto(self.view(np.ndarray), host)

    def get(self, out: Any = None) -> Any:
        self.module.require_stream()
        if out is None:
            return np.array(self.view(np.ndarray))
        assert type(out) is np.ndarray
        assert (out.shape, out.dtype) == (self.shape, self.dtype)
        assert out.flags.c_contiguous
        np.copyto(out, self.view(np.ndarray))
        return out

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **kw: Any) -> Any:
        self.module.require_stream()
        outs = kw.get("out", ())
        for value in (*args, *outs):
            if type(value) is np.ndarray:
                raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        if outs:
            kw["out"] = tuple(value.view(np.ndarray) for value in outs)
        plain = [v.view(np.ndarray) if isinstance(v, GpuArray) else v for v in args]
        found = getattr(ufunc, method)(*plain, **kw)
        return outs[0] if outs else self.module.on_gpu(found)

    def __array_function__(self, *args: Any, **kw: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __setitem__(self, at: Any, value: Any) -> None:
        self.module.require_stream()
        if type(value) is np.ndarray:
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        super().__setitem__(at, value)

    def fill(self, value: Any) -> None:
        self.module.require_stream()
        super().fill(value)


class OutOfMemoryError(MemoryError):
    """As CuPy's: a MemoryError."""


class CUDARuntimeError(RuntimeError):
    """As CuPy's: a RuntimeError, as is that of the driver."""


class CompileException(Exception):
    """As CuPy's: an Exception."""


class _Current:
    def __init__(self, module: FakeCupy, name: str) -> None:
        self._here, self._name = module.here, name

    def __enter__(self) -> Any:
        stack = self._here.__dict__.setdefault(self._name, [])
        stack.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        getattr(self._here, self._name).pop()


class FakeCupy:
    """Stands for the module; one object is one installation."""

    def __init__(self, folder: Path, *, free: int = 10**9) -> None:
        self.folder = folder
        self.here = threading.local()
        self.synchronised = 0
        #: Changes what a kernel's source says, to see that somebody notices.
        self.spoil = lambda source: source
        #: So many more arrays fit; None: any number.
        self.room: int | None = None
        self.pools = 0
        module = self

        class Device(_Current):
            mem_info = (free, 2 * free)

            def __init__(self, index: int) -> None:
                super().__init__(module, "devices")
                self.index = index

        class Stream(_Current):
            def __init__(self, *, non_blocking: bool) -> None:
                assert non_blocking
                assert module.here.devices
                super().__init__(module, "streams")

            def synchronize(self) -> None:
                module.synchronised += 1

        class MemoryPool:
            def __init__(self) -> None:
                module.pools += 1
                self.malloc = self

        self.cuda = SimpleNamespace(
            MemoryPool=MemoryPool,
            using_allocator=lambda pool: _Current(module, "pools_in_use"),
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            runtime=SimpleNamespace(CUDARuntimeError=CUDARuntimeError),
            compiler=SimpleNamespace(CompileException=CompileException),
            Device=Device,
            Stream=Stream,
            get_current_stream=lambda: module.here.streams[-1],
            alloc_pinned_memory=lambda nbytes: bytearray(-(-nbytes // 512) * 512),
        )

    def require_stream(self) -> None:
        if not (
            getattr(self.here, "streams", None)
            and getattr(self.here, "pools_in_use", None)
        ):
            raise RuntimeError("work outside of a step would not be waited for")

    def on_gpu(self, array: Any) -> Any:
        found = np.array(array).view(GpuArray)
        found.module = self
        return found

    def zeros(self, shape: Any, dtype: Any) -> Any:
        self.require_stream()
        if self.room is not None:
            self.room -= 1
            if self.room < 0:
                raise OutOfMemoryError("Out of memory allocating 512 bytes")
        return self.on_gpu(np.zeros(shape, dtype))

    empty = zeros

    def asarray(self, host: Any) -> Any:
        self.require_stream()
        return self.on_gpu(host)

    def flip(self, array: Any, axes: Any) -> Any:
        self.require_stream()
        return self.on_gpu(np.flip(array.view(np.ndarray), axes))

    def ascontiguousarray(self, array: Any) -> Any:
        return self.on_gpu(np.ascontiguousarray(array.view(np.ndarray)))

    def ElementwiseKernel(self, inputs: str, outputs: str, body: str, name: str) -> Any:
        takes = [p.split() for p in inputs.split(",")]
        gives = [p.split() for p in outputs.split(",")]

        def run(*args: Any) -> None:
            self.require_stream()
            self._run(name, takes, gives, body, args)

        return run

    def _run(
        self, name: str, takes: Any, gives: Any, body: str, args: tuple[Any, ...]
    ) -> None:
        parameters = [*takes, *gives]
        assert len(args) == len(parameters), name
        arrays: list[Any] = []
        for words, value in zip(parameters, args, strict=True):
            if type(value) is np.ndarray:
                raise TypeError("Unsupported type <class 'numpy.ndarray'>")
            on_gpu = isinstance(value, GpuArray)
            plain = value.view(np.ndarray) if on_gpu else np.asarray(value)
            if words[-2] != "T":
                assert plain.dtype == words[-2], (name, words, plain.dtype)
            arrays.append(plain)
        whole = [a for w, a in zip(parameters, arrays, strict=True) if w[0] != "raw"]
        shape = np.broadcast_shapes(*(a.shape for a in whole))
        assert all(a.shape == shape for a in arrays[len(takes) :]), name
        flat, types, loads = [], [], []
        for i, (words, array) in enumerate(zip(parameters, arrays, strict=True)):
            raw = words[0] == "raw"
            given = array if raw else np.broadcast_to(array, shape)
            flat.append(np.ascontiguousarray(given))
            types.append(f"{_C[array.dtype.name]} *p{i}")
            local = f"{_C[array.dtype.name]} {words[-1]} = p{i}[i];"
            loads.append(f"const float *{words[-1]} = p{i};" if raw else local)
        stores = [
            f"p{len(takes) + k}[i] = {words[-1]};" for k, words in enumerate(gives)
        ]
        source = (
            f"{_PRELUDE}void run(long n, {', '.join(types)}) {{\n"
            f"for (long i = 0; i < n; i++) {{\n{' '.join(loads)}\n{body};\n"
            f"{' '.join(stores)}\n}}\n}}\n"
        )
        function = self._compiled(self.spoil(source))
        function(
            ctypes.c_long(int(np.prod(shape))),
            *(a.ctypes.data_as(_POINTER) for a in flat),
        )
        for array, made in zip(arrays[len(takes) :], flat[len(takes) :], strict=True):
            array[...] = made

    def _compiled(self, source: str) -> Any:
        key = hashlib.sha256(source.encode()).hexdigest()[:16]
        library = self.folder / f"{key}.so"
        if not library.exists():
            text = self.folder / f"{key}.c"
            text.write_text(source)
            part = self.folder / f"{key}.part"
            subprocess.run(
                [
                    *(str(COMPILER), "-O1", "-ffp-contract=off", "-shared", "-fPIC"),
                    *("-o", str(part), str(text), "-lm"),
                ],
                check=True,
            )
            part.rename(library)
        return ctypes.CDLL(str(library)).run


_POINTER = ctypes.c_void_p
