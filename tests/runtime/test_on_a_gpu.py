"""On a real GPU, where there is one: what others hold against stand-ins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from neurodeploy_runtime import (
    ArraySource,
    Bundle,
    DeviceError,
    EngineSettings,
    Normalisation,
    Segmenter,
    SegmentSettings,
    load_bundle,
)
from neurodeploy_runtime.arrays import _cuda
from neurodeploy_runtime.engines import choose_engine
from neurodeploy_runtime.engines._onnxruntime import cuda_devices

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(cuda_devices() == 0, reason="no NVIDIA GPU is here"),
]

MakeBundle = Callable[..., Bundle]
VOLUME = np.random.default_rng(0).integers(0, 4000, (70, 90, 110), np.uint16)


def segmented(bundle: Bundle, out: Path, engine: EngineSettings) -> np.ndarray:
    """Probabilities of a volume; the engine asked for is the one that ran."""
    settings = SegmentSettings(
        engine=engine,
        output_kind="probability",
        normalisation=Normalisation("background-asinh", 1500.0, 300.0),
        flips=True,
    )
    with Segmenter(bundle, settings) as segmenter:
        report = segmenter.segment(ArraySource(VOLUME), out)
    assert report is not None
    assert report.provenance["engine"]["device"] == engine.device
    return tifffile.imread(out)


def reason_against(bundle: Bundle, engine: EngineSettings) -> str | None:
    """Why an engine cannot run here, in its own words; any other error is one."""
    try:
        choose_engine(bundle, engine)
    except DeviceError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_gpu_says_what_the_cpu_says(
    tmp_path: Path, name: str, precision: str
) -> None:
    bundle = load_bundle()
    asked = EngineSettings(name, "cuda:0", precision, batch=2)  # type: ignore[arg-type]
    if reason := reason_against(bundle, asked):
        pytest.skip(reason)
    cpu = segmented(
        bundle, tmp_path / "cpu.tif", EngineSettings("onnxruntime", "cpu", "fp32")
    )
    gpu = segmented(bundle, tmp_path / "gpu.tif", asked)
    assert np.abs(cpu.astype(int) - gpu).max() <= (1 if precision == "fp32" else 12)
    level = round(255 * bundle.spec.threshold)
    assert np.mean((cpu >= level) != (gpu >= level)) < 1e-3


@pytest.mark.parametrize("name", ["onnxruntime", "tensorrt"])
def test_tiles_that_stay_there_give_the_same_bits(tmp_path: Path, name: str) -> None:
    bundle = load_bundle()
    if reason := _cuda.why_not():
        pytest.skip(reason)
    there = EngineSettings(name, "cuda:0", batch=2, blend_on="gpu")  # type: ignore[arg-type]
    if reason := reason_against(bundle, there):
        pytest.skip(reason)
    here = EngineSettings(name, "cuda:0", batch=2, blend_on="host")  # type: ignore[arg-type]
    host = segmented(bundle, tmp_path / "host.tif", here)
    gpu = segmented(bundle, tmp_path / "gpu.tif", there)
    assert np.array_equal(host, gpu)
