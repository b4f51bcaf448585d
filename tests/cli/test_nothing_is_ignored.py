"""What is asked for takes effect or is refused; nobody's file is taken for ours."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from neurodeploy_runtime import (
    Bundle,
    LiveSettings,
    NeurodeployError,
    OutputError,
    SettingsError,
    SkipSettings,
)
from neurodeploy_runtime._bundle import BundleWriter
from neurodeploy_runtime.live import FollowSettings
from neurodeploy_runtime.serving import RigServer, ServerSettings

Run = Callable[..., Any]
MakeBundle = Callable[..., Bundle]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "in.tif"
    voxels = np.random.default_rng(0).integers(90, 110, (12, 40, 40), np.uint16)
    tifffile.imwrite(path, voxels)
    return path


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (("--follow-timeout", "5"), "--follow"),
        (("--follow-planes", "9"), "--follow"),
        (("--skip-sigma", "2"), "--skip-background"),
    ],
)
def test_an_option_that_needs_another_one_is_refused_without_it(
    run: Run, image: Path, words: tuple[str, ...], needed: str
) -> None:
    ended = run("segment", image, *words)
    assert ended.code == 2
    assert f"does nothing without {needed}" in ended.err
    assert [path.name for path in image.parent.iterdir()] == ["in.tif"]


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (("--workspace", "4GB"), "--engine"),
        (("--gpu", "1"), "--engine"),
        (("--version-compatible",), "--engine"),
        (("--hardware-compatibility", "ampere_plus"), "--engine"),
        (("--keep-fp32", "decoder"), "--precision fp16"),
    ],
)
def test_an_export_refuses_what_it_would_not_use(
    run: Run, tmp_path: Path, words: tuple[str, ...], needed: str
) -> None:
    ended = run("export", tmp_path, "-o", tmp_path / "b", *words)
    assert ended.code == 2
    assert f"does nothing without {needed}" in ended.err


def test_a_tracing_is_not_measured_with_options_of_a_network(
    run: Run, tmp_path: Path
) -> None:
    swc = tmp_path / "a.swc"
    swc.write_text("1 2 0 0 0 1 -1\n2 2 9 0 0 1 1\n")
    assert run("evaluate", swc, "--data", swc).code == 0
    for words in (("--labels", "mask"), ("-o", tmp_path / "out"), ("--threads", "2")):
        ended = run("evaluate", swc, "--data", swc, *words)
        assert ended.code == 2
        assert "does nothing without a network" in ended.err
    ended = run("evaluate", swc, "--data", swc, "--voxel-size", "2,1,1")
    assert ended.code == 2
    assert "does nothing without --unit um" in ended.err


@pytest.mark.parametrize("device", ["gpu", "cud:0", "cuda:0,cuda:1"])
def test_verify_refuses_a_device_that_is_none(run: Run, device: str) -> None:
    ended = run("verify", "--device", device)
    assert ended.code == 2
    assert "use auto, cpu or cuda:N" in ended.err
    assert "same" not in ended.out


@pytest.mark.parametrize("size", ["0,1,1", "1,-2,1", "nan,1,1", "inf,1,1"])
def test_a_voxel_has_a_size(run: Run, image: Path, size: str) -> None:
    ended = run("segment", image, "--voxel-size", size)
    assert ended.code == 2
    assert "must be positive" in ended.err


def test_plan_refuses_where_segment_would(run: Run, image: Path) -> None:
    ended = run("plan", image, "-o", image.parent / "no" / "out.tif")
    assert ended.code == 2
    assert "does not exist: make it first" in ended.err


def test_skipping_knows_what_it_cannot_judge(
    run: Run, image: Path, make_identity_bundle: MakeBundle
) -> None:
    bundle = make_identity_bundle()
    ended = run("segment", image, "-m", bundle.path, "--skip-background")
    assert ended.code == 2
    assert "knows no noise" in ended.err


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit_sigma": float("nan")},
        {"limit_sigma": -1.0},
        {"audit_share": 1.5},
        {"limit_lost": -0.1},
        {"hot_voxels": -1},
    ],
)
def test_skip_settings_mean_something(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        SkipSettings(**wrong)


@pytest.mark.parametrize("limit", [3, 2**33])
def test_a_server_that_can_serve_nobody_is_refused(limit: int) -> None:
    with pytest.raises(SettingsError, match="are not possible"):
        ServerSettings(limit_bytes=limit)


@pytest.mark.parametrize("wrong", [{"overlap": 1.5}, {"ring_planes": 1}])
def test_a_server_learns_at_its_start_what_no_stream_could_have(
    wrong: dict[str, Any], make_identity_bundle: MakeBundle
) -> None:
    with pytest.raises(SettingsError, match=r"overlap|a ring of 1 planes"):
        RigServer(make_identity_bundle(), LiveSettings(**wrong))


def test_a_ring_that_serves_clients_who_know_their_noise_is_kept(
    make_identity_bundle: MakeBundle,
) -> None:
    """Learning takes 16 planes; a client may say its normalisation instead."""
    with RigServer(make_identity_bundle(), LiveSettings(ring_planes=15)) as server:
        assert server.port > 0


def test_a_push_that_nobody_makes_has_no_patience_to_set(
    make_identity_bundle: MakeBundle,
) -> None:
    patient = LiveSettings(timeout_s=5.0)
    with pytest.raises(SettingsError, match=r"FollowSettings\.timeout_s"):
        FollowSettings(live=patient)
    with pytest.raises(SettingsError, match="held up by not being read"):
        RigServer(make_identity_bundle(), patient)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"donor_architecture": "vit_tiny_patch16_224"}, "init is 'scratch'"),
        (
            {"donor_architecture": "vit_tiny_patch16_224", "init": "timm:vit"},
            "init is 'timm:vit'",
        ),
        ({"inflate": "average"}, "no 2D kernels"),
        ({"voxel_size_um": [1.0, 0.0, 1.0]}, "each more than 0"),
        ({"voxel_size_um": [1.0, float("nan"), 1.0]}, "each more than 0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"shares": {"a": -1.0}}, "shares.a is -1.0"),
        ({"loss": {"cross_entropy": 0, "dice": 0}}, "nothing would be learned"),
        ({"loss": {"dice": float("nan")}}, "loss.dice is nan"),
        ({"augmentation": {"blur_probability": 1.5}}, "use from 0 to 1"),
        ({"augmentation": {"gain_range": [0.0, 1.0]}}, "use more than 0"),
        ({"augmentation": {"shot_range": [0.5, 0.1]}}, "the lower end first"),
        ({"augmentation": {"noise_jitter": float("nan")}}, "use more than 0"),
    ],
)
def test_a_training_drops_no_setting(wrong: dict[str, Any], said: str) -> None:
    settings = pytest.importorskip("neurodeploy.training").TrainSettings
    with pytest.raises(NeurodeployError, match=said):
        settings.from_plain(wrong)


def test_a_bundle_that_came_to_exist_meanwhile_stays(
    tmp_path: Path, make_identity_bundle: MakeBundle
) -> None:
    spec = make_identity_bundle().spec
    with BundleWriter(tmp_path / "b") as writer:
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "thesis.txt").write_text("precious")
        with pytest.raises(OutputError, match="has come to exist meanwhile"):
            writer.seal(spec)
    assert (tmp_path / "b" / "thesis.txt").read_text() == "precious"


def test_what_somebody_laid_into_a_bundle_is_not_lost_with_it(
    tmp_path: Path, make_identity_bundle: MakeBundle
) -> None:
    """A bundle is replaced with what a machine keeps in it, and with nothing else."""
    path = tmp_path / "b"
    shutil.copytree(make_identity_bundle().path, path)
    (path / "engines").mkdir()
    for name in ("local.json", ".DS_Store"):
        (path / name).touch()
    BundleWriter(path, overwrite=True)
    (path / "counts.csv").write_text("hours of work")
    with pytest.raises(OutputError, match=r"counts\.csv is no part of the bundle"):
        BundleWriter(path, overwrite=True)
    # A damaged one is replaced all the same: that is its cure.
    (path / "counts.csv").unlink()
    (path / "model.json").write_text("{")
    BundleWriter(path, overwrite=True)


@pytest.mark.parametrize(
    "provenance", [[], {"content": {"in.tif": {"grain": [0, 1, 1], "digest": "x"}}}]
)
def test_a_report_that_somebody_wrote_is_read_with_care(
    run: Run, image: Path, provenance: object
) -> None:
    image.with_suffix(".json").write_text(json.dumps({"provenance": provenance}))
    ended = run("info", image)
    assert ended.code == 2
    assert "report" in ended.err
    assert "not foreseen" not in ended.err


def test_a_growing_folder_has_no_other_axes(
    run: Run, tmp_path: Path, make_identity_bundle: MakeBundle
) -> None:
    folder = tmp_path / "planes"
    folder.mkdir()
    for z in range(3):
        tifffile.imwrite(folder / f"{z}.tif", np.zeros((20, 20), np.uint8))
    bundle = make_identity_bundle().path
    words = ("segment", folder, "-m", bundle, "--follow", "--axes", "yzx")
    ended = run(*words, "-o", tmp_path / "out.tif", "--follow-timeout", "2")
    assert ended.code == 2
    assert "not with axes 'yzx'" in ended.err
    assert not (tmp_path / "out.tif").exists()


@pytest.mark.parametrize("number", ["nan", "inf", "-1", "many"])
@pytest.mark.parametrize(
    "words",
    [
        ("benchmark", "--seconds"),
        ("rig-check", "--plane", "64x64", "--rate"),
        ("rig-check", "--plane", "64x64", "--rate", "5", "--seconds"),
        ("segment", "in.tif", "--follow", "--follow-timeout"),
    ],
)
def test_a_number_is_one(run: Run, words: tuple[str, ...], number: str) -> None:
    ended = run(*words, number)
    assert ended.code == 2
    assert number in ended.err
    assert "not foreseen" not in ended.err


def test_no_setting_is_not_a_number() -> None:
    for make in (LiveSettings, FollowSettings):
        with pytest.raises(SettingsError):
            make(timeout_s=float("nan"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--roi", "0:4,0:8,0:8"), "--roi does nothing without INPUT"),
        (("--channel", "0"), "--channel does nothing without INPUT"),
        (("in.tif", "--roi", "0:99,0:8,0:8"), "does not lie inside the volume"),
        (("in.tif", "--plot", "no/x.png"), "name a .png in a folder that exists"),
        (("in.tif", "--plot", "x.foo"), "name a .png in a folder that exists"),
        (("in.tif", "--channel", "3"), "has no channel 3"),
    ],
)
def test_a_benchmark_refuses_before_it_measures(
    run: Run,
    image: Path,
    words: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(image.parent)
    ended = run("benchmark", *words)
    assert ended.code == 2
    assert said in ended.err


def test_a_mask_of_tissue_with_channels_is_not_given_the_images(
    run: Run, image: Path
) -> None:
    mask = image.parent / "mask.tif"
    voxels = np.ones((3, 2, 10, 10), np.uint8)
    tifffile.imwrite(mask, voxels, imagej=True, metadata={"axes": "ZCYX"})
    ended = run("segment", image, "--tissue", mask)
    assert ended.code == 2
    assert "mask.tif has 2 channels: save what is meant as a stack" in ended.err
    assert "--channel" not in ended.err
