"""Copies past the cache: the variable, and what is measured with it."""

from __future__ import annotations

import platform
import sys

import pytest

from neurodeploy_runtime import NumpyEngine
from neurodeploy_runtime.live import _capacity, _plane_copy, measure_rig
from neurodeploy_runtime.live._plane_copy import copy_seconds, past_the_cache

MINE = "glibc.cpu.x86_non_temporal_threshold=1000000"
#: Says in which environment it was started, instead of a time.
TELLS = (
    "import os; print(0.25 if 'non_temporal' in os.environ['GLIBC_TUNABLES'] else 1)"
)


@pytest.fixture(autouse=True)
def glibc(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.perturb=0")


def test_what_else_is_set_stays_set():
    joined = f"glibc.malloc.perturb=0:{MINE}"
    assert past_the_cache() == {"GLIBC_TUNABLES": joined}


def test_what_is_set_already_is_not_advised(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.cpu.x86_non_temporal_threshold=5")
    assert past_the_cache() is None
    assert copy_seconds(4_000_000) is None


def test_other_c_libraries_have_no_such_setting(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert past_the_cache() is None
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert past_the_cache() is None


def test_both_are_measured_in_processes_started_that_way(monkeypatch):
    monkeypatch.setattr(_plane_copy, "_MEASURE", TELLS)
    assert copy_seconds(4_000_000) == (1.0, 0.25)
    # Smaller ones are copied as before; of larger ones no ring is held for this.
    assert copy_seconds(900_000) is None
    assert copy_seconds(1 << 29) is None


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is one of glibc")
def test_a_real_copy_is_timed():
    as_is, past = copy_seconds(2_000_000)
    assert as_is > 0
    assert past > 0


def test_a_program_that_is_no_python_is_not_started_again(monkeypatch):
    monkeypatch.setattr(_plane_copy, "_MEASURE", TELLS)
    monkeypatch.setattr(sys, "executable", "/opt/rig/acquire")
    assert copy_seconds(4_000_000) is None
    monkeypatch.setattr(sys, "executable", "")
    assert copy_seconds(4_000_000) is None


@pytest.mark.parametrize("script", ["raise SystemExit(3)", "print('no number')"])
def test_a_measurement_that_fails_says_nothing(monkeypatch, script):
    monkeypatch.setattr(_plane_copy, "_MEASURE", script)
    assert copy_seconds(4_000_000) is None


@pytest.mark.parametrize(
    ("copies", "advised"),
    [((1e-3, 6e-4), True), ((1e-3, 9.5e-4), False), (None, False)],
)
def test_it_is_advised_where_it_is_faster(
    monkeypatch, make_identity_bundle, copies, advised
):
    monkeypatch.setattr(_capacity, "copy_seconds", lambda nbytes: copies)
    bundle = make_identity_bundle(tile=(8, 16, 16))
    report = measure_rig(bundle, (40, 40), 1.0, engine=NumpyEngine(bundle), seconds=0.1)
    assert report.copy_s == copies
    lines = [line for line in report.advice if MINE in line]
    assert len(lines) == advised
    if advised:
        assert "0.60 ms instead of 1.00" in lines[0]
