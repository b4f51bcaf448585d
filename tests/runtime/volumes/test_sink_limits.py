"""Promises about memory, and about a disk that refuses, in processes of their own."""

import subprocess
import sys

import numpy as np
import pytest
import tifffile

pytest.importorskip("tensorstore")
pytest.importorskip("resource")

# No file of this process may be longer than 200 kB.
REFUSED = """
import resource, sys
from pathlib import Path
import numpy as np
from neurodeploy_runtime import WriteError
from neurodeploy_runtime.volumes import create_sink

noise = np.random.default_rng(0).integers(0, 256, (64, 200, 200), np.uint8)
with create_sink(Path(sys.argv[1]), sys.argv[2], noise.shape, "uint8", (1, 1, 1)) as s:
    unit = next(s.units())
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    try:
        s.write(unit, noise[unit.slices])
    except WriteError as error:
        print(s.holds(unit), error)
"""

PEAK = """
import re, sys
from pathlib import Path
from neurodeploy_runtime import ingest
from neurodeploy_runtime._rss import current_rss
from neurodeploy_runtime.volumes import open_volume
import tensorstore, tifffile

with open_volume(sys.argv[1], threads=2) as source:
    cap = current_rss() + int(sys.argv[3])
    report = ingest(source, Path(sys.argv[2]), memory_bytes=cap)
# Not getrusage, whose figure begins with what the parent held when it forked.
status = Path("/proc/self/status").read_text()
peak = int(re.search("VmHWM:[^0-9]+([0-9]+)", status)[1]) * 1024
print(report.reading.how, cap, peak)
"""


def child(program, *words):
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.mark.parametrize("kind", ["ome-zarr", "precomputed"])
def test_a_disk_that_refuses_is_a_write_error_and_leaves_no_unit(tmp_path, kind):
    said = child(REFUSED, tmp_path / "a", kind)
    assert said.startswith("False unit 0:64,0:200,0:200")
    assert "could not be made durable" in said
    assert not list(tmp_path.rglob("*.__lock"))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
@pytest.mark.parametrize(
    ("compression", "room", "expected"),
    [
        (None, 150_000_000, "direct"),
        ("zlib", 210_000_000, "slab"),
        ("zlib", 150_000_000, "scratch"),
    ],
)
def test_an_ingest_stays_under_its_cap(tmp_path, compression, room, expected):
    plane = np.random.default_rng(0).integers(0, 16, (1400, 1400), np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        (np.roll(plane, 37 * z) for z in range(130)),
        shape=(130, *plane.shape),
        dtype=plane.dtype,
        compression=compression,
        compressionargs={"level": 1} if compression else None,
        rowsperstrip=len(plane),
    )
    said = child(PEAK, path, tmp_path / "a.zarr", room)
    how, cap, peak = said.split()
    assert how == expected
    assert int(peak) <= int(cap)
