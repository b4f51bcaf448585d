"""On a real GPU, where there is one: what others hold against stand-ins."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from neurodeploy_export import (
    BuildSettings,
    ExportSettings,
    TensorRtMissingError,
    build_engine,
)
from neurodeploy_export._graph import infer, load_skeleton
from neurodeploy_export._half import write_half
from neurodeploy_export._ranges import measure
from neurodeploy_runtime import (
    ArraySource,
    Bundle,
    BundleWriter,
    DeviceError,
    EngineSettings,
    Normalisation,
    Segmenter,
    SegmentSettings,
    load_bundle,
)
from neurodeploy_runtime._bundle import Precision
from neurodeploy_runtime.arrays import _cuda
from neurodeploy_runtime.engines import choose_engine
from neurodeploy_runtime.engines._base import EngineName
from neurodeploy_runtime.engines._onnxruntime import cuda_devices

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        cuda_devices() == 0, reason="no NVIDIA GPU is here, or not asked for"
    ),
]

VOLUME = np.random.default_rng(0).integers(0, 4000, (70, 90, 110), np.uint16)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The network that ships, with a graph in half as an export writes it."""
    ships = load_bundle()
    model = infer(load_skeleton(ships.onnx("fp32")))
    absmax = measure(model, ships.path, ships.golden().voxels[:2]).absmax
    with BundleWriter(tmp_path_factory.mktemp("gpu") / "typed") as writer:
        for name in ("model.onnx", "golden.npz"):
            shutil.copy(ships.path / name, writer.folder)
        half = writer.folder / "model.fp16.onnx"
        write_half(model, ships.path, absmax, ExportSettings("fp16"), half)
        return writer.seal(ships.spec)


def with_engine(bundle: Bundle, name: str, precision: Precision) -> None:
    """Build what TensorRT runs; a skip where it is not installed."""
    if name == "tensorrt":
        asked = BuildSettings("tensorrt", precision, max_batch=2)
        try:
            build_engine(bundle.path, asked)
        except TensorRtMissingError as error:
            pytest.skip(str(error))


def test_what_runs_on_a_gpu_is_made_anywhere(bundle: Bundle) -> None:
    """The one test here that needs none: the others would fail for another reason."""
    assert bundle.precisions == ("fp32", "fp16")


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
class TestOnAGpu:
    """Each engine in each precision."""

    pytestmark = gpu

    def test_it_says_what_the_cpu_says(
        self, bundle: Bundle, tmp_path: Path, name: EngineName, precision: Precision
    ) -> None:
        with_engine(bundle, name, precision)
        asked = EngineSettings(name, "cuda:0", precision, batch=2)
        if reason := reason_against(bundle, asked):
            pytest.skip(reason)
        cpu = EngineSettings("onnxruntime", "cpu", "fp32")
        there = segmented(bundle, tmp_path / "gpu.tif", asked)
        here = segmented(bundle, tmp_path / "cpu.tif", cpu)
        most = 1 if precision == "fp32" else 12
        assert np.abs(here.astype(int) - there).max() <= most
        level = round(255 * bundle.spec.threshold)
        assert np.mean((here >= level) != (there >= level)) < 1e-3

    def test_tiles_that_stay_there_give_the_same_bits(
        self, bundle: Bundle, tmp_path: Path, name: EngineName, precision: Precision
    ) -> None:
        if reason := _cuda.why_not():
            pytest.skip(reason)
        with_engine(bundle, name, precision)
        there = EngineSettings(name, "cuda:0", precision, batch=2, blend_on="gpu")
        if reason := reason_against(bundle, there):
            pytest.skip(reason)
        here = replace(there, blend_on="host")
        host = segmented(bundle, tmp_path / "host.tif", here)
        gpu = segmented(bundle, tmp_path / "gpu.tif", there)
        assert np.array_equal(host, gpu)
