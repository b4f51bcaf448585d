"""What a machine sustains: the reckoning, with engines whose speed is known."""

from __future__ import annotations

import time

import pytest

from neurodeploy_runtime import NumpyEngine, SettingsError
from neurodeploy_runtime.live import LiveSegmenter, LiveSettings, measure_rig


class Slow(NumpyEngine):
    def infer(self, batch, out):
        time.sleep(0.01)
        super().infer(batch, out)


@pytest.fixture
def bundle(make_identity_bundle):
    return make_identity_bundle(tile=(8, 16, 16))


def test_a_rate_that_is_sustained_has_a_delay(bundle):
    report = measure_rig(bundle, (40, 40), 1.0, engine=Slow(bundle), seconds=0.3)
    # Strides of 12 in y and x, of 6 in z: 3 × 3 tiles for 6 planes.
    assert report.tiles_per_layer == 9
    assert report.tile_s >= 0.01
    assert report.sustains
    layer_s = 9 * report.tile_s * (1 + report.overhead)
    assert report.sustained_hz == pytest.approx(6 / layer_s)
    assert report.lag_planes == (3, 8)
    assert report.delay_s == pytest.approx((3 + layer_s, 8 + layer_s))
    assert report.full_after_s is None
    assert 0 < report.push_p50_s <= report.push_p99_s


def test_a_rate_that_is_not_sustained_has_advice_with_figures(bundle):
    report = measure_rig(bundle, (200, 200), 500.0, engine=Slow(bundle), seconds=0.3)
    assert not report.sustains
    assert report.delay_s is None
    gap = 500.0 - report.sustained_hz
    assert report.full_after_s == pytest.approx(report.ring_planes / gap)
    text = "\n".join(report.advice)
    for word in ("acquire at most", "bin 8 × 8", "overlap 0 gives", "mode slice"):
        assert word in text
    assert report.to_json()["sustains"] is False


def test_a_part_of_the_plane_that_is_advised_does_keep_up(bundle):
    report = measure_rig(bundle, (200, 200), 50.0, engine=Slow(bundle), seconds=0.3)
    (part,) = [a for a in report.advice if a.startswith("segment a part")]
    side = int(part.split()[6])
    tiles = ((side - 4) // 12) ** 2
    layer_s = tiles * report.tile_s * (1 + report.overhead)
    assert 6 / layer_s >= 50.0
    assert 6 / layer_s * tiles / ((side + 8) // 12) ** 2 < 50.0


def test_the_memory_it_names_is_what_a_stream_takes(bundle):
    engine = NumpyEngine(bundle)
    report = measure_rig(bundle, (50, 70), 5.0, engine=engine, seconds=0.1)
    fixed = LiveSettings(learn_planes=1)
    with LiveSegmenter(bundle, (50, 70), "uint16", fixed, engines=[engine]) as live:
        assert report.memory_bytes == live.buffer_bytes
        assert report.ring_planes == live.ring_planes
        assert report.lag_planes == live.lag_planes


def test_what_cannot_be_measured_is_refused(bundle):
    with pytest.raises(SettingsError, match="must be above 0"):
        measure_rig(bundle, (40, 40), 0.0, engine=NumpyEngine(bundle))


@pytest.mark.parametrize("batch", [4, 16])
def test_a_batch_that_is_not_full_costs_as_much_as_one_that_is(bundle, batch):
    class Batches(NumpyEngine):
        def infer(self, batch, out):
            time.sleep(0.02)
            super().infer(batch, out)

    engine = Batches(bundle, batch=batch)
    report = measure_rig(bundle, (40, 40), 500.0, engine=engine, seconds=0.3)
    assert report.tiles_per_layer == 9
    run = {4: 12, 16: 16}[batch]
    layer_s = run * report.tile_s * (1 + report.overhead)
    assert report.sustained_hz == pytest.approx(6 / layer_s)
    # No part of the plane takes less than a batch, and no batch is that fast.
    assert any("no part of the plane" in advice for advice in report.advice)
    (line,) = [a for a in report.advice if a.startswith("bin 8 × 8")]
    assert f"{6 / (batch * report.tile_s * (1 + report.overhead)):.3g} planes" in line
