"""Fixtures that every part of the suite shares."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import pytest

from neurodeploy_runtime import Bundle

# With --import-mode=importlib this folder is not on the path by itself.
sys.path.insert(0, str(Path(__file__).parent))
from bundles import identity_spec, write_identity_bundle

# Processes that test side by side share the cores; libraries read this when imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The suite is held to what CPUs say, on a machine with a GPU, too: there `auto` would
# take it, and an engine that was built would be run. Who names the tests for a GPU
# (`pytest tests/runtime/test_on_a_gpu.py`, `-m gpu`) means it. Processes that test side
# by side inherit this.
_asked_for_a_gpu = any("gpu" in word for word in sys.argv[1:])
if "PYTEST_XDIST_WORKER" not in os.environ and not _asked_for_a_gpu:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# A shell ignores Ctrl-C for what it starts in the background, and children inherit
# that: tests that press it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is slow and not wrong; the same examples every time.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: then those who test side by side end together."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


class Ended(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The command line, in this process: ``run("plan", path).code``."""
    from neurodeploy.cli import main

    def run_main(*arguments: object) -> Ended:
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        captured = capfd.readouterr()
        return Ended(int(stop.value.code or 0), captured.out, captured.err)

    return run_main


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real microscopy data that lies beside a developer's checkout."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real data beside this checkout ({path} is absent)")
    return path


@pytest.fixture(scope="session")
def make_identity_bundle(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Bundle]:
    """Real bundles whose network gives the middle of its tile back.

    Call it with the arguments of `identity_spec`: ``make(tile=(8, 16, 16))``.
    """
    made: dict[str, Bundle] = {}

    def make(**spec: Any) -> Bundle:
        key = repr(sorted(spec.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("bundle") / "identity"
            made[key] = write_identity_bundle(folder, identity_spec(**spec))
        return made[key]

    return make
