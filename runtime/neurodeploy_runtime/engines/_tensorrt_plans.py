"""TensorRT engine files in a bundle: what each was built from, and whether it fits.

``engines/<key>.engine`` is what TensorRT wrote, untouched, so that trtexec and Triton
load it too; ``<key>.json`` beside it says what it is. A file is used only where every
fact fits this bundle and this machine and its SHA-256 is the recorded one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from neurodeploy_runtime._bundle import ENGINES as ENGINES
from neurodeploy_runtime._bundle import ONNX, sha256
from neurodeploy_runtime._errors import BundleError, NeurodeployError
from neurodeploy_runtime.engines._cuda_driver import Gpu

#: What TensorRT-RTX makes engines for: GPUs for graphics, and none of 9.0 or 10.0
#: (its ComputeCapability, and its support matrix).
RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
#: The GPU of an engine that it made for no one GPU.
PORTABLE = f"any of compute capability {', '.join(RTX_CAPABILITIES)}"

Library = Literal["tensorrt", "tensorrt_rtx"]
Compatibility = Literal["none", "ampere_plus", "same_compute_capability"]
_MAX_JSON_BYTES = 1_000_000


def libraries() -> tuple[Library, ...]:
    """Those installed here, the better first."""
    return tuple(name for name in get_args(Library) if find_spec(name) is not None)


def import_library(name: Library) -> Any:
    """The module; a NeurodeployError where it is installed and does not load."""
    try:
        return import_module(name)
    except Exception as error:
        raise NeurodeployError(
            f"{name} is installed and does not load: {error}; install it again, with "
            f"the libraries it needs: pip install --force-reinstall {name}"
        ) from error


@dataclass(frozen=True)
class PlanIdentity:
    """Everything that an engine depends on; two equal ones may share an engine."""

    #: SHA-256 of the ONNX file and of each data file beside it.
    onnx: dict[str, str]
    precision: Literal["fp32", "fp16"]
    library: Library
    version: str
    gpu: str
    compute_capability: str
    tile: tuple[int, int, int]
    max_batch: int
    workspace_bytes: int | None = None
    optimisation: int = 3
    version_compatible: bool = False
    hardware_compatibility: Compatibility = "none"

    @property
    def key(self) -> str:
        """The name of its files: 32 hex digits over all of it."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class PlanRecord:
    """An engine file's side-car."""

    identity: PlanIdentity
    sha256: str
    bytes: int
    #: What was read back: shares of layers in half, who looked, how long it took.
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"key": self.identity.key, **dataclasses.asdict(self)}


def onnx_hashes(files: dict[str, str], precision: Literal["fp32", "fp16"]) -> Any:
    """Of a bundle's files, those that an engine of this precision is made from."""
    name = ONNX[precision]
    return {k: v for k, v in files.items() if k == name or k == name + ".data"}


def read_record(path: Path) -> PlanRecord:
    """Read a side-car; a BundleError where it is not what this version writes."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError("too many bytes")
        values = json.loads(path.read_bytes())
        identity = values["identity"]
        identity["tile"] = tuple(identity["tile"])
        record = PlanRecord(
            PlanIdentity(**identity),
            str(values["sha256"]),
            int(values["bytes"]),
            dict(values["facts"]),
        )
        if values["key"] != record.identity.key or path.stem != values["key"]:
            raise ValueError("its key is not that of what it describes")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            f"{path} does not describe an engine ({error}): it is not used, build "
            "again with `neurodeploy build`"
        ) from None
    return record


def check_plan(folder: Path, record: PlanRecord) -> str | None:
    """Why the engine file is not the one that was built; None where it is."""
    path = folder / f"{record.identity.key}.engine"
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != record.bytes:
        return f"{path.name} has {path.stat().st_size} bytes, not {record.bytes}"
    if sha256(path) != record.sha256:
        return f"{path.name} was altered (its SHA-256 differs)"
    return None


def why_unfit(
    identity: PlanIdentity,
    *,
    onnx: dict[str, str],
    library: Library,
    version: str,
    gpu: Gpu | None,
) -> str | None:
    """Why an engine cannot serve this bundle with this library on this GPU."""
    if identity.onnx != onnx:
        return "it was built from another ONNX file than the bundle now holds"
    if identity.library != library:
        return f"it was built by {identity.library}, not {library}"
    same_major = identity.version.split(".")[0] == version.split(".")[0]
    if identity.version != version and not (identity.version_compatible and same_major):
        return f"it was built by {library} {identity.version}, here is {version}"
    if gpu is None:
        return "there is no GPU here"
    return _why_other_gpu(identity, gpu)


def _why_other_gpu(identity: PlanIdentity, gpu: Gpu) -> str | None:
    if identity.gpu == PORTABLE:
        return why_no_rtx(gpu)
    have = tuple(int(n) for n in gpu.compute_capability.split("."))
    if identity.hardware_compatibility == "ampere_plus":
        return None if have >= (8, 0) else f"{gpu.name} is older than Ampere"
    if identity.compute_capability != gpu.compute_capability:
        return (
            f"it was built for compute capability {identity.compute_capability}, "
            f"{gpu.name} has {gpu.compute_capability}"
        )
    same_kind = identity.hardware_compatibility == "same_compute_capability"
    if identity.gpu != gpu.name and not same_kind:
        return f"it was built for {identity.gpu}, here is {gpu.name}"
    return None


def why_no_rtx(gpu: Gpu) -> str | None:
    """Why TensorRT-RTX runs nothing on a GPU; None where it does."""
    if gpu.compute_capability in RTX_CAPABILITIES:
        return None
    return (
        "tensorrt_rtx runs on GPUs of compute capability "
        f"{', '.join(RTX_CAPABILITIES)}, and {gpu.name} has {gpu.compute_capability}: "
        'pip install "neurodeploy[tensorrt]"'
    )


def write_plan(
    folder: Path, identity: PlanIdentity, plan: Path, facts: dict[str, Any]
) -> PlanRecord:
    """Give a finished engine file its name, and describe it.

    The description comes last: an engine without one is not used.
    """
    target = folder / f"{identity.key}.engine"
    sidecar = folder / f"{identity.key}.json"
    record = PlanRecord(identity, sha256(plan), plan.stat().st_size, facts)
    sidecar.unlink(missing_ok=True)
    plan.replace(target)
    part = sidecar.with_suffix(f".json.{os.getpid()}")
    with part.open("w", encoding="utf-8") as out:
        json.dump(record.to_json(), out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    part.replace(sidecar)
    return record


def find_plans(
    folder: Path,
    *,
    onnx: dict[str, str],
    library: Library,
    version: str,
    gpu: Gpu | None,
) -> tuple[list[PlanRecord], list[str]]:
    """The engines that fit here, the widest batch first; and why the others do not.

    Nothing is hashed: :func:`check_plan` does that for the one that is used.
    """
    fit, reasons = [], []
    for path in sorted((folder / ENGINES).glob("*.json")):
        try:
            record = read_record(path)
        except BundleError as error:
            reasons.append(str(error))
            continue
        reason = why_unfit(
            record.identity, onnx=onnx, library=library, version=version, gpu=gpu
        )
        if reason is None:
            fit.append(record)
        else:
            reasons.append(f"{record.identity.key[:8]}: {reason}")
    fit.sort(key=lambda record: -record.identity.max_batch)
    return fit, reasons
