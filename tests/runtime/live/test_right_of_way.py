"""While a plane is copied into the ring, what reads and writes memory waits."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from neurodeploy_runtime import (
    Bundle,
    Normalisation,
    NumpyEngine,
    Segmenter,
    SegmentSettings,
    _blend,
)
from neurodeploy_runtime.live import LiveSegmenter, LiveSettings
from neurodeploy_runtime.live import _right_of_way as module
from neurodeploy_runtime.live._right_of_way import RightOfWay

UNIT = Normalisation("unit", 0.0, 255.0)


def test_a_step_waits_while_a_plane_is_copied_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 30.0)
    way, order = RightOfWay(), []
    way.give()  # nobody copies: at once

    def step() -> None:
        way.give()
        order.append("step")

    with way.taken():
        thread = threading.Thread(target=step)
        thread.start()
        time.sleep(0.05)
        order.append("copied")
    thread.join(30)
    assert order == ["copied", "step"]


def test_a_copy_that_takes_for_ever_stops_nobody() -> None:
    way = RightOfWay()
    with way.taken():
        for _ in range(3):
            way.give()


def test_the_way_is_given_back_after_an_error() -> None:
    way = RightOfWay()
    with pytest.raises(ValueError, match="a camera"), way.taken():
        raise ValueError("a camera")
    begin = time.monotonic()
    for _ in range(1000):
        way.give()
    assert time.monotonic() - begin < 1000 * module._PATIENCE_S


def test_every_large_step_of_a_live_stream_gives_way_first(
    make_identity_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tile cut and added, and each strip of a plane that leaves and is cleared."""
    asked: list[str] = []
    give = RightOfWay.give

    def counted(self: RightOfWay) -> None:
        asked.append(threading.current_thread().name)
        give(self)

    monkeypatch.setattr(RightOfWay, "give", counted)
    monkeypatch.setattr(_blend, "STRIP", 16 * 24)  # 16 rows: three strips
    bundle = make_identity_bundle(tile=(8, 16, 16))
    stack = np.random.default_rng(0).integers(0, 256, (20, 40, 24), np.uint8)
    settings = LiveSettings(normalisation=UNIT, outlet_planes=40)
    with LiveSegmenter(
        bundle, stack.shape[1:], "uint8", settings, engines=[NumpyEngine(bundle)]
    ) as live:
        live.push(stack)
        live.finish()
        planes = list(live.planes())
        tiles = live.tiles_run
    assert asked.count("cut") == tiles
    assert asked.count("blend") == tiles + 20 * 3 + 20 * 3  # added, left, cleared
    wanted = SegmentSettings(normalisation=UNIT)
    whole = Segmenter(bundle, wanted, engines=[NumpyEngine(bundle)])
    assert (np.stack([p.voxels for p in planes]) == whole.segment_array(stack)).all()
