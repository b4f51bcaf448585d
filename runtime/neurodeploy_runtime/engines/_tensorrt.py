"""TensorRT: one module for `tensorrt` 10.13+, 11 and `tensorrt_rtx`."""

from __future__ import annotations

import shlex
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._bundle import Bundle
from neurodeploy_runtime._errors import (
    BundleError,
    DeviceError,
    GpuMemoryError,
    NeurodeployError,
    SettingsError,
)
from neurodeploy_runtime.arrays import Arrays
from neurodeploy_runtime.arrays._cuda import CudaArrays
from neurodeploy_runtime.engines import _tensorrt_plans as plans
from neurodeploy_runtime.engines._base import Engine, EngineSettings
from neurodeploy_runtime.engines._cuda_driver import Device, gpus
from neurodeploy_runtime.engines._local import local_settings
from neurodeploy_runtime.engines._resident import stays_resident, why_not_resident
from neurodeploy_runtime.engines._tensorrt_session import TensorRtSession


def why_not(bundle: Bundle, settings: EngineSettings) -> str | None:
    """Why TensorRT cannot serve this; None where it can."""
    try:
        _choose(bundle, settings)
    except NeurodeployError as error:
        return str(error)
    return why_not_resident(settings)


def _choose(
    bundle: Bundle, settings: EngineSettings
) -> tuple[Any, plans.PlanRecord, int]:
    """The library's module, the engine file that fits, and the GPU's index."""
    if settings.precision == "bf16":
        raise DeviceError(
            "engines are built in fp32 or fp16: BF16 transposed convolutions have no "
            "implementation in TensorRT"
        )
    installed = plans.libraries()
    if not installed:
        raise DeviceError(
            'tensorrt is not installed: pip install "neurodeploy[tensorrt]"'
        )
    index = int(settings.device.partition(":")[2] or 0)
    gpu = next((g for g in gpus() if g.index == index), None)
    if gpu is None:
        raise DeviceError(f"no NVIDIA GPU {index} was found")
    wanted: tuple[Literal["fp16", "fp32"], ...] = (
        ("fp16", "fp32")
        if settings.precision == "auto"
        else ("fp16" if settings.precision == "fp16" else "fp32",)
    )
    reasons: list[str] = []
    loaded = []
    for library in installed:
        try:
            trt = plans.import_library(library)
        except NeurodeployError as error:
            # The other one may serve.
            reasons.append(str(error))
            continue
        loaded.append(library)
        for precision in wanted:
            if precision not in bundle.precisions:
                continue
            fit, why = plans.find_plans(
                bundle.path,
                onnx=plans.onnx_hashes(bundle.files, precision),
                library=library,
                version=trt.__version__,
                gpu=gpu,
            )
            fit = [r for r in fit if r.identity.precision == precision]
            need = settings.batch or 1
            wide = [r for r in fit if r.identity.max_batch >= need]
            if wide and settings.batch is None:
                return trt, wide[0], index
            if wide:
                # An engine takes memory for the largest batch it was built for.
                return trt, min(wide, key=lambda r: r.identity.max_batch), index
            reasons += why
            reasons += [
                f"{r.identity.key[:8]}: made for batches up to {r.identity.max_batch}"
                for r in fit
            ]
    if not loaded:
        raise DeviceError("; ".join(reasons))
    raise DeviceError(
        f"the bundle has no engine for {gpu.name} and "
        f"{' or '.join(loaded)}: run "
        f"`neurodeploy build {shlex.quote(str(bundle.path))}`"
        + (f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else "")
    )


class TensorRtEngine(Engine):
    """An engine of the bundle on one GPU."""

    name = "tensorrt"

    def __init__(self, bundle: Bundle, settings: EngineSettings) -> None:
        trt, record, index = _choose(bundle, settings)
        identity = record.identity
        device = f"cuda:{index}"
        local = local_settings(bundle, self.name, device, identity.precision)
        most = min(identity.max_batch, bundle.spec.max_batch)
        super().__init__(
            bundle,
            device=device,
            precision=identity.precision,
            batch=settings.batch or (min(local.batch, most) if local else most),
        )
        if self.batch > identity.max_batch:
            raise SettingsError(
                f"batch {self.batch} is more than the engine's {identity.max_batch}: "
                "build again with --max-batch"
            )
        folder = bundle.path / plans.ENGINES
        reason = plans.check_plan(folder, record)
        if reason is not None:
            raise BundleError(
                f"{folder}: {reason}; it is not used: run `neurodeploy build "
                f"{bundle.path}`"
            )
        self._record = record
        self.resident = stays_resident(settings)
        self._gpu = Device(index)
        try:
            self._session = TensorRtSession(
                trt,
                (folder / f"{identity.key}.engine").read_bytes(),
                self._gpu,
                self.input_shape,
                self.output_shape,
                host_code=identity.version_compatible,
            )
        except BaseException as error:
            self._gpu.close()
            if isinstance(error, GpuMemoryError):
                error.batch = self.batch
            raise

    def infer(self, batch: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """See :meth:`Engine.infer`."""
        self._session.infer(batch, out)

    def arrays(self) -> Arrays:
        """See :meth:`Engine.arrays`."""
        if not self.resident:
            return super().arrays()
        return CudaArrays(self._gpu.gpu.index)

    def infer_resident(self, batch: Any, out: Any, arrays: Arrays) -> None:
        """See :meth:`Engine.infer_resident`."""
        if self.resident:
            self._session.infer_resident(batch, out, arrays)
        else:
            self.infer(batch, out)

    def describe(self) -> dict[str, Any]:
        """What runs where, and what was read back of the engine's precision."""
        return {
            **super().describe(),
            "library": self._record.identity.library,
            "version": self._record.identity.version,
            "gpu": self._gpu.gpu.name,
            "key": self._record.identity.key,
            **self._record.facts,
        }

    def close(self) -> None:
        """See :meth:`Engine.close`."""
        if "_session" in self.__dict__:
            self._session.close()
        if "_gpu" in self.__dict__:
            self._gpu.close()
