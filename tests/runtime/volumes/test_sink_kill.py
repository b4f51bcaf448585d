"""Promises of every output when its writer is killed, with real processes."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime.volumes._open_sink import (
    attach_sink,
    create_sink,
    default_grain,
    open_sink,
)

pytest.importorskip("tensorstore")

SHAPE = (64, 200, 300)
GRAIN = {"tiff": (8, 100, 300), "v3draw": (16, 50, 100), "ome-zarr": (64, 64, 64)}
KINDS = ["tiff", "v3draw", "ome-zarr", "precomputed"]
UM = (1.0, 1.0, 1.0)

# Writes every unit again and again, the values by position, and says so in lines.
WRITER = f"""
import sys
from pathlib import Path
import numpy as np
from neurodeploy_runtime.volumes._open_sink import (open_sink)

path, kind, grain = Path(sys.argv[1]), sys.argv[2], eval(sys.argv[3])
shape = {SHAPE}
voxels = (np.arange(np.prod(shape)) * 2654435761 % 251).astype(np.uint8).reshape(shape)
with open_sink(path, kind, shape, "uint8", {UM}, grain=grain) as sink:
    print("begin", flush=True)
    while True:
        for unit in sink.units():
            if not sink.holds(unit) or sys.argv[4] == "again":
                sink.write(unit, voxels[unit.slices])
                print(*unit.start, flush=True)
        if sys.argv[4] == "once":
            break
"""


def expected():
    values = np.arange(np.prod(SHAPE)) * 2654435761 % 251
    return values.astype(np.uint8).reshape(SHAPE)


def killed_writer(path, kind, mode, delay_s):
    """Units that the writer said were durable before it was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), kind, str(GRAIN.get(kind)), mode],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "begin\n"
        time.sleep(delay_s)
        os.kill(process.pid, signal.SIGKILL)
        said = process.stdout.read().splitlines()
    # The last line may have been cut.
    return [tuple(map(int, line.split())) for line in said[:-1]]


def check_and_complete(path, kind, durable):
    voxels = expected()
    with open_sink(path, kind, SHAPE, "uint8", UM, grain=GRAIN.get(kind)) as sink:
        for unit in sink.units():
            held = sink.holds(unit)
            if unit.start in durable:
                assert held, f"{unit} was durable and is gone"
            if held:
                assert np.array_equal(sink.read(unit), voxels[unit.slices])
            else:
                sink.write(unit, voxels[unit.slices])
        assert all(map(sink.holds, sink.units()))
        sink.finish({})
        assert np.array_equal(sink.read(Box.whole(SHAPE)), voxels)


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL on Windows")
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_durable_survives_a_kill_and_the_rest_can_be_written(tmp_path, kind):
    path = tmp_path / "a"
    create_sink(path, kind, SHAPE, "uint8", UM, grain=GRAIN.get(kind)).close()
    durable = killed_writer(path, kind, "once", 0.004)
    check_and_complete(path, kind, durable)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL on Windows")
@pytest.mark.parametrize("kind", KINDS)
def test_no_kill_in_a_row_of_kills_makes_a_store_unreadable(tmp_path, kind):
    random = np.random.default_rng(0)
    path = tmp_path / "a"
    create_sink(path, kind, SHAPE, "uint8", UM, grain=GRAIN.get(kind)).close()
    for kill in range(12):
        # Later writers replace units that are whole, over leftovers of the killed.
        mode = "once" if kill < 4 else "again"
        killed_writer(path, kind, mode, random.uniform(0, 0.05))
        if kill % 4 == 3:
            check_and_complete(path, kind, [])


@pytest.mark.parametrize("kind", KINDS)
def test_workers_that_begin_at_the_same_moment_share_one_output(tmp_path, kind):
    path = tmp_path / "a"
    voxels = expected()

    def work(number):
        sink = attach_sink(path, kind, SHAPE, "uint8", UM, grain=GRAIN.get(kind))
        with sink:
            for unit in list(sink.units())[number::4]:
                sink.write(unit, voxels[unit.slices])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert not list(tmp_path.glob("*.partial"))
    with open_sink(path, kind, SHAPE, "uint8", UM, grain=GRAIN.get(kind)) as sink:
        assert all(map(sink.holds, sink.units()))
        assert np.array_equal(sink.read(Box.whole(SHAPE)), voxels)


@pytest.mark.parametrize("kind", KINDS)
def test_the_unit_of_an_output_is_known_before_it_is_made(tmp_path, kind):
    for shape in [(1, 1, 1), (70, 300, 500), (300, 40, 700)]:
        grain = default_grain(kind, shape, "uint8")
        path = tmp_path / f"{shape}"
        with create_sink(path, kind, shape, "uint8", UM) as sink:
            assert list(Box.whole(shape).grid(grain)) == list(sink.units())
