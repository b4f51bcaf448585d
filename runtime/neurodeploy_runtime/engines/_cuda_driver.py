"""The few calls of NVIDIA's driver that running an engine takes, through ctypes.

The driver's library is there wherever a GPU works, so a rig needs neither PyTorch nor
CuPy nor a CUDA toolkit of one exact version.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import DeviceError, EngineError, GpuMemoryError

_NAMES = ("libcuda.so.1", "nvcuda.dll")
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver describes it."""

    index: int
    name: str
    compute_capability: str
    memory_bytes: int


@cache
def load_driver() -> Any | None:
    """The driver's library, initialised; None where there is none or no GPU."""
    for name in _NAMES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        return library if library.cuInit(0) == 0 else None
    return None


def cuda_version(driver: Any) -> str:
    """The newest CUDA that this driver runs, as ``13.2``."""
    number = ctypes.c_int()
    _check(driver, driver.cuDriverGetVersion(ctypes.byref(number)), "ask its version")
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def gpus() -> list[Gpu]:
    """The GPUs that the driver shows to this process."""
    driver = load_driver()
    if driver is None:
        return []
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    return [describe_gpu(driver, index) for index in range(count.value)]


def describe_gpu(driver: Any, index: int) -> Gpu:
    """Name, compute capability and memory of one GPU."""
    device = ctypes.c_int()
    _check(driver, driver.cuDeviceGet(ctypes.byref(device), index), f"open GPU {index}")
    name = ctypes.create_string_buffer(256)
    _check(driver, driver.cuDeviceGetName(name, 256, device), "name the GPU")
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        code = driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        _check(driver, code, "ask the compute capability")
        numbers.append(value.value)
    total = ctypes.c_size_t()
    _check(
        driver, driver.cuDeviceTotalMem_v2(ctypes.byref(total), device), "ask memory"
    )
    return Gpu(
        index,
        name.value.decode(errors="replace"),
        f"{numbers[0]}.{numbers[1]}",
        total.value,
    )


def _check(driver: Any, code: int, doing: str) -> None:
    if code == 0:
        return
    text = ctypes.c_char_p()
    driver.cuGetErrorName(code, ctypes.byref(text))
    name = (text.value or b"unknown error").decode(errors="replace")
    said = f"the GPU driver could not {doing}: {name} ({code})"
    if code == _OUT_OF_MEMORY:
        raise GpuMemoryError(said, batch=0)
    raise EngineError(said)


class Device:
    """One GPU's primary context with a stream, and the memory taken from it.

    Shared with any other library of the process that uses the primary context. A
    context manager; memory and stream go back at :meth:`close`.
    """

    def __init__(self, index: int, driver: Any | None = None) -> None:
        library = driver if driver is not None else load_driver()
        if library is None:
            raise DeviceError(
                "no NVIDIA driver or GPU was found: install the driver, or pass "
                "--device cpu"
            )
        self._driver = library
        self.gpu = describe_gpu(library, index)
        self._device = ctypes.c_int()
        self._call("open the GPU", "cuDeviceGet", ctypes.byref(self._device), index)
        self._context = ctypes.c_void_p()
        self._call(
            "take its context",
            "cuDevicePrimaryCtxRetain",
            ctypes.byref(self._context),
            self._device,
        )
        self._device_memory: list[ctypes.c_uint64] = []
        self._host_memory: list[ctypes.c_void_p] = []
        self._stream = ctypes.c_void_p()
        self._open = True
        try:
            self.make_current()
            self._call(
                "make a stream",
                "cuStreamCreate",
                ctypes.byref(self._stream),
                _NON_BLOCKING,
            )
        except BaseException:
            self.close()
            raise

    @property
    def stream(self) -> int:
        """The stream's handle, as CUDA's runtime and TensorRT take it."""
        return self._stream.value or 0

    def make_current(self) -> None:
        """Use this GPU on the calling thread."""
        self._call("use the GPU", "cuCtxSetCurrent", self._context)

    def allocate(self, nbytes: int) -> int:
        """The address of that much device memory, held until :meth:`close`."""
        address = ctypes.c_uint64()
        self._call(
            f"allocate {nbytes} bytes on {self.gpu.name}",
            "cuMemAlloc_v2",
            ctypes.byref(address),
            ctypes.c_size_t(nbytes),
        )
        self._device_memory.append(address)
        return address.value

    def used_bytes(self) -> int:
        """What of the GPU's memory is not free, whoever has it."""
        self.make_current()
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call(
            "say what memory is free",
            "cuMemGetInfo_v2",
            ctypes.byref(free),
            ctypes.byref(total),
        )
        return total.value - free.value

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array in page-locked memory, valid until :meth:`close`."""
        nbytes = int(np.prod(shape)) * dtype.itemsize
        address = ctypes.c_void_p()
        self._call(
            f"lock {nbytes} bytes of memory",
            "cuMemAllocHost_v2",
            ctypes.byref(address),
            ctypes.c_size_t(nbytes),
        )
        self._host_memory.append(address)
        raw = (ctypes.c_uint8 * nbytes).from_address(address.value or 0)
        array: NDArray[Any] = np.ctypeslib.as_array(raw).view(dtype).reshape(shape)
        return array

    def upload(self, source: NDArray[Any], address: int) -> None:
        """Queue a copy of a pinned array to the device."""
        self._call(
            "copy to the GPU",
            "cuMemcpyHtoDAsync_v2",
            ctypes.c_uint64(address),
            ctypes.c_void_p(source.ctypes.data),
            ctypes.c_size_t(source.nbytes),
            self._stream,
        )

    def download(self, address: int, target: NDArray[Any]) -> None:
        """Queue a copy from the device into a pinned array."""
        self._call(
            "copy from the GPU",
            "cuMemcpyDtoHAsync_v2",
            ctypes.c_void_p(target.ctypes.data),
            ctypes.c_uint64(address),
            ctypes.c_size_t(target.nbytes),
            self._stream,
        )

    def synchronise(self) -> None:
        """Wait until everything queued is done; its errors show here."""
        self._call("finish its work", "cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Give everything back; may be called twice."""
        if not self._open:
            return
        self._open = False
        driver = self._driver
        driver.cuCtxSetCurrent(self._context)
        for device_address in self._device_memory:
            driver.cuMemFree_v2(device_address)
        for host_address in self._host_memory:
            driver.cuMemFreeHost(host_address)
        if self._stream.value:
            driver.cuStreamDestroy_v2(self._stream)
        driver.cuDevicePrimaryCtxRelease_v2(self._device)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, doing: str, function: str, *arguments: Any) -> None:
        _check(self._driver, getattr(self._driver, function)(*arguments), doing)
