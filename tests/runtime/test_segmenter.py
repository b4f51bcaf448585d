"""An identity network gives its input back, exactly, whatever is asked for."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neurodeploy_runtime import (
    ArraySource,
    Box,
    Bundle,
    CancelledError,
    EngineError,
    EngineSettings,
    InputError,
    Normalisation,
    NumpyEngine,
    OutputError,
    RunError,
    Segmenter,
    SegmentSettings,
    SettingsError,
    SkipSettings,
    open_volume,
)
from neurodeploy_runtime._reader import PlaneReader
from neurodeploy_runtime._rss import current_rss
from neurodeploy_runtime._run import SegmentRun

MakeBundle = Callable[..., Bundle]
UNIT8 = Normalisation("unit", 0, 255)
PROBABILITY = SegmentSettings(output_kind="probability", normalisation=UNIT8)

small = st.integers(1, 41)
volumes = hnp.arrays(np.uint8, st.tuples(st.integers(1, 30), small, small))
quick = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def identity(
    bundle: Bundle, wanted: SegmentSettings = PROBABILITY, batch: int = 1
) -> Segmenter:
    return Segmenter(bundle, wanted, engines=[NumpyEngine(bundle, batch=batch)])


@quick
@given(volumes, st.integers(1, 4))
def test_identity_returns_the_volume_exactly(
    make_identity_bundle: MakeBundle, volume: np.ndarray[Any, Any], batch: int
) -> None:
    with identity(make_identity_bundle(), batch=batch) as segmenter:
        assert (segmenter.segment_array(volume) == volume).all()


@quick
@given(volumes, st.data())
def test_a_region_holds_what_the_whole_run_holds(
    make_identity_bundle: MakeBundle, volume: np.ndarray[Any, Any], data: st.DataObject
) -> None:
    bundle = make_identity_bundle(tile=(9, 12, 10), overlap=(0.3, 0.5, 0.2))
    starts = [data.draw(st.integers(0, n - 1)) for n in volume.shape]
    stops = [
        data.draw(st.integers(a + 1, n))
        for a, n in zip(starts, volume.shape, strict=True)
    ]
    box = Box(tuple(starts), tuple(stops))  # type: ignore[arg-type]

    def smooth(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        # A network that looks around: a voxel's answer depends on the whole tile.
        return np.asarray(batch * 0.5 + batch.mean(axis=(2, 3, 4), keepdims=True) * 0.5)

    engines = [NumpyEngine(bundle, smooth)]
    whole = Segmenter(bundle, PROBABILITY, engines=engines).segment_array(volume)
    part = Segmenter(
        bundle, replace(PROBABILITY, roi=box), engines=engines
    ).segment_array(volume)
    assert (part == whole[box.slices]).all()


@quick
@given(volumes)
def test_slice_models_answer_every_plane(
    make_identity_bundle: MakeBundle, volume: np.ndarray[Any, Any]
) -> None:
    bundle = make_identity_bundle(
        tile=(5, 16, 16), window=(1, 16, 16), overlap=(0.0, 0.25, 0.25)
    )
    with identity(bundle) as segmenter:
        assert (segmenter.segment_array(volume) == volume).all()


def test_several_engines_give_the_bits_of_one(make_identity_bundle: MakeBundle) -> None:
    bundle = make_identity_bundle()
    volume = np.random.default_rng(1).integers(0, 256, (40, 50, 60), np.uint8)

    def square(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.asarray(batch * batch)

    one = Segmenter(bundle, PROBABILITY, engines=[NumpyEngine(bundle, square)])
    three = Segmenter(
        bundle, PROBABILITY, engines=[NumpyEngine(bundle, square) for _ in range(3)]
    )
    assert (one.segment_array(volume) == three.segment_array(volume)).all()


def test_flips_of_a_symmetric_network_change_nothing(
    make_identity_bundle: MakeBundle,
) -> None:
    bundle = make_identity_bundle()
    volume = np.random.default_rng(2).integers(0, 256, (20, 33, 40), np.uint8)
    with identity(bundle, replace(PROBABILITY, flips=True)) as segmenter:
        assert (segmenter.segment_array(volume) == volume).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_every_dtype_is_normalised_by_one_rule(
    make_identity_bundle: MakeBundle, dtype: str
) -> None:
    bundle = make_identity_bundle()
    volume = np.random.default_rng(3).integers(0, 120, (9, 17, 18)).astype(dtype)
    norm = Normalisation("unit", 0, 127)  # 510 v is no odd multiple of 127: no ties
    with identity(bundle, replace(PROBABILITY, normalisation=norm)) as segmenter:
        got = segmenter.segment_array(volume)
    expected = np.rint(norm.apply(volume) * np.float32(255)).astype(np.uint8)
    assert (got == expected).all()


@given(st.sampled_from(["uint8", "uint16", "int16"]), st.floats(-50, 3000))
def test_the_lookup_table_has_the_bits_of_the_formula(
    dtype: str, background: float
) -> None:
    norm = Normalisation("background-asinh", background, 37.5)
    table = norm.table(np.dtype(dtype))
    assert table is not None
    every = np.arange(table.size, dtype=f"u{np.dtype(dtype).itemsize}").view(dtype)
    values = every[np.random.default_rng(0).permutation(table.size)][:999].copy()
    unsigned = values.view(f"u{values.itemsize}")
    assert (table[unsigned] == norm.apply(values)).all()


def test_nan_in_a_float_volume_is_one_sentence(
    make_identity_bundle: MakeBundle,
) -> None:
    volume = np.zeros((4, 20, 20), np.float32)
    volume[2, 3, 4] = np.nan
    with (
        identity(make_identity_bundle()) as segmenter,
        pytest.raises(InputError, match="1 voxels of one tile are NaN"),
    ):
        segmenter.segment_array(volume)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_no_number_never_passes_for_background(
    make_identity_bundle: MakeBundle, bad: float
) -> None:
    """As where half precision overflows in one bright tile."""
    bundle = make_identity_bundle(tile=(8, 16, 16), overlap=(0.0, 0.0, 0.0))

    def overflowing(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        answer = batch.copy()
        answer[batch > 200] = bad
        return answer

    volume = np.zeros((16, 40, 40), np.uint8)
    volume[9, 20, 37] = 255
    settings = SegmentSettings(normalisation=Normalisation("unit", 0.0, 1.0))
    engine = NumpyEngine(bundle, overflowing)
    with (
        Segmenter(bundle, settings, engines=[engine]) as segmenter,
        pytest.raises(
            EngineError, match=r"NaN or infinity in the tile at voxel \[8, 16, 32\]"
        ),
    ):
        segmenter.segment_array(volume)


def test_an_engines_error_reaches_the_caller_and_nothing_hangs(
    make_identity_bundle: MakeBundle,
) -> None:
    bundle = make_identity_bundle()
    calls = 0

    def broken(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise EngineError("the card fell off the bus")
        return batch

    segmenter = Segmenter(bundle, PROBABILITY, engines=[NumpyEngine(bundle, broken)])
    with pytest.raises(EngineError, match="fell off the bus"):
        segmenter.segment_array(np.zeros((40, 60, 60), np.uint8))
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"cut", "blend", "infer 0", "read", "segment"}


def test_leaving_a_stream_early_stops_its_threads(
    make_identity_bundle: MakeBundle,
) -> None:
    with identity(make_identity_bundle()) as segmenter:
        slabs = segmenter.stream(ArraySource(np.zeros((90, 50, 50), np.uint8)))
        box, first = next(slabs)
        assert box.start == (0, 0, 0)
        assert first.shape == box.shape
        slabs.close()  # type: ignore[attr-defined]
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"cut", "blend", "infer 0", "read", "segment"}


def test_cancelling_a_run_leaves_no_file_under_the_final_name(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_identity_bundle()
    cancel = threading.Event()

    def slow(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        cancel.set()
        return batch

    segmenter = Segmenter(bundle, PROBABILITY, engines=[NumpyEngine(bundle, slow)])
    volume = ArraySource(np.zeros((60, 400, 400), np.uint8))
    with pytest.raises(CancelledError):
        segmenter.segment(volume, tmp_path / "out.tif", cancel=cancel)
    assert not (tmp_path / "out.tif").exists()


def test_a_roi_outside_the_volume_is_refused(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    roi = Box((0, 0, 0), (5, 5, 50))
    with (
        identity(make_identity_bundle(), replace(PROBABILITY, roi=roi)) as segmenter,
        pytest.raises(SettingsError, match="0:4,0:20,0:20"),
    ):
        segmenter.segment(
            ArraySource(np.zeros((4, 20, 20), np.uint8)), tmp_path / "out.tif"
        )


@pytest.mark.parametrize("suffix", [".tif", ".ome.zarr", ".v3draw"])
@pytest.mark.parametrize("room", [None, 300_000_000])
def test_a_file_holds_the_volume_and_opens_again(
    make_identity_bundle: MakeBundle, tmp_path: Path, suffix: str, room: int | None
) -> None:
    volume = np.random.default_rng(4).integers(0, 256, (70, 65, 131), np.uint8)
    tifffile.imwrite(tmp_path / "in.tif", volume, compression="zlib")
    # A cap counts what this process of many tests holds already.
    memory = None if room is None else current_rss() + room
    wanted = replace(PROBABILITY, memory_bytes=memory)
    with (
        identity(make_identity_bundle(), wanted) as segmenter,
        open_volume(tmp_path / "in.tif") as source,
    ):
        report = segmenter.segment(source, tmp_path / f"out{suffix}")
    assert report is not None
    with open_volume(tmp_path / f"out{suffix}") as result:
        assert (result.read(Box.whole(result.shape)) == volume).all()
    left = {p.name for p in tmp_path.iterdir()}
    assert not any(name.endswith(".neurodeploy") for name in left)
    assert Path(report.picture).read_bytes().startswith(b"\x89PNG")


def test_both_kinds_come_from_one_pass(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    volume = np.random.default_rng(5).integers(0, 256, (20, 40, 50), np.uint8)
    wanted = replace(PROBABILITY, output_kind="both", threshold=0.25)
    with identity(make_identity_bundle(), wanted) as segmenter:
        segmenter.segment(ArraySource(volume), tmp_path / "out.tif")
    mask = tifffile.imread(tmp_path / "out.tif")
    probability = tifffile.imread(tmp_path / "out.probability.tif")
    assert (probability == volume).all()
    unit = volume.astype(np.float32) * np.float32(1 / 255)
    assert (mask == np.where(unit >= np.float32(0.25), 255, 0)).all()


def test_a_seam_map_shows_where_tiles_disagree_and_nothing_elsewhere(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_identity_bundle(tile=(16, 16, 16), overlap=(0.5, 0.5, 0.5))
    volume = np.zeros((60, 70, 80), np.uint8)
    volume[30:, 40:, 40:] = 255

    def whole_tile(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        # The same answer all over a tile: neighbours differ where the image does.
        return np.broadcast_to(batch.max(axis=(2, 3, 4), keepdims=True), batch.shape)

    wanted = replace(PROBABILITY, seam_map=True)
    segmenter = Segmenter(bundle, wanted, engines=[NumpyEngine(bundle, whole_tile)])
    segmenter.segment(ArraySource(volume), tmp_path / "out.tif")
    seam = tifffile.imread(tmp_path / "out.seam.tif")
    assert seam.shape == (8, 9, 10)
    assert seam[3, 4, 4] > 60
    assert seam[0].max() == 0
    with identity(bundle, wanted) as agreeing:
        agreeing.segment(ArraySource(volume), tmp_path / "same.tif")
    # One minus a square in float32 leaves a trace; it is below one grey level.
    assert tifffile.imread(tmp_path / "same.seam.tif").max() <= 1


def test_background_tiles_are_skipped_and_audited(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_identity_bundle()
    volume = np.random.default_rng(0).normal(100, 5, (40, 200, 200)).astype(np.uint16)
    volume[10:14, 20:180, 50:53] = 3000
    ran = 0

    def bright(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        nonlocal ran
        ran += len(batch)
        return np.asarray(batch > 20, np.float32)

    wanted = SegmentSettings(
        normalisation=Normalisation("unit", 100, 5),
        skip=SkipSettings(limit_sigma=6, audit_share=0.2, limit_lost=0.05),
        engine=EngineSettings(),
    )
    segmenter = Segmenter(bundle, wanted, engines=[NumpyEngine(bundle, bright)])
    report = segmenter.segment(ArraySource(volume), tmp_path / "out.tif")
    assert report is not None
    assert report.skip is not None
    tiles, skipped = report.skip["tiles"], report.skip["skipped"]
    assert 0 < skipped < tiles
    assert ran == tiles - skipped + report.skip["audited"]
    assert report.skip["lost_share"] == 0
    assert (tifffile.imread(tmp_path / "out.tif") > 0).sum() == 4 * 160 * 3
    assert tifffile.imread(tmp_path / "out.skip.tif").sum() == 255 * skipped
    # Of a part of the volume, the tiles of that part.
    part = replace(wanted, roi=Box((0, 0, 0), (20, 100, 100)))
    segmenter = Segmenter(bundle, part, engines=[NumpyEngine(bundle, bright)])
    ran = 0
    report = segmenter.segment(ArraySource(volume), tmp_path / "part.tif")
    assert report is not None
    assert report.skip is not None
    assert report.skip["tiles"] < tiles
    assert ran == (
        report.skip["tiles"] - report.skip["skipped"] + report.skip["audited"]
    )


def test_skipping_that_loses_too_much_is_an_error(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_identity_bundle()
    volume = np.random.default_rng(0).normal(100, 5, (40, 200, 200)).astype(np.uint16)
    volume[10:14, 20:180, 50:53] = 130  # dim: below the limit that is set here

    def bright(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.asarray(batch > 5, np.float32)

    wanted = SegmentSettings(
        normalisation=Normalisation("unit", 100, 5),
        skip=SkipSettings(limit_sigma=100, audit_share=0.5),
    )
    segmenter = Segmenter(bundle, wanted, engines=[NumpyEngine(bundle, bright)])
    with pytest.raises(RunError, match="may have lost up to"):
        segmenter.segment(ArraySource(volume), tmp_path / "out.tif")
    assert not (tmp_path / "out.tif").exists()


@pytest.mark.parametrize("kind", ["mask", "probability", "both"])
def test_foreground_is_what_reaches_the_threshold_whatever_is_written(
    make_identity_bundle: MakeBundle, tmp_path: Path, kind: Any
) -> None:
    """A haze of 0.1 everywhere is in a probability, and is no foreground."""
    bundle = make_identity_bundle()
    volume = np.full((20, 60, 60), 25, np.uint8)
    volume[4:8, 10:20, 10:20] = 200
    wanted = SegmentSettings(
        output_kind=kind, threshold=0.5, normalisation=Normalisation("unit", 0, 255)
    )
    segmenter = Segmenter(bundle, wanted, engines=[NumpyEngine(bundle)])
    report = segmenter.segment(ArraySource(volume), tmp_path / "out.tif")
    assert report is not None
    assert report.foreground_voxels == 400


def test_a_closed_segmenter_says_so_and_leaves_nothing(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_identity_bundle()
    segmenter = Segmenter(bundle, engines=[NumpyEngine(bundle)])
    segmenter.close()
    volume = np.zeros((8, 16, 16), np.uint8)
    for asked in (
        lambda: segmenter.segment(ArraySource(volume), tmp_path / "out.tif"),
        lambda: segmenter.segment_array(volume),
        lambda: segmenter.stream(ArraySource(volume)),
    ):
        with pytest.raises(SettingsError, match="is closed: open another"):
            asked()
    assert not list(tmp_path.glob("out*"))


def test_a_volume_without_foreground_is_reported_with_a_warning(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_identity_bundle()
    volume = np.random.default_rng(0).normal(100, 5, (16, 100, 100)).astype(np.uint16)
    wanted = SegmentSettings(
        normalisation=Normalisation("unit", 100, 5),
        skip=SkipSettings(limit_sigma=8, audit_share=0.2),
    )

    def nothing(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.zeros_like(batch)

    segmenter = Segmenter(bundle, wanted, engines=[NumpyEngine(bundle, nothing)])
    report = segmenter.segment(ArraySource(volume), tmp_path / "out.tif")
    assert report is not None
    assert report.skip is not None
    assert report.skip["audited"] > 0
    assert report.skip["lost_share"] is report.skip["lost_share_upper"] is None
    assert "no foreground was found" in " ".join(report.warnings)
    assert not tifffile.imread(tmp_path / "out.tif").any()


def test_a_tile_of_nan_is_no_background(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    volume = np.full((16, 100, 100), 100, np.float32)
    volume[4:12, 40:80, 40:80] = np.nan
    wanted = SegmentSettings(
        normalisation=Normalisation("unit", 100, 5),
        skip=SkipSettings(audit_share=0),
    )
    with (
        identity(make_identity_bundle(), wanted) as segmenter,
        pytest.raises(InputError, match="NaN"),
    ):
        segmenter.segment(ArraySource(volume), tmp_path / "out.tif")


def test_nothing_is_run_or_found_outside_the_tissue(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_identity_bundle()
    volume = np.full((32, 120, 160), 200, np.uint8)
    mask = np.zeros((8, 30, 40), np.uint8)
    mask[2:5, 10:20, 8:30] = 1
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    wanted = replace(PROBABILITY, tissue=tmp_path / "mask.tif")
    with identity(bundle, wanted) as segmenter:
        report = segmenter.segment(ArraySource(volume), tmp_path / "out.tif")
    assert report is not None
    got = tifffile.imread(tmp_path / "out.tif")
    inside = mask.repeat(4, 0).repeat(4, 1).repeat(4, 2).astype(bool)
    assert (got[inside] == 200).all()
    assert (got[~inside] == 0).all()
    assert report.tiles_run < 0.6 * report.voxels * report.redundancy / (8 * 16 * 16)


def test_a_mask_of_another_shape_is_refused(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "mask.tif", np.ones((8, 30, 9), np.uint8))
    wanted = replace(PROBABILITY, tissue=tmp_path / "mask.tif")
    with (
        identity(make_identity_bundle(), wanted) as segmenter,
        pytest.raises(InputError, match="scaled down"),
    ):
        segmenter.segment(
            ArraySource(np.zeros((32, 120, 160), np.uint8)), tmp_path / "out.tif"
        )


def test_an_audit_that_failed_once_fails_again_when_the_run_continues(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_identity_bundle()
    volume = np.random.default_rng(0).normal(100, 5, (40, 200, 200)).astype(np.uint16)
    volume[10:14, 20:180, 50:53] = 130

    def bright(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.asarray(batch > 5, np.float32)

    wanted = SegmentSettings(
        normalisation=Normalisation("unit", 100, 5),
        skip=SkipSettings(limit_sigma=100, audit_share=0.5),
    )
    segmenter = Segmenter(bundle, wanted, engines=[NumpyEngine(bundle, bright)])
    for _ in range(2):
        with pytest.raises(RunError, match="may have lost up to"):
            segmenter.segment(ArraySource(volume), tmp_path / "out.tif")


def test_ctrl_c_before_a_stream_has_its_threads_is_a_ctrl_c(
    make_identity_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: PlaneReader) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PlaneReader, "start", interrupted)
    with identity(make_identity_bundle()) as segmenter:
        slabs = segmenter.stream(ArraySource(np.zeros((9, 50, 50), np.uint8)))
        with pytest.raises(KeyboardInterrupt):
            next(slabs)


def test_cancelling_stops_a_scratch_file_that_is_being_decoded(
    make_identity_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel = threading.Event()
    groups = []

    class Slow(ArraySource):
        def read(self, box: Box, out: Any = None) -> Any:
            if cancel.is_set() or box.shape[0] == 4:
                groups.append(box)
                cancel.set()
            return super().read(box, out)

    look = SegmentRun.plan_memory
    monkeypatch.setattr(
        SegmentRun, "plan_memory", lambda run: replace(look(run), scratch=True)
    )
    monkeypatch.setattr("neurodeploy_runtime.volumes._scratch._GROUP_BYTES", 4 * 2000)
    with (
        identity(make_identity_bundle()) as segmenter,
        pytest.raises(CancelledError, match="stopped by the caller"),
    ):
        segmenter.segment(
            Slow(np.zeros((40, 40, 50), np.uint8)), tmp_path / "out.tif", cancel=cancel
        )
    assert len(groups) == 1
    assert not list((tmp_path / "out.tif.neurodeploy").glob("*.scratch"))


@pytest.mark.parametrize("name", ["out.json", "out.png", "out.seam.tif"])
def test_a_file_of_somebodys_beside_the_output_is_not_written_over(
    make_identity_bundle: MakeBundle, tmp_path: Path, name: str
) -> None:
    volume = np.full((9, 40, 40), 7, np.uint8)
    theirs = tmp_path / name
    theirs.write_text("theirs")
    wanted = replace(PROBABILITY, seam_map=True)
    with identity(make_identity_bundle(), wanted) as segmenter:
        with pytest.raises(OutputError, match=f"{name} exists, which"):
            segmenter.segment(ArraySource(volume), tmp_path / "out.tif")
        assert theirs.read_text() == "theirs"
        assert [path.name for path in tmp_path.iterdir()] == [name]
        segmenter.segment(ArraySource(volume), tmp_path / "out.tif", overwrite=True)
    assert theirs.read_bytes() != b"theirs"
    assert (tifffile.imread(tmp_path / "out.tif") == volume).all()
