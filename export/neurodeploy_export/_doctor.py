"""What is installed, what is wrong with it, and the command that cures it."""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal

from neurodeploy_runtime._errors import NeurodeployError, said_by
from neurodeploy_runtime.engines import _cuda_driver, _onnxruntime
from neurodeploy_runtime.engines._cuda_driver import Gpu
from neurodeploy_runtime.engines._onnxruntime import DISTRIBUTIONS

#: Oldest TensorRT whose Python calls this code is held to.
OLDEST_TENSORRT = (10, 13)
#: cuDNN with wrong TF32 3-D convolutions, both ends included (pytorch #167024).
BROKEN_CUDNN = ((9, 10, 2), (9, 15, 99))

_PACKAGES = (
    "neurodeploy",
    "numpy",
    *DISTRIBUTIONS,
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "torch",
    "onnx",
    "onnxscript",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "nvidia-cuda-runtime-cu12",
    "nvidia-cuda-runtime",
    "tensorstore",
    "h5py",
    "imagecodecs",
    "tifffile",
)

State = Literal["good", "note", "fault"]


@dataclass(frozen=True)
class Environment:
    """Facts about this machine, as plain values; see :func:`look`.

    `providers` are what the installed ONNX Runtime was compiled with; `no_cuda` is why
    that of CUDA runs nothing on the first GPU.
    """

    python: str
    system: str
    packages: dict[str, str] = field(default_factory=dict)
    driver: str | None = None
    cuda: str | None = None
    gpus: tuple[Gpu, ...] = ()
    providers: tuple[str, ...] = ()
    no_cuda: str | None = None
    import_errors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; a fault has a cure."""

    topic: str
    state: State
    text: str
    cure: str | None = None


def look() -> Environment:
    """Gather the facts; imports ONNX Runtime and TensorRT, starts no network."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    driver = _cuda_driver.load_driver()
    gpus = tuple(_cuda_driver.gpus())
    errors: dict[str, str] = {}
    for name in ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"):
        error = _import_error(name)
        if error:
            errors[name] = error
    providers: tuple[str, ...] = ()
    no_cuda = None
    if any(name in packages for name in DISTRIBUTIONS) and "onnxruntime" not in errors:
        import onnxruntime

        providers = tuple(onnxruntime.get_available_providers())
        if gpus and "CUDAExecutionProvider" in providers:
            no_cuda = _onnxruntime.why_no_cuda(0)
    return Environment(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        packages=packages,
        driver=_driver_release(),
        cuda=_cuda_driver.cuda_version(driver) if driver is not None else None,
        gpus=gpus,
        providers=providers,
        no_cuda=no_cuda,
        import_errors=errors,
    )


def diagnose(env: Environment) -> list[Finding]:
    """What the facts mean, in the order in which they matter."""
    return [
        *_about_python(env),
        *_about_gpu(env),
        *_about_onnxruntime(env),
        *_about_cudnn(env),
        *_about_tensorrt(env),
        *_about_openvino(env),
    ]


def about_engine(bundle: str | Path | None) -> list[Finding]:
    """Which engine would run a bundle here, and why not a better one."""
    from neurodeploy_runtime import EngineSettings, choose_engine, load_bundle

    try:
        opened = load_bundle(bundle)
        choice = choose_engine(opened, EngineSettings())
    except NeurodeployError as error:
        return [Finding("engine", "fault", str(error), "see the faults above")]
    chosen = f"{choice.adapter.name} on {choice.settings.device}"
    return [
        Finding("engine", "good", f"{opened.spec.name} would run on {chosen}"),
        *(Finding("engine", "note", f"not {text}") for text in choice.passed_over),
    ]


def _about_python(env: Environment) -> list[Finding]:
    have = env.packages
    text = f"Python {env.python}, {env.system}, neurodeploy " + have.get(
        "neurodeploy", "(not installed: run from a checkout)"
    )
    optional = [f"{n} {have[n]}" for n in ("torch", "onnx", "tensorstore") if n in have]
    more = ", ".join(optional)
    return [Finding("python", "good", text + (f"; {more}" if more else ""))]


def _about_gpu(env: Environment) -> list[Finding]:
    if env.driver is None and env.cuda is None:
        return [
            Finding(
                "driver",
                "note",
                "no NVIDIA driver: networks run on the CPU",
                "with an NVIDIA GPU: install its driver "
                "(https://www.nvidia.com/drivers), then reboot",
            )
        ]
    if not env.gpus:
        return [
            Finding(
                "driver",
                "fault",
                f"the NVIDIA driver {env.driver or ''} is installed and shows no GPU",
                "reboot after a driver update; in a container pass `--gpus all`; check "
                "that CUDA_VISIBLE_DEVICES is not empty",
            )
        ]
    found = [
        Finding("driver", "good", f"driver {env.driver or '?'}, runs CUDA {env.cuda}")
    ]
    found += [
        Finding(
            "gpu",
            "good",
            f"cuda:{g.index} {g.name}, compute capability {g.compute_capability}, "
            f"{g.memory_bytes / 2**30:.0f} GiB",
        )
        for g in env.gpus
    ]
    return found


def _about_onnxruntime(env: Environment) -> list[Finding]:
    have = [f"{n} {env.packages[n]}" for n in DISTRIBUTIONS if n in env.packages]
    if not have:
        return [
            Finding(
                "onnxruntime",
                "fault",
                "ONNX Runtime is not installed",
                "pip install onnxruntime-gpu (onnxruntime on macOS and Arm)",
            )
        ]
    if len(have) > 1:
        return [
            Finding(
                "onnxruntime",
                "fault",
                f"{' and '.join(have)} share one folder and overwrite each other",
                f"pip uninstall -y {' '.join(DISTRIBUTIONS)} && "
                "pip install onnxruntime-gpu",
            )
        ]
    if "onnxruntime" in env.import_errors:
        return [
            Finding(
                "onnxruntime",
                "fault",
                f"{have[0]} does not load: {env.import_errors['onnxruntime']}",
                f"pip install --force-reinstall {have[0].split()[0]}",
            )
        ]
    short = ", ".join(p.removesuffix("ExecutionProvider") for p in env.providers)
    found = [Finding("onnxruntime", "good", f"{have[0]} with {short}")]
    if not env.gpus:
        return found
    if "CUDAExecutionProvider" not in env.providers:
        name = have[0].split()[0]
        found.append(
            Finding(
                "onnxruntime",
                "fault",
                f"there is a GPU, and {name} has no CUDA provider",
                f"pip uninstall -y {name} && pip install onnxruntime-gpu",
            )
        )
    elif env.no_cuda is not None:
        found.append(
            Finding(
                "onnxruntime",
                "fault",
                f"its CUDA provider does not work: {env.no_cuda}",
                'pip install "neurodeploy[cuda]"',
            )
        )
    return found


def _about_cudnn(env: Environment) -> list[Finding]:
    found = []
    for name in ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13"):
        text = env.packages.get(name)
        if text is None:
            continue
        version = _numbers(text)[:3]
        if BROKEN_CUDNN[0] <= version <= BROKEN_CUDNN[1]:
            found.append(
                Finding(
                    "cudnn",
                    "fault",
                    f"cuDNN {text} computes wrong 3-D convolutions in TF32 "
                    "(neurodeploy keeps TF32 off in fp32; PyTorch may not)",
                    f'pip install -U "{name}>=9.16"',
                )
            )
        else:
            found.append(Finding("cudnn", "good", f"cuDNN {text}"))
    return found


def _about_tensorrt(env: Environment) -> list[Finding]:
    found = []
    text = env.packages.get("tensorrt")
    if text is None:
        found.append(
            Finding(
                "tensorrt",
                "note",
                "tensorrt is not installed: no engines for one GPU",
                'pip install "neurodeploy[tensorrt]"' if env.gpus else None,
            )
        )
    elif "tensorrt" in env.import_errors:
        found.append(
            Finding(
                "tensorrt",
                "fault",
                f"tensorrt {text} does not load: {env.import_errors['tensorrt']}",
                "pip install --force-reinstall tensorrt",
            )
        )
    elif _numbers(text)[:2] < OLDEST_TENSORRT:
        found.append(
            Finding(
                "tensorrt",
                "fault",
                f"tensorrt {text} is older than 10.13, which this code is held to",
                'pip install -U "tensorrt>=10.13"',
            )
        )
    else:
        found.append(Finding("tensorrt", "good", f"tensorrt {text}"))
        if _numbers(text)[0] >= 11 and "TensorrtExecutionProvider" in env.providers:
            found.append(
                Finding(
                    "tensorrt",
                    "note",
                    "ONNX Runtime's own TensorRT provider needs libnvinfer 10 and does "
                    f"not load with tensorrt {text}; neurodeploy does not use it, its "
                    "engines run directly",
                )
            )
    if env.gpus:
        found.append(
            Finding(
                "tensorrt",
                "note",
                "building was run for real with tensorrt-rtx on a CPU; running an "
                "engine was tested against the names and arities of TensorRT 10 and "
                "11 only, not on a GPU: `neurodeploy build` runs what it builds "
                "on the golden tiles, and keeps it only where it agrees",
            )
        )
    rtx = env.packages.get("tensorrt-rtx")
    if rtx is not None:
        error = env.import_errors.get("tensorrt_rtx")
        found.append(
            Finding("tensorrt", "good", f"tensorrt-rtx {rtx}, builds without a GPU")
            if error is None
            else Finding(
                "tensorrt",
                "fault",
                f"tensorrt-rtx {rtx} does not load: {error}",
                "pip install --force-reinstall tensorrt-rtx",
            )
        )
    return found


def _about_openvino(env: Environment) -> list[Finding]:
    text = env.packages.get("openvino")
    if text is None:
        return [
            Finding(
                "openvino",
                "note",
                "OpenVINO is not installed: the faster engine on most x86 CPUs",
                'pip install "neurodeploy[openvino]"',
            )
        ]
    error = env.import_errors.get("openvino")
    if error is not None:
        return [
            Finding(
                "openvino",
                "fault",
                f"openvino {text} does not load: {error}",
                "pip install --force-reinstall openvino",
            )
        ]
    return [Finding("openvino", "good", f"openvino {text}")]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text)[:4])


def _import_error(name: str) -> str | None:
    from importlib import import_module
    from importlib.util import find_spec

    if find_spec(name) is None:
        return None
    try:
        import_module(name)
    except Exception as error:
        return f"{type(error).__name__}: {said_by(error)}"
    return None


def _driver_release() -> str | None:
    file = Path("/proc/driver/nvidia/version")
    if not sys.platform.startswith("linux") or not file.is_file():
        return None
    found = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", file.read_text(errors="replace"))
    return found[1] if found else None
