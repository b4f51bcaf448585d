"""The threads of a live segmenter give way to the camera's."""

import os
import sys
import threading

import pytest

from neurodeploy_runtime.live._priority import NICENESS, step_back

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
        step_back()
        found.append(niceness())
        thread = threading.Thread(target=child)
        thread.start()
        thread.join()

    before = niceness()
    thread = threading.Thread(target=worker)
    thread.start()
    thread.join()
    assert found == [min(19, before + NICENESS)] * 2
    assert niceness() == before
