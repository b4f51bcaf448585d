"""Golden tiles find an engine that says something else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurodeploy_export import _verify as verifying
from neurodeploy_export import verify_bundle
from neurodeploy_runtime import (
    Bundle,
    BundleError,
    BundleWriter,
    Engine,
    EngineError,
    EngineSettings,
)
from neurodeploy_runtime._golden import batches


def test_every_engine_of_this_machine_agrees(bundle: Bundle) -> None:
    verdicts = {(v.engine, v.precision): v for v in verify_bundle(bundle.path, "cpu")}
    assert verdicts["onnxruntime", "fp32"].agrees
    assert verdicts["onnxruntime", "fp32"].seconds
    # What cannot be asked has a reason, and is not taken for agreement.
    other = verdicts["onnxruntime", "bf16"]
    assert other.agrees is None
    assert other.reason
    if verdicts["openvino", "fp32"].parity is not None:
        assert verdicts["openvino", "fp32"].agrees
    assert {v.device for v in verdicts.values()} == {"cpu"}


def test_other_answers_are_found(bundle: Bundle, tmp_path: Path) -> None:
    golden = bundle.golden()
    with BundleWriter(tmp_path / "b") as writer:
        for name in bundle.files:
            (writer.folder / name).write_bytes((bundle.path / name).read_bytes())
        np.savez_compressed(
            writer.folder / "golden.npz",
            voxels=golden.voxels,
            probability=golden.probability[:, :, ::-1],
        )
        writer.seal(bundle.spec)
    verdict = next(
        v for v in verify_bundle(tmp_path / "b", "cpu") if v.engine == "onnxruntime"
    )
    assert verdict.agrees is False
    assert any("change label" in failure for failure in verdict.failures)


def test_an_engine_that_fails_is_a_verdict(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise EngineError("the GPU fell off the bus")

    adapters = [
        replace(a, open=broken) for a in verifying.ADAPTERS if a.name == "onnxruntime"
    ]
    monkeypatch.setattr(verifying, "ADAPTERS", adapters)
    verdicts = [v for v in verify_bundle(bundle.path, "cpu") if v.agrees is not None]
    assert [v.failures for v in verdicts] == [("the GPU fell off the bus",)]


@pytest.mark.parametrize("tiles", [1, 2, 5, 6])
@pytest.mark.parametrize("batch", [1, 2, 4, 16])
def test_every_tile_and_every_place_of_a_batch_is_asked(tiles: int, batch: int) -> None:
    asked = batches(tiles, batch)
    assert asked.shape[1] == batch
    assert set(asked.ravel().tolist()) == set(range(tiles))
    assert asked.size < tiles + batch


def test_an_engine_that_errs_in_the_last_place_of_its_batch_is_found(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run gives it whole batches: so does this."""
    (real,) = (
        a for a in verifying.ADAPTERS if (a.name, a.device) == ("onnxruntime", "cpu")
    )

    def errs(bundle: Bundle, settings: EngineSettings) -> Engine:
        assert settings.batch is None  # as many as a run would take
        engine = real.open(bundle, replace(settings, batch=4))
        infer = engine.infer

        def last_is_wrong(batch: Any, out: Any) -> None:
            infer(batch, out)
            out[3] = 1 - out[3]

        monkeypatch.setattr(engine, "infer", last_is_wrong)
        return engine

    monkeypatch.setattr(verifying, "ADAPTERS", [replace(real, open=errs)])
    verdict = next(iter(verify_bundle(bundle.path, "cpu")))
    assert verdict.batch == 4
    assert verdict.agrees is False


def test_a_damaged_bundle_is_not_asked(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        list(verify_bundle(tmp_path))
