"""Ctrl-C in the middle of starting threads leaves none of them behind."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from neurodeploy_runtime import (
    ArraySource,
    Bundle,
    Normalisation,
    NumpyEngine,
    Segmenter,
    SegmentSettings,
)
from neurodeploy_runtime._interrupt import interrupt_sets
from neurodeploy_runtime._reader import PlaneReader


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def pressed(times: int, interrupted: threading.Event, after: list[int]) -> None:
    """Press so often, and note every time that the program went on afterwards."""
    with interrupt_sets(interrupted):
        for time in range(times):
            press_ctrl_c()
            after.append(time)


def test_the_first_is_a_wish_and_an_exception_at_the_end() -> None:
    interrupted, after = threading.Event(), list[int]()
    with pytest.raises(KeyboardInterrupt):
        pressed(1, interrupted, after)
    assert after == [0]
    assert interrupted.is_set()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_does_not_wait() -> None:
    after = list[int]()
    with pytest.raises(KeyboardInterrupt):
        pressed(2, threading.Event(), after)
    assert after == [0]


def test_a_program_keeps_its_own_handler() -> None:
    heard: list[int] = []
    usual = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with interrupt_sets(interrupted := threading.Event()):
            press_ctrl_c()
    finally:
        signal.signal(signal.SIGINT, usual)
    assert heard == [signal.SIGINT]
    assert not interrupted.is_set()


def test_nothing_is_changed_outside_the_main_thread() -> None:
    handlers: list[object] = []

    def work() -> None:
        with interrupt_sets(threading.Event()):
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


def test_between_two_threads_that_start_none_is_left(
    make_identity_bundle: Callable[..., Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = PlaneReader.start

    def interrupted(reader: PlaneReader) -> None:
        press_ctrl_c()
        start(reader)

    monkeypatch.setattr(PlaneReader, "start", interrupted)
    bundle = make_identity_bundle()
    volume = ArraySource(np.arange(300 * 40 * 50, dtype=np.uint16).reshape(300, 40, 50))
    settings = SegmentSettings(normalisation=Normalisation("unit", 0, 255))
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        Segmenter(bundle, settings, engines=[NumpyEngine(bundle)]).segment(
            volume, tmp_path / "out.tif"
        )
    assert set(threading.enumerate()) == before
    assert not (tmp_path / "out.tif").exists()
