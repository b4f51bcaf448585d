"""The threads of a live segmenter give way to others where that is asked for."""

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from neurodeploy_runtime import Bundle, Normalisation, NumpyEngine, SettingsError
from neurodeploy_runtime.live import LiveSegmenter, LiveSettings
from neurodeploy_runtime.live._priority import step_back

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="a thread has a niceness of its own on Linux only"
)


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_a_thread_and_those_it_starts_step_back_and_no_other() -> None:
    found: list[int] = []

    def child() -> None:
        found.append(niceness())

    def worker() -> None:
        step_back(7)
        found.append(niceness())
        thread = threading.Thread(target=child)
        thread.start()
        thread.join()

    before = niceness()
    thread = threading.Thread(target=worker)
    thread.start()
    thread.join()
    assert found == [min(19, before + 7)] * 2
    assert niceness() == before


@pytest.mark.parametrize("asked", [0, 3, 19])
def test_the_engine_of_a_live_segmenter_gives_way_as_much_as_asked(
    make_identity_bundle: Callable[..., Bundle], asked: int
) -> None:
    bundle = make_identity_bundle(tile=(8, 16, 16))
    found: set[int] = set()

    class Noting(NumpyEngine):
        def infer(self, batch: Any, out: Any) -> None:
            found.add(niceness())
            super().infer(batch, out)

    before = niceness()
    settings = LiveSettings(
        normalisation=Normalisation("unit", 0.0, 255.0), niceness=asked
    )
    with LiveSegmenter(
        bundle, (20, 24), "uint8", settings, engines=[Noting(bundle)]
    ) as live:
        live.push(np.zeros((16, 20, 24), np.uint8))
        live.finish()
        assert len(list(live.planes())) == 16
        assert niceness() == before
    assert found == {min(19, before + asked)}


@pytest.mark.parametrize("niceness", [-1, 20])
def test_a_niceness_that_nobody_may_have_is_refused(niceness: int) -> None:
    with pytest.raises(SettingsError, match=f"niceness {niceness} is not between"):
        LiveSettings(niceness=niceness)
