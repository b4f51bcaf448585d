"""The memory cap: what it makes of a volume, and that it holds."""

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from neurodeploy_runtime import (
    ArraySource,
    Axis,
    Box,
    Bundle,
    MemoryCapError,
    Normalisation,
    NumpyEngine,
    Segmenter,
    SegmentSettings,
    TilePlan,
    _region_run,
    _run,
    _run_memory,
    open_volume,
)
from neurodeploy_runtime._blend import BlendRing
from neurodeploy_runtime._memory import Footprint, MemoryPlan, choose_regions
from neurodeploy_runtime._outlet import pool_seam
from neurodeploy_runtime._reader import ring_of
from neurodeploy_runtime._rss import current_rss
from neurodeploy_runtime._run_memory import RunMemory
from neurodeploy_runtime._stream import RegionStream
from neurodeploy_runtime._survey import survey
from neurodeploy_runtime.arrays import PlaneKind
from neurodeploy_runtime.volumes import Source

MakeBundle = Callable[..., Bundle]
WANTED = SegmentSettings(
    output_kind="probability", normalisation=Normalisation("unit", 0, 255)
)
PLAN = TilePlan((500, 2000, 3000), (Axis(32, 0, 8), Axis(64, 0, 16), Axis(64, 0, 16)))


def footprint(base: int = 100_000_000) -> Footprint:
    return Footprint(base, 2, (64, 128, 3000), PLAN.shape, 1, 4, 1)


def test_tiles_on_a_gpu_are_no_memory_of_the_host() -> None:
    here, there = footprint(), replace(footprint(), gpu_bytes=10**9)
    roi = Box((3, 5, 7), (403, 1805, 2907))
    host = here.region_bytes(PLAN, roi)
    tiles = here.tile_bytes(PLAN, roi)
    assert there.region_bytes(PLAN, roi) == host - tiles
    # What only a GPU takes beside them: two slots of a batch, and a plane of levels.
    assert tiles < there.tile_bytes(PLAN, roi) < 1.6 * tiles


@given(st.integers(200_000_000, 4_000_000_000))
def test_regions_cover_the_roi_once_and_stay_under_the_cap(cap: int) -> None:
    roi = Box((3, 5, 7), (403, 1805, 2907))
    try:
        plan = choose_regions(PLAN, roi, footprint(), cap)
    except MemoryCapError:
        assert cap < 400_000_000
        return
    assert plan.peak_bytes <= cap
    assert sum(region.voxels for region in plan.regions) == roi.voxels
    for i, a in enumerate(plan.regions):
        assert roi.contains(a)
        assert all(a.intersect(b).voxels == 0 for b in plan.regions[i + 1 :])


def test_too_small_a_cap_names_the_smallest_that_would_do() -> None:
    roi = Box.whole(PLAN.shape)
    with pytest.raises(MemoryCapError, match=r"smallest that would do is \d") as error:
        choose_regions(PLAN, roi, footprint(), 120_000_000)
    smallest = float(str(error.value).split("is ")[-1].split(" GB")[0]) * 1e9
    assert choose_regions(PLAN, roi, footprint(), int(smallest)).regions


def test_a_lower_cap_costs_redundancy_and_says_so() -> None:
    roi = Box.whole(PLAN.shape)
    wide = choose_regions(PLAN, roi, footprint(), 4_000_000_000)
    narrow = choose_regions(PLAN, roi, footprint(), 500_000_000)
    assert len(wide.regions) == 1 < len(narrow.regions)
    assert narrow.redundancy > wide.redundancy


@pytest.mark.parametrize("stored", ["raw", "zlib", "chunks"])
def test_cut_planes_give_the_bytes_of_whole_ones(
    make_identity_bundle: MakeBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stored: str,
) -> None:
    """With regions forced small, also through a scratch file in several chapters."""
    bundle = make_identity_bundle()
    volume = np.random.default_rng(0).integers(0, 256, (130, 150, 90), np.uint8)
    if stored == "chunks":  # not compressed, and yet loaded as a whole
        h5py = pytest.importorskip("h5py", reason="the extra `cluster` is missing")
        path = tmp_path / "in.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("data", data=volume, chunks=(1, 150, 90))
    else:
        path = tmp_path / "in.tif"
        compression = None if stored == "raw" else stored
        tifffile.imwrite(path, volume, compression=compression, rowsperstrip=150)
    real = _run_memory.choose_regions

    def small(plan: TilePlan, roi: Box, costs: Footprint, cap: int) -> MemoryPlan:
        whole = real(plan, roi, costs, cap)
        depth = roi.shape[0]
        return replace(whole, regions=tuple(roi.grid((depth, 64, 90))))

    monkeypatch.setattr(_run, "default_grain", lambda *_: (64, 64, 90))
    monkeypatch.setattr(_run_memory, "choose_regions", small)
    used = []
    real_scratch = _region_run.ScratchSource

    def watched(*args: object, **more: object) -> object:
        used.append(args[2])
        return real_scratch(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(_region_run, "ScratchSource", watched)
    segmenter = Segmenter(bundle, WANTED, engines=[NumpyEngine(bundle)])
    monkeypatch.setattr(
        _region_run.RegionRun,
        "_chapters",
        lambda self, memory, grain: list(self._roi.grid((64, 150, 90))),
    )
    with open_volume(path) as source:
        segmenter.segment(source, tmp_path / "out.tif")
    assert (tifffile.imread(tmp_path / "out.tif") == volume).all()
    # Planes are decoded into three scratch files, with the tiles' own overlap only.
    assert len(used) == (0 if stored == "raw" else 3)


PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
from neurodeploy_runtime import *
folder, depth, cap = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
bundle = load_bundle(sys.argv[4])
class Ramp(ArraySource):
    def __init__(self, shape):
        super().__init__(np.zeros((1, 1, 1), np.uint8))
        self.shape = shape
    def fingerprint(self):
        return str(self.shape)
    def read(self, box, out=None):
        out = self._output(box, out)
        out[...] = (np.arange(box.start[0], box.stop[0]) % 251)[:, None, None]
        return out
settings = SegmentSettings(
    output_kind="probability", memory_bytes=cap,
    normalisation=Normalisation("unit", 0, 255))
segmenter = Segmenter(bundle, settings, engines=[NumpyEngine(bundle)])
report = segmenter.segment(Ramp((depth, 512, 640)), folder / "out.tif", overwrite=True)
print(json.dumps([report.peak_rss_bytes, report.memory_plan_bytes]))
"""


def peak(folder: Path, depth: int, cap: int, bundle: Bundle) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(depth), str(cap), bundle.path],
        capture_output=True,
        check=True,
        text=True,
    )
    rss, planned = json.loads(done.stdout)
    return rss, planned


@pytest.mark.skipif(sys.platform != "linux", reason="measures RSS as Linux does")
def test_peak_memory_stays_under_the_cap_and_does_not_grow_with_depth(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_identity_bundle(tile=(32, 64, 64))
    # An interpreter that may not keep bytecode holds 40 MB more, once and for all.
    cap = 300_000_000
    shallow, _ = peak(tmp_path, 128, cap, bundle)
    deep, planned = peak(tmp_path, 512, cap, bundle)
    assert deep <= planned <= cap
    assert deep < shallow * 1.05


@pytest.fixture
def large_planes(tmp_path: Path) -> Path:
    """Planes of 8 MB that are compressed as a whole."""
    path = tmp_path / "planes.tif"
    volume = np.broadcast_to(np.zeros((2000, 4000), np.uint8), (9, 2000, 4000))
    tifffile.imwrite(
        path, volume, compression="packbits", rowsperstrip=2000, metadata=None
    )
    return path


def _planned(source: Source, bundle: Bundle, cap: int) -> RunMemory:
    plan = TilePlan.of(bundle.spec, source.shape, WANTED.overlap)
    memory = RunMemory(
        plan,
        Box((0, 0, 0), (9, 100, 100)),
        source,
        [NumpyEngine(bundle)],
        WANTED,
        grain=(9, 50, 50),
        outputs=1,
        cap_bytes=cap,
    )
    memory.choose()
    return memory


@pytest.mark.parametrize("seam_map", [False, True])
def test_the_smallest_cap_of_planes_that_are_cut_counts_the_scratch_file(
    make_identity_bundle: MakeBundle,
    large_planes: Path,
    monkeypatch: pytest.MonkeyPatch,
    seam_map: bool,
) -> None:
    monkeypatch.setattr("neurodeploy_runtime._run_memory.current_rss", lambda: 10**8)
    bundle = make_identity_bundle(tile=(8, 16, 16))

    def choose(cap: int) -> MemoryPlan:
        with open_volume(large_planes, threads=2, cache_bytes=0) as source:
            return RunMemory(
                TilePlan.of(bundle.spec, source.shape, WANTED.overlap),
                Box.whole(source.shape),
                source,
                [NumpyEngine(bundle)],
                replace(WANTED, seam_map=seam_map),
                grain=(9, 50, 4000),
                outputs=1,
                cap_bytes=cap,
            ).choose()

    with pytest.raises(MemoryCapError, match="smallest that would do is") as refused:
        choose(1_000_000)
    smallest = float(str(refused.value).split("is ")[-1].split(" GB")[0])
    assert choose(round(smallest * 1e9)).scratch
    with pytest.raises(MemoryCapError):
        choose(round((smallest - 0.02) * 1e9))


def test_what_threads_decode_into_is_charged_for_those_that_do(
    make_identity_bundle: MakeBundle,
    large_planes: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = make_identity_bundle()
    with open_volume(large_planes, threads=8, cache_bytes=0) as source:
        everyone = source.memory_bytes
        assert everyone == 8 * 3 * 8_000_000
        # As of large planes: one is read at a time.
        with monkeypatch.context() as patch:
            patch.setattr("neurodeploy_runtime._reader.READ_BYTES", 12_000)
            assert _planned(source, bundle, 2**40).notes == []
        assert source.memory_bytes == everyone / 8
        # A small region of many planes is read by all threads; not where these would
        # take more than there is.
        assert _planned(source, bundle, 2**40).notes == []
        assert source.memory_bytes == everyone
        cap = current_rss() + 48_000_000 + everyone * 3 // 4
        (note,) = _planned(source, bundle, cap).notes
        assert "chunks are decoded at a time, not 8" in note
        assert source.memory_bytes <= everyone / 2


def test_a_volume_that_cannot_fit_the_cap_writes_nothing(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_identity_bundle()
    segmenter = Segmenter(
        bundle, replace(WANTED, memory_bytes=1_000_000), engines=[NumpyEngine(bundle)]
    )
    with pytest.raises(MemoryCapError, match="smallest that would do"):
        segmenter.segment(
            ArraySource(np.zeros((9, 20, 20), np.uint8)), tmp_path / "out.tif"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("compression", [None, 1])
def test_a_run_decodes_each_chunk_once(
    make_identity_bundle: MakeBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compression: int | None,
) -> None:
    """Of chunks deeper than the planes that are read at a time."""
    h5py = pytest.importorskip("h5py", reason="the extra `cluster` is not installed")
    # Chunks of HDF5 are counted by their table; planes come in fours.
    monkeypatch.setattr("neurodeploy_runtime._reader.READ_BYTES", 4 * 90 * 70)
    volume = np.random.default_rng(0).integers(0, 255, (70, 90, 70), np.uint8)
    path = tmp_path / "in.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "data", data=volume, chunks=(32, 32, 32), compression=compression
        )
    bundle = make_identity_bundle()
    segmenter = Segmenter(bundle, WANTED, engines=[NumpyEngine(bundle)])
    with open_volume(path, dataset="data", threads=1, cache_bytes=0) as source:
        segmenter.segment(source, tmp_path / "out.tif")
        assert source.decoded == 3 * 3 * 3  # type: ignore[attr-defined]
    assert (tifffile.imread(tmp_path / "out.tif") == volume).all()


def traced(work: Callable[[], object]) -> int:
    """The most bytes that were held beside what was held before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["mask", "probability", "both"])
@pytest.mark.parametrize("seam", [False, True])
def test_what_a_plane_is_finished_in_is_counted(
    make_identity_bundle: MakeBundle, kind: str, seam: bool
) -> None:
    """A GB of a plane of 16 384 squared was not: its probabilities, their spread."""
    bundle = make_identity_bundle()
    area = 900 * 1000
    source = ArraySource(np.broadcast_to(np.uint8(0), (8, 900, 1000)))
    plan = TilePlan.of(bundle.spec, source.shape)
    wanted = replace(WANTED, output_kind=kind, seam_map=seam)  # type: ignore[arg-type]
    ring = BlendRing(plan, Box.whole(source.shape), squares=seam)
    out = np.empty((900, 1000), np.uint8)
    kinds: list[PlaneKind] = ["mask", "probability"]

    def finish() -> None:
        for one in kinds if kind == "both" else [kind]:
            ring.quantise(0, one, 0.5, out)  # type: ignore[arg-type]
        if seam:
            pool_seam(ring.disagreement_of(0))

    memory = RunMemory(
        plan,
        Box.whole(source.shape),
        source,
        [NumpyEngine(bundle)],
        wanted,
        grain=(8, 900, 1000),
        outputs=1,
        cap_bytes=2**40,
    )
    counted = memory._footprint().finishing * area
    assert traced(finish) <= counted + 100_000
    assert counted <= traced(finish) + 500_000


def test_what_flips_are_made_in_is_counted(make_identity_bundle: MakeBundle) -> None:
    bundle = make_identity_bundle(tile=(16, 64, 64))
    engine = NumpyEngine(bundle, batch=8)
    plan = TilePlan.of(bundle.spec, (16, 64, 64))
    region = Box.whole(plan.shape)
    costs = Footprint(0, 1, (64, 64, 64), plan.shape, 1, slots=4, batch=8)
    counted = replace(costs, flips=True).tile_bytes(plan, region)
    counted -= costs.tile_bytes(plan, region)
    stream = RegionStream(
        plan,
        region,
        ring_of(plan, region, np.dtype(np.uint8)),
        [engine],
        Normalisation("unit", 0, 255),
        lambda z, blend: None,
        dtype=np.dtype(np.uint8),
        depth=16,
        flips=True,
    )
    slot = stream._take_free()

    def flip() -> None:
        answer = np.zeros(engine.output_shape, np.float32)
        stream._infer_flips(engine.infer, slot, answer)

    assert 0.9 * counted <= traced(flip) <= counted + 100_000


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_to_look_at_a_volume_takes_little_memory(dtype: str) -> None:
    """What a cap leaves beside libraries; sorting out equal floats took 300 MB."""
    volume = np.random.default_rng(0).normal(1000, 100, (60, 500, 500)).astype(dtype)
    source = ArraySource(volume)

    def look() -> None:
        histogram = survey(source)
        histogram.freeze("background-asinh")
        histogram.quantiles([0.999])

    assert traced(look) <= 64_000_000
