"""Engines of a bundle: found where they are still true, built where not."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from neurodeploy_export._errors import (
    BuildError,
    ExportRequestError,
    TensorRtMissingError,
)
from neurodeploy_export._parity import compare
from neurodeploy_export._settings import ExportSettings, Precision
from neurodeploy_export._tensorrt import PlanRequest, check_options
from neurodeploy_runtime._bundle import GOLDEN, ONNX, load_bundle, sha256
from neurodeploy_runtime._errors import CancelledError, WriteError
from neurodeploy_runtime._golden import batches
from neurodeploy_runtime._spec import ModelSpec
from neurodeploy_runtime.engines import _tensorrt_plans as plans
from neurodeploy_runtime.engines._cuda_driver import Gpu, gpus

if TYPE_CHECKING:
    from neurodeploy_export._progress import Progress

#: How long a build may go on after it was asked to stop, before it is killed.
GRACE_S = 20.0


@dataclass(frozen=True)
class BuildSettings:
    """What engine is asked for.

    Attributes
    ----------
    library
        ``auto`` takes `tensorrt` where it is installed, else `tensorrt_rtx`.
    precision
        ``auto`` takes FP16 where the bundle has it.
    max_batch
        The widest batch of the profile; None takes the model's.
    workspace_bytes
        Scratch memory that tactics may use; None leaves all of the GPU's.
    optimisation
        TensorRT's builder optimisation level, 0 to 5.
    version_compatible, hardware_compatibility
        Engines that newer TensorRT versions, or other GPUs, may run; slower.
    gpu
        Index of the GPU that the engine is for.
    timeout_s
        A build that takes longer is stopped; None waits.
    """

    library: Literal["auto", "tensorrt", "tensorrt_rtx"] = "auto"
    precision: Literal["auto", "fp32", "fp16"] = "auto"
    max_batch: int | None = None
    workspace_bytes: int | None = None
    optimisation: int = 3
    version_compatible: bool = False
    hardware_compatibility: plans.Compatibility = "none"
    gpu: int = 0
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.optimisation <= 5:
            raise ExportRequestError(
                f"optimisation level {self.optimisation} is not between 0 and 5"
            )
        if self.hardware_compatibility not in get_args(plans.Compatibility):
            raise ExportRequestError(
                f"hardware compatibility {self.hardware_compatibility!r} is unknown: "
                f"use one of {', '.join(get_args(plans.Compatibility))}"
            )
        if self.workspace_bytes is not None and self.workspace_bytes < 1 << 20:
            raise ExportRequestError(
                f"a workspace of {self.workspace_bytes} bytes is too small: give "
                "at least 1 MiB"
            )


@dataclass(frozen=True)
class Built:
    """An engine of a bundle, and whether it had been there before.

    `rebuilt_because` says why an engine file that was there was not trusted.
    """

    path: Path
    record: plans.PlanRecord
    reused: bool
    rebuilt_because: str | None

    def to_json(self) -> dict[str, Any]:
        """As plain values, for the bundle's parity figures."""
        return {
            "file": self.path.name,
            **self.record.facts,
            **{k: v for k, v in asdict(self.record.identity).items() if k != "onnx"},
        }


def build_engine(
    bundle: str | Path,
    settings: BuildSettings | None = None,
    progress: Progress | None = None,
) -> Built:
    """Give a bundle an engine for this machine; the one it has, where that is true.

    The bundle's own files stay as they are: engines lie in its folder ``engines`` and
    are not part of its seal.

    Raises
    ------
    BundleError
        The bundle is damaged.
    TensorRtMissingError
        There is no TensorRT here, or none that can build without a GPU.
    BuildError
        The parser or the builder refused, or the builder's process died.
    PrecisionError
        FP16 was asked for and FP32 was built.
    ParityError
        The engine ran on this machine's GPU and its answers are not the golden ones.
    CancelledError
        Ctrl-C.
    """
    opened = load_bundle(bundle)
    return build_into(
        opened.path,
        opened.spec,
        settings or BuildSettings(),
        progress or (lambda text, share: None),
    )


def build_into(
    folder: Path, spec: ModelSpec, settings: BuildSettings, tell: Progress
) -> Built:
    """As :func:`build_engine`, for a folder that may not be sealed yet."""
    library = _library(settings)
    gpu = next((g for g in gpus() if g.index == settings.gpu), None)
    if gpu is None and library == "tensorrt":
        raise TensorRtMissingError(
            f"tensorrt builds for the GPU it runs on, and GPU {settings.gpu} was not "
            "found: build on the machine with the GPU (`neurodeploy doctor` says what "
            "it sees), or use --library tensorrt_rtx, which builds without one"
        )
    if gpu is not None and library == "tensorrt_rtx":
        reason = plans.why_no_rtx(gpu)
        if reason is not None:
            raise TensorRtMissingError(reason)
    precision = _precision(folder, settings)
    version = str(plans.import_library(library).__version__)
    identity = plans.PlanIdentity(
        onnx={
            file.name: sha256(file)
            for file in sorted(folder.glob(f"{ONNX[precision]}*"))
            if file.name in (ONNX[precision], ONNX[precision] + ".data")
        },
        precision=precision,
        library=library,
        version=version,
        **_target(library, gpu),
        tile=spec.tile,
        max_batch=settings.max_batch or spec.max_batch,
        workspace_bytes=settings.workspace_bytes,
        optimisation=settings.optimisation,
        version_compatible=settings.version_compatible,
        hardware_compatibility=settings.hardware_compatibility,
    )
    engines = folder / plans.ENGINES
    final = engines / f"{identity.key}.engine"
    request = PlanRequest(
        onnx=str(folder / ONNX[precision]),
        out=str(engines / f"{identity.key}.part"),
        timing_cache=str(engines / f"{library}-{version}.timing"),
        tile=spec.tile,
        max_batch=identity.max_batch,
        precision=precision,
        workspace_bytes=settings.workspace_bytes,
        optimisation=settings.optimisation,
        version_compatible=settings.version_compatible,
        hardware_compatibility=settings.hardware_compatibility,
    )
    check_options(request, library)
    distrust = None
    if final.exists():
        distrust = _distrust(final, identity, gpu, tell)
        if distrust is None:
            record = plans.read_record(final.with_suffix(".json"))
            return Built(final, record, reused=True, rebuilt_because=None)
    try:
        engines.mkdir(exist_ok=True)
        asked = {
            "do": "build",
            "request": asdict(request),
            "gpu": None if gpu is None else gpu.index,
        }
        facts = _ask(library, asked, tell, settings.timeout_s)
        facts["parity"] = None
        if gpu is not None:
            tell("running the engine on the golden tiles", None)
            facts |= _prove(folder, Path(request.out), identity, spec, gpu)
        record = plans.write_plan(engines, identity, Path(request.out), facts)
    except OSError as error:
        raise WriteError(
            f"cannot write the engine to {engines}: {error.strerror or error}; free "
            "space there, or copy the bundle where it may be written"
        ) from error
    finally:
        Path(request.out).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            engines.rmdir()  # only where nothing came of it
    return Built(final, record, reused=False, rebuilt_because=distrust)


def _library(settings: BuildSettings) -> plans.Library:
    installed = plans.libraries()
    if settings.library == "auto" and installed:
        return installed[0]
    for name in installed:
        if name == settings.library:
            return name
    wanted = "tensorrt" if settings.library == "auto" else settings.library
    raise TensorRtMissingError(
        f"{wanted} is not installed: pip install "
        + (
            '"neurodeploy[tensorrt]"'
            if wanted == "tensorrt"
            else wanted.replace("_", "-")
        )
    )


def _precision(folder: Path, settings: BuildSettings) -> Precision:
    has_half = (folder / ONNX["fp16"]).is_file()
    if settings.precision == "fp16" and not has_half:
        raise ExportRequestError(
            f"{folder} has no {ONNX['fp16']}: export the checkpoint again with "
            "--precision fp16 (TensorRT takes its precision from the graph)"
        )
    if settings.precision == "auto":
        return "fp16" if has_half else "fp32"
    return settings.precision


def _target(library: plans.Library, gpu: Gpu | None) -> dict[str, str]:
    # RTX compiles for the GPU at hand when the engine is first run.
    if library == "tensorrt_rtx" or gpu is None:
        return {"gpu": plans.PORTABLE, "compute_capability": "any"}
    return {"gpu": gpu.name, "compute_capability": gpu.compute_capability}


def _distrust(
    final: Path, identity: plans.PlanIdentity, gpu: Gpu | None, tell: Progress
) -> str | None:
    """Why an engine file that is there has to be built again; None where it is true."""
    from neurodeploy_runtime._errors import BundleError

    try:
        record = plans.read_record(final.with_suffix(".json"))
    except BundleError as error:
        return str(error)
    if record.identity != identity:
        return f"{final.name} describes another engine"
    reason = plans.check_plan(final.parent, record)
    if reason is None and gpu is not None:
        asked = {
            "do": "load",
            "engine": str(final),
            "host_code": identity.version_compatible,
            "gpu": gpu.index,
        }
        refused = _ask(identity.library, asked, tell, None)["refused"]
        reason = f"it no longer loads: {refused}" if refused else None
    return reason


def _prove(
    folder: Path, plan: Path, identity: plans.PlanIdentity, spec: ModelSpec, gpu: Gpu
) -> dict[str, Any]:
    """Hold a fresh engine to the golden answers, on the GPU; its figures.

    In its widest batches, as a run asks it; in a child process again: an engine may
    crash, too.
    """
    with np.load(folder / GOLDEN, allow_pickle=False) as golden:
        frozen = golden["probability"].astype(np.float32)
    answers = plan.with_suffix(".answers.npy")
    asked = {
        "do": "run",
        "engine": str(plan),
        "golden": str(folder / GOLDEN),
        "batch": identity.max_batch,
        "answers": str(answers),
        "host_code": identity.version_compatible,
        "gpu": gpu.index,
    }
    try:
        ran = _ask(identity.library, asked, lambda text, share: None, None)
        expected = frozen[batches(len(frozen), identity.max_batch).ravel()]
        found = np.load(answers, allow_pickle=False)
        parity = compare("engine", expected, found, spec.threshold)
    finally:
        answers.unlink(missing_ok=True)
    limits = ExportSettings()
    parity.require(
        limits.limits_fp16 if identity.precision == "fp16" else limits.limits_fp32,
        f"{identity.library} {identity.version} built an engine that says something "
        "else; it was not kept: try --precision fp32, or another TensorRT version",
    )
    return {"parity": parity.to_json(), "ran_on": ran}


def _ask(
    library: plans.Library,
    asked: dict[str, Any],
    tell: Progress,
    timeout_s: float | None,
) -> dict[str, Any]:
    """Have a child process do it; its errors are raised here, its crash is one."""
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            [sys.executable, "-m", "neurodeploy_export._build_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            encoding="utf-8",
            # Ctrl-C reaches this process alone, which then asks the child to stop.
            start_new_session=True,
        )
        late = _KillLater(child, timeout_s)
        try:
            answer = _converse(child, {"library": library, **asked}, tell)
        except BaseException:
            _stop(child)
            raise
        finally:
            late.cancel()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        code = child.wait()
        said.seek(0)
        tail = said.read()[-2000:].decode(errors="replace").strip().splitlines()[-2:]
    if late.killed:
        raise BuildError(
            f"the build took longer than {timeout_s:g} s and was stopped; nothing was "
            "written"
        )
    if answer is None:
        raise BuildError(
            f"{library}'s process {_death(code)} while it was asked to {asked['do']}"
            + (f" ({' | '.join(tail)})" if tail else "")
            + "; nothing was written. Try another --optimisation level or --precision, "
            "or another TensorRT version"
        )
    if "error" in answer:
        from neurodeploy_export._build_worker import ERRORS

        if answer["error"] == "CancelledError":
            raise CancelledError(answer["text"])
        raise ERRORS.get(answer["error"], BuildError)(answer["text"])
    done: dict[str, Any] = answer["done"]
    return done


def _converse(
    child: subprocess.Popen[str], asked: dict[str, Any], tell: Progress
) -> dict[str, Any] | None:
    """Its last message; None where it died without one."""
    assert child.stdin is not None
    assert child.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(json.dumps(asked) + "\n")
        child.stdin.flush()
    for line in child.stdout:
        message: dict[str, Any] = json.loads(line)
        if "phase" not in message:
            return message
        tell(f"TensorRT: {message['phase']}", message["share"])
    return None


class _KillLater:
    """Kills a process after a time, unless it is cancelled before."""

    def __init__(self, child: subprocess.Popen[str], after_s: float | None) -> None:
        self.killed = False
        self._child = child
        self._timer = threading.Timer(after_s or 0, self._kill)
        self._timer.daemon = True
        if after_s is not None:
            self._timer.start()

    def _kill(self) -> None:
        self.killed = True
        self._child.kill()

    def cancel(self) -> None:
        self._timer.cancel()


def _stop(child: subprocess.Popen[str]) -> None:
    """Ask it to stop, and kill it where it does not."""
    late = _KillLater(child, GRACE_S)
    with contextlib.suppress(OSError, ValueError):
        if child.stdin is not None:
            child.stdin.close()
    # Its messages have to be taken, or it waits for us and not we for it.
    with contextlib.suppress(OSError, ValueError):
        for _ in child.stdout or ():
            pass
    child.wait()
    late.cancel()


def _death(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"crashed ({name})"
