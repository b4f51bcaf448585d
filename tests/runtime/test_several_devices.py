"""Several engines share one volume, and nobody can tell from the result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from neurodeploy_runtime import (
    ArraySource,
    Bundle,
    DeviceError,
    EngineSettings,
    Normalisation,
    NumpyEngine,
    ResumeError,
    Segmenter,
    SegmentSettings,
    SettingsError,
    open_volume,
    reproduce,
)
from neurodeploy_runtime.engines import (
    Choice,
    Engine,
    choose_engines,
    open_engines,
    same_engine,
)
from neurodeploy_runtime.engines._choose import Adapter

MakeBundle = Callable[..., Bundle]


def segmented(
    bundle: Bundle, device: str, out: Path
) -> tuple[np.ndarray[Any, Any], Any]:
    noise = np.random.default_rng(1).integers(0, 256, (40, 50, 60), np.uint8)
    settings = SegmentSettings(
        engine=EngineSettings(engine="onnxruntime", device=device, threads=1),
        normalisation=Normalisation("unit", 0, 255),
        output_kind="probability",
    )
    with Segmenter(bundle, settings) as segmenter:
        assert len(segmenter.engines) == len(device.split(","))
        report = segmenter.segment(ArraySource(noise), out)
    assert report is not None
    return tifffile.imread(out), report.provenance["engine"]


def test_two_give_what_one_gives(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_identity_bundle(tile=(8, 16, 16), overlap=(0.25, 0.25, 0.25))
    one, first = segmented(bundle, "cpu", tmp_path / "one.tif")
    two, both = segmented(bundle, "cpu, cpu", tmp_path / "two.tif")
    assert (one == two).all()
    assert first["device"] == "cpu"
    assert both["device"] == "cpu,cpu"


def test_both_of_them_work(make_identity_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_identity_bundle(tile=(8, 16, 16))
    calls: dict[str, int] = {"a": 0, "b": 0}

    class Counting(NumpyEngine):
        def __init__(self, name: str) -> None:
            super().__init__(bundle)
            self.key = name

        def infer(self, batch: Any, out: Any) -> None:
            calls[self.key] += 1
            super().infer(batch, out)

    settings = SegmentSettings(normalisation=Normalisation("unit", 0, 255))
    volume = ArraySource(np.zeros((64, 64, 64), np.uint8))
    Segmenter(bundle, settings, engines=[Counting("a"), Counting("b")]).segment(
        volume, tmp_path / "out.tif"
    )
    assert min(calls.values()) > 10, calls


@pytest.mark.parametrize(
    ("device", "match"),
    [
        ("auto,cpu", "mixes auto"),
        ("cpu,gpu:1", "'gpu:1' is unknown"),
        ("cpu,", "'' is unknown"),
    ],
)
def test_a_list_that_means_nothing_is_refused(
    make_identity_bundle: MakeBundle, device: str, match: str
) -> None:
    with pytest.raises(SettingsError, match=match):
        choose_engines(make_identity_bundle(), EngineSettings(device=device))


def test_devices_of_two_kinds_are_refused(make_identity_bundle: MakeBundle) -> None:
    """Which tile went where would decide the result; and what was opened is closed."""
    bundle = make_identity_bundle()
    closed: list[str] = []

    class Gpu(NumpyEngine):
        def __init__(self, device: str) -> None:
            super().__init__(bundle)
            self.device = device

        def describe(self) -> dict[str, Any]:
            kind = "A100" if self.device == "cuda:0" else "H100"
            return {**super().describe(), "gpu": kind}

        def close(self) -> None:
            closed.append(self.device)

    def opener(bundle: Bundle, settings: EngineSettings) -> Engine:
        return Gpu(settings.device)

    adapter = Adapter("fake", "cuda", lambda bundle, settings: None, opener)
    choices = [
        Choice(adapter, EngineSettings(device=device), ())
        for device in ("cuda:0", "cuda:1")
    ]
    with pytest.raises(DeviceError, match="cuda:0 and cuda:1 differ in kind"):
        open_engines(bundle, choices)
    assert closed == ["cuda:0", "cuda:1"]
    assert same_engine([Gpu("cuda:0"), Gpu("cuda:0")])["device"] == "cuda:0,cuda:0"


def test_a_result_of_two_is_run_again_by_two(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_identity_bundle(tile=(8, 16, 16))
    volume = tmp_path / "in.tif"
    noise = np.random.default_rng(2).integers(0, 256, (20, 30, 40), np.uint8)
    tifffile.imwrite(volume, noise)
    settings = SegmentSettings(
        engine=EngineSettings(engine="onnxruntime", device="cpu,cpu", threads=1)
    )
    with Segmenter(bundle, settings) as segmenter, open_volume(volume) as source:
        segmenter.segment(source, tmp_path / "out.tif")
    found = reproduce(tmp_path / "out.tif", bundle, None)
    assert found.same_engine
    assert (found.voxels, found.differing) == (noise.size, 0)


def test_workers_may_have_a_gpu_each_and_all_of_one_kind(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    """Which of them it is changes no bit: the second worker was refused."""
    bundle = make_identity_bundle()

    class Gpu(NumpyEngine):
        def __init__(self, device: str, kind: str = "A100") -> None:
            super().__init__(bundle)
            self.device, self.kind = device, kind

        def describe(self) -> dict[str, Any]:
            return {**super().describe(), "gpu": self.kind}

    noise = np.random.default_rng(1).integers(0, 256, (130, 40, 50), np.uint8)

    def share(i: int, *engines: Engine) -> Any:
        settings = SegmentSettings(
            normalisation=Normalisation("unit", 0, 255),
            output_kind="probability",
            worker=(i, 3),
        )
        made = Segmenter(bundle, settings, engines=list(engines))
        return made.segment(ArraySource(noise), tmp_path / "out.tif")

    assert share(1, Gpu("cuda:0")) is None
    with pytest.raises(ResumeError, match=r"engine\.gpu \(A100 there, H100 asked for"):
        share(2, Gpu("cuda:0", "H100"))
    assert share(2, Gpu("cuda:1")) is None
    report = share(3, Gpu("cuda:2"), Gpu("cuda:3"))
    assert report.provenance["engine"]["device"] == "cuda:2,cuda:3"
    assert (tifffile.imread(tmp_path / "out.tif") == noise).all()
