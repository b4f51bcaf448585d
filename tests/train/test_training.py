"""A run is what its settings say, whenever it is killed and whatever happens."""

import builtins
import dataclasses
import errno
import io
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from neurodeploy._errors import CheckpointError, ConfigError, TrainingError
from neurodeploy.data import Samples
from neurodeploy.data._volumes import part_of
from neurodeploy.networks import Network
from neurodeploy.training import (
    LossSettings,
    TrainSettings,
    load_checkpoint,
    pooled_score,
    read_checkpoint,
    read_log,
    segmentation_loss,
    train,
)
from neurodeploy.training import _loop as loop
from neurodeploy.training._optimiser import RunningAverage, build_optimiser
from neurodeploy_runtime._errors import OutputError, WriteError

KILLED = """
import json, os, signal, sys
import torch
sys.path.insert(0, sys.argv[1])
from conftest import bar_volume
from neurodeploy.training import TrainSettings, train
torch.set_num_threads(1)
def die(row):
    if row.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
settings = TrainSettings.from_plain(json.loads(sys.argv[2]))
train(settings, [bar_volume(0), bar_volume(1)], [bar_volume(2)], on_row=die)
"""


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def losses(out: str) -> list[tuple[int, float]]:
    return [(row.step, row.loss) for row in read_log(Path(out) / "log.csv")]


def test_a_run_killed_and_resumed_goes_through_the_same_losses(
    tiny_settings, volumes, tmp_path
):
    whole = train(tiny_settings, volumes[:2], volumes[2:])
    cut = dataclasses.replace(tiny_settings, out=str(tmp_path / "cut"))
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            KILLED,
            str(Path(__file__).parent),
            json.dumps(cut.to_json()),
        ],
        check=False,
    )
    assert process.returncode == -9
    assert read_checkpoint(Path(cut.out) / "last").step == 4
    resumed = train(cut, volumes[:2], volumes[2:], resume=True)
    assert losses(cut.out) == losses(tiny_settings.out)
    assert [step for step, _ in losses(cut.out)] == [1, 2, 3, 4, 5, 6]
    ours, _ = load_checkpoint(resumed.out / "last")
    theirs, _ = load_checkpoint(whole.out / "last")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_a_tuned_run_resumes_the_same_when_its_start_is_gone(
    tiny_settings, volumes, tmp_path
):
    first = dataclasses.replace(tiny_settings, out=str(tmp_path / "first"), steps=2)
    start = train(first, volumes).out / "last"
    tuned = dataclasses.replace(tiny_settings, init=str(start), learning_rate=0.01)
    whole = train(tuned, volumes[:2], volumes[2:])

    def die(row: object) -> None:
        if getattr(row, "step", 0) == 5:
            raise KeyboardInterrupt

    cut = dataclasses.replace(tuned, out=str(tmp_path / "cut"))
    with pytest.raises(KeyboardInterrupt):
        train(cut, volumes[:2], volumes[2:], on_row=die)
    start.rename(tmp_path / "moved")
    resumed = train(cut, volumes[:2], volumes[2:], resume=True)
    ours, _ = load_checkpoint(resumed.out / "last")
    theirs, _ = load_checkpoint(whole.out / "last")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_what_is_between_two_rows_and_two_validations_survives(
    tiny_settings, volumes, tmp_path
):
    rare = dataclasses.replace(tiny_settings, log_every=4, save_every=1)
    train(rare, volumes[:2], volumes[2:])
    cut = dataclasses.replace(rare, out=str(tmp_path / "cut"))
    last = Path(cut.out) / "last"
    figures = {}
    for at in (4, 6):

        def die(row: object, at: int = at) -> None:
            if getattr(row, "step", 0) == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(cut, volumes[:2], volumes[2:], resume=at > 4, on_row=die)
        checkpoint = read_checkpoint(last)
        assert checkpoint.step == at - 1
        # At step 5 that of the validation after step 3, whoever made it.
        figures[at] = (checkpoint.threshold, checkpoint.figures)
    assert figures[6] == figures[4]
    # Of the step that was validated last, and it says so.
    assert figures[6][1]["validation"]["step"] == 3
    assert figures[6][1]["validation"]
    train(cut, volumes[:2], volumes[2:], resume=True)
    assert losses(cut.out) == losses(rare.out)
    assert [step for step, _ in losses(cut.out)] == [3, 4, 6]


def test_a_network_learns_a_bright_bar(tiny_settings, volumes):
    settings = dataclasses.replace(
        tiny_settings, steps=60, batch=4, learning_rate=1e-2, log_every=20,
        validate_every=60, save_every=60, ema=0.9,
    )  # fmt: skip
    result = train(settings, volumes[:2], volumes[2:])
    assert result.score is not None
    assert result.score.average_precision > 0.9
    assert (result.out / "curves.png").stat().st_size > 1000
    network, checkpoint = load_checkpoint(result.checkpoint)
    assert not network.training
    assert checkpoint.threshold == result.score.threshold
    spec = checkpoint.spec()
    assert (spec.tile, spec.window) == ((8, 16, 16), (8, 16, 16))
    assert str(result.out) not in json.dumps(spec.to_json())


def test_a_gpu_that_is_full_or_absent_is_a_sentence(
    tiny_settings, volumes, monkeypatch
):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(loop, "segmentation_loss", full)
    with pytest.raises(TrainingError, match=r"no memory left .*2.00 GiB.*smaller"):
        train(tiny_settings, volumes[:2], volumes[2:])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    asked = dataclasses.replace(tiny_settings, device="cuda:1", out="elsewhere")
    with pytest.raises(ConfigError, match=r"'cuda:1' was asked for, and .* sees 1"):
        train(asked, volumes[:2], volumes[2:])


@pytest.mark.parametrize(
    ("device", "devices", "said"),
    [
        ("meta", 1, "'meta' was asked for, and PyTorch cannot use it here"),
        ("cuda", 2, "'cuda' was asked for, and PyTorch sees no GPU here"),
        ("gpu", 2, "'gpu' is unknown"),
        ("cpu:0", 2, "'cpu:0' is one device, and devices is 2: name their kind, cpu"),
    ],
)
def test_devices_that_cannot_be_had_are_a_sentence(
    tiny_settings, volumes, device, devices, said
):
    asked = dataclasses.replace(tiny_settings, device=device, devices=devices)
    with pytest.raises(ConfigError, match=said):
        train(asked, volumes[:2])


def test_more_gpus_than_there_are_is_a_sentence(tiny_settings, volumes, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    asked = dataclasses.replace(tiny_settings, device="cuda", devices=2)
    with pytest.raises(ConfigError, match=r"2 devices were asked for, .* sees 1 GPUs"):
        train(asked, volumes[:2])


def test_a_machine_without_memory_is_a_sentence(tiny_settings, volumes, monkeypatch):
    def start(*_, **__):
        torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr(loop, "_start", start)
    with pytest.raises(TrainingError, match="the machine has no memory left") as error:
        train(tiny_settings, volumes[:2])
    assert "\n" not in str(error.value)


def test_a_run_of_a_million_steps_takes_no_memory_for_those_to_come(
    tiny_settings, volumes
):
    asked = dataclasses.replace(tiny_settings, steps=1_000_000)
    samples = Samples(volumes, asked.network.tile, asked.network.window, None, 0)
    tracemalloc.start()
    batches = loop._batches(samples, asked, 0, None)
    next(batches)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


SIZES = {"all": [(2.0, 0.5, 0.5)] * 2, "two": [(2.0, 0.5, 0.5), (1.0, 0.5, 0.5)]}


@pytest.mark.parametrize(
    ("own", "found"),
    [
        (SIZES["all"], (2.0, 0.5, 0.5)),
        (SIZES["two"], None),
        ([None, None], (3.0, 1.0, 1.0)),
        ([None, (3.0, 1.0, 1.0)], (3.0, 1.0, 1.0)),
    ],
)
def test_a_checkpoint_names_the_voxel_size_of_its_volumes(
    tiny_settings, volumes, own, found
):
    """And the one of the settings only for those that do not say theirs."""
    sized = [
        dataclasses.replace(volume, voxel_size_um=size)
        for volume, size in zip(volumes, own, strict=False)
    ]
    asked = dataclasses.replace(tiny_settings, steps=1, voxel_size_um=(3.0, 1.0, 1.0))
    assert read_checkpoint(train(asked, sized).checkpoint).voxel_size_um == found


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good(
    tiny_settings, volumes, monkeypatch
):
    true_loss, calls = segmentation_loss, []

    def broken(*arguments):
        calls.append(None)
        return true_loss(*arguments) * (np.nan if len(calls) == 4 else 1)

    monkeypatch.setattr(loop, "segmentation_loss", broken)
    with pytest.raises(
        TrainingError, match=r"step 3: the loss is nan .* samples 6 to 7"
    ):
        train(tiny_settings, volumes)
    network, checkpoint = load_checkpoint(Path(tiny_settings.out) / "last")
    assert checkpoint.step == 2
    assert all(torch.isfinite(p).all() for p in network.parameters())


@pytest.mark.parametrize("name", ["config.json", "log.csv", "curves.png"])
def test_a_full_disk_is_a_sentence_and_the_run_goes_on_where_there_is_room(
    tiny_settings, volumes, monkeypatch, tmp_path, name
):
    whole = dataclasses.replace(tiny_settings, out=str(tmp_path / "whole"))
    train(whole, volumes[:2], volumes[2:])
    true_open, places = builtins.open, []
    room = 0 if name == "config.json" else 1  # which is written once

    def full(file, mode="r", *arguments, **options):
        if name in str(file) and mode[0] in "aw":
            places.append(file)
            if len(places) > room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return true_open(file, mode, *arguments, **options)

    for module in (builtins, io):
        monkeypatch.setattr(module, "open", full)
    with pytest.raises(WriteError, match=rf"write .*{name}: .*No space .*resume"):
        train(tiny_settings, volumes[:2], volumes[2:])
    monkeypatch.undo()
    train(tiny_settings, volumes[:2], volumes[2:], resume=True)
    assert losses(tiny_settings.out) == losses(whole.out)


def test_a_folder_with_a_run_is_not_overwritten(tiny_settings, volumes):
    train(dataclasses.replace(tiny_settings, steps=1), volumes)
    with pytest.raises(OutputError, match="--resume"):
        train(tiny_settings, volumes)


def test_resuming_with_other_settings_is_refused(tiny_settings, volumes):
    train(dataclasses.replace(tiny_settings, steps=2), volumes)
    other = dataclasses.replace(tiny_settings, steps=2, learning_rate=0.5)
    with pytest.raises(CheckpointError, match="learning_rate"):
        train(other, volumes, resume=True)


def changed(volume, what):
    """The volume with another image or other labels, under its name."""
    values = getattr(volume, what).copy()
    values[0, 0, 0] ^= 1
    return dataclasses.replace(volume, **{what: values})


def test_resuming_on_other_volumes_is_refused(tiny_settings, volumes, another):
    settings = dataclasses.replace(tiny_settings, steps=2)
    train(settings, volumes[:2], volumes[2:])
    moved = dataclasses.replace(volumes[0], name="elsewhere/bar 0")
    train(settings, [moved, volumes[1]], volumes[2:], resume=True)
    for training, held, named in (
        (volumes, [], "trains on: bar 2 not among those of then"),
        ([volumes[0], volumes[2]], [volumes[1]], "bar 2 not .* then, bar 1 not .* now"),
        (volumes[:2], [another], "holds out: bar 3 not .* bar 2 not"),
        ([volumes[0], changed(volumes[1], "image")], volumes[2:], "bar 1 not among"),
        ([volumes[0], changed(volumes[1], "labels")], volumes[2:], "other labels"),
        (volumes[1::-1], volumes[2:], "another order"),
    ):
        with pytest.raises(CheckpointError, match=named):
            train(settings, training, held, resume=True)


def test_what_a_run_began_from_has_seen_is_kept(
    tiny_settings, volumes, another, tmp_path
):
    first = dataclasses.replace(tiny_settings, out=str(tmp_path / "first"), steps=1)
    start = train(first, volumes[:1]).out / "last"
    tuned = dataclasses.replace(tiny_settings, init=str(start), steps=1)
    last = train(tuned, volumes[1:2], volumes[2:]).out / "last"
    parts = [part_of(v.image, read_checkpoint(last).volumes) for v in volumes]
    assert parts == ["training", "training", "validation"]
    assert part_of(another.image, read_checkpoint(last).volumes) == "unseen"


def without_volumes(last):
    path = last / "checkpoint.json"
    values = json.loads(path.read_text())
    del values["volumes"]
    path.write_text(json.dumps(values))


def test_an_old_checkpoint_is_resumed_and_says_nothing_of_its_volumes(
    tiny_settings, volumes, tmp_path
):
    settings = dataclasses.replace(tiny_settings, steps=2)
    last = train(settings, volumes[:2]).out / "last"
    without_volumes(last)
    train(settings, volumes[1:], resume=True)
    more = dataclasses.replace(tiny_settings, out=str(tmp_path / "m"), init=str(last))
    tuned = train(dataclasses.replace(more, steps=1), volumes[:1]).out / "last"
    known = read_checkpoint(tuned).volumes
    assert part_of(volumes[0].image, known) == "training"
    # What the start had seen is not known.
    assert part_of(volumes[2].image, known) is None


def test_what_a_start_learned_from_is_unknown_where_it_names_no_volumes_of_its_own(
    tiny_settings, volumes, tmp_path
):
    last = train(dataclasses.replace(tiny_settings, steps=1), volumes[:2]).out / "last"
    path = last / "checkpoint.json"
    values = json.loads(path.read_text())
    del values["volumes"]["training"]
    path.write_text(json.dumps(values))
    more = dataclasses.replace(tiny_settings, out=str(tmp_path / "m"), init=str(last))
    tuned = train(dataclasses.replace(more, steps=1), volumes[:1]).out / "last"
    assert part_of(volumes[1].image, read_checkpoint(tuned).volumes) is None


def test_a_checkpoint_older_than_a_setting_is_resumed(tiny_settings, volumes):
    train(dataclasses.replace(tiny_settings, steps=2), volumes)
    path = Path(tiny_settings.out) / "last" / "checkpoint.json"
    values = json.loads(path.read_text())
    del values["training"]["labels"]
    del values["training"]["loss"]["skeleton_recall"]
    del values["training"]["network"]["activation"], values["network"]["activation"]
    path.write_text(json.dumps(values))
    same = dataclasses.replace(tiny_settings, steps=2)
    assert train(same, volumes, resume=True).step == 2
    with pytest.raises(CheckpointError, match="another labels"):
        train(dataclasses.replace(same, labels="mask"), volumes, resume=True)
    other = dataclasses.replace(same, loss=LossSettings(skeleton_recall=0.5))
    with pytest.raises(CheckpointError, match="another loss"):
        train(other, volumes, resume=True)


def test_a_best_that_this_run_did_not_make_is_not_its_result(tiny_settings, volumes):
    rare = dataclasses.replace(tiny_settings, validate_every=1, save_every=6)

    def die(row: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(rare, volumes[:2], volumes[2:], on_row=die)
    out = Path(rare.out)
    assert [p.name for p in (out / "best").glob("weights*")]
    assert not (out / "last").exists()
    # Nothing was saved to go on from: it begins anew, and holds nothing out.
    result = train(rare, volumes, resume=True)
    assert result.checkpoint == out / "last"


def test_a_run_killed_while_it_goes_on_keeps_its_log_and_settings(
    tiny_settings, volumes, monkeypatch
):
    train(dataclasses.replace(tiny_settings, steps=2), volumes)
    out = Path(tiny_settings.out)
    before = {name: (out / name).read_bytes() for name in ("log.csv", "config.json")}
    rename = Path.replace
    for name in before:

        def dies(self: Path, target: Path, name: str = name) -> Path:
            if Path(target).name == name:
                raise KeyboardInterrupt
            return rename(self, target)

        monkeypatch.setattr(Path, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            train(dataclasses.replace(tiny_settings, steps=2), volumes, resume=True)
        assert {n: (out / n).read_bytes() for n in before} == before


def test_a_misspelt_field_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="lerning_rate: did you mean learning_rate"):
        TrainSettings.from_plain({"lerning_rate": 1.0})
    with pytest.raises(
        ConfigError, match=r"network\.widht: did you mean network\.width"
    ):
        TrainSettings.from_plain({"network": {"widht": 3}})


@pytest.mark.parametrize(
    "values",
    [{"steps": "many"}, {"steps": 0}, {"steps": True}, {"precision": "int4"},
     {"network": {"tile": [1, 2]}}, {"batch": 3, "devices": 2}],
)  # fmt: skip
def test_values_that_cannot_be_are_refused(values):
    with pytest.raises(ConfigError):
        TrainSettings.from_plain(values)


def test_settings_survive_json(tiny_settings):
    plain = json.loads(json.dumps(tiny_settings.to_json()))
    assert TrainSettings.from_plain(plain) == tiny_settings


def test_a_checkpoint_of_another_configuration_is_refused(
    tiny_settings, volumes, tmp_path
):
    train(dataclasses.replace(tiny_settings, steps=1), volumes)
    other = dataclasses.replace(
        tiny_settings,
        out=str(tmp_path / "other"),
        init=str(Path(tiny_settings.out) / "last"),
        network=dataclasses.replace(tiny_settings.network, half_channels=6),
    )
    with pytest.raises(CheckpointError, match="another configuration"):
        train(other, volumes)


def test_ignored_voxels_do_not_count():
    logits = torch.randn(2, 1, 4, 4, 4, requires_grad=True)
    labels = torch.randint(0, 2, (2, 1, 4, 4, 4), dtype=torch.uint8)
    labels[:, :, 2:] = 255
    settings = LossSettings(skeleton_recall=1.0)
    segmentation_loss(logits, labels, settings).backward()
    assert logits.grad is not None
    assert (logits.grad[:, :, 2:] == 0).all()
    assert (logits.grad[:, :, :2] != 0).all()
    nothing = torch.full_like(labels, 255)
    assert segmentation_loss(logits, nothing, LossSettings()) == 0


def test_skeleton_recall_rises_with_a_missed_centre_line():
    labels = torch.ones(1, 1, 1, 3, 9, dtype=torch.uint8)
    labels[..., 1, :] = 2
    hit = torch.full(labels.shape, -9.0)
    hit[..., 1, :] = 9.0
    only = LossSettings(cross_entropy=0.0, dice=0.0, skeleton_recall=1.0)
    assert segmentation_loss(hit, labels, only) < 0.01
    assert segmentation_loss(-hit, labels, only) > 0.85


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.2, 0.8), (0.0001, 0.004), (0.995, 0.9999), (0.004, 0.995), (0.0, 1.0)],
)
def test_the_dice_of_a_score_is_that_at_its_threshold(low, high):
    rng = np.random.default_rng(0)
    truth = rng.random(500) < 0.3
    probability = (low + (high - low) * rng.random(500)).astype(np.float32)
    probability[truth] += np.float32(0.3 * (high - low)) * (1 - probability[truth])
    score = pooled_score(probability, truth)
    allowed = np.linspace(0.01, 0.99, 9801)

    def dice(threshold):
        found = probability >= threshold
        return 2 * (found & truth).sum() / (found.sum() + truth.sum())

    assert 0.01 <= score.threshold <= 0.99
    assert score.dice == pytest.approx(dice(score.threshold))
    assert score.dice >= max(map(dice, allowed)) - 1e-9


@pytest.mark.parametrize("decay", [0.999, 0.5])
def test_the_average_of_a_tuned_network_keeps_a_share_of_what_it_was(decay):
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    average = RunningAverage(layer, decay, tuned_for=100)
    torch.nn.init.ones_(layer.weight)
    for step in range(100):
        average.update(layer, step)
    kept = 1 - float(average.tensors["weight"])
    # However long the average is: no more than exp(-2) of the first weights is left.
    assert kept == pytest.approx(min(decay, 0.98) ** 100, abs=1e-5)
    assert kept < 0.14


def test_the_average_of_a_new_network_forgets_its_first_weights():
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    average = RunningAverage(layer, 0.999)
    torch.nn.init.ones_(layer.weight)
    for step in range(100):
        average.update(layer, step)
    assert float(average.tensors["weight"]) > 0.999


def test_resuming_in_a_folder_of_something_else_touches_nothing(tmp_path):
    for names in (["thesis.txt"], ["config.json"], ["log.csv"]):
        folder = tmp_path / names[0]
        folder.mkdir()
        for name in names:
            (folder / name).write_text("{}")
        with pytest.raises(OutputError, match="choose another folder"):
            train(TrainSettings(out=str(folder)), [], resume=True)
        assert [path.read_text() for path in folder.iterdir()] == ["{}"]


def test_layer_decay_slows_what_a_donor_gave_and_nothing_else(tiny_settings):
    network = Network(tiny_settings.network)
    inside = dict(network.encoder.named_parameters())
    rows = [
        {"parameter": name, "rule": "new" if name == "depth_embed" else "copied"}
        for name in inside
    ]

    def scales(transfer):
        groups = build_optimiser(network, tiny_settings, transfer).param_groups
        scale = {id(p): group["scale"] for group in groups for p in group["params"]}
        return {name: scale[id(p)] for name, p in network.named_parameters()}

    found = scales(rows)
    decay = tiny_settings.layer_decay
    assert found["encoder.depth_embed"] == 1
    assert found["encoder.patch_embed.weight"] == decay**2
    assert found["encoder.blocks.0.attn.qkv.weight"] == decay
    assert {s for name, s in found.items() if not name.startswith("encoder.")} == {1}
    assert set(scales([]).values()) == {1}


def test_skeleton_recall_counts_also_where_nobody_marked_skeletons(
    tiny_settings, volumes, tmp_path
):
    found = []
    for weight in (0.0, 1.0):
        settings = dataclasses.replace(
            tiny_settings,
            out=str(tmp_path / str(weight)),
            steps=1,
            loss=LossSettings(skeleton_recall=weight),
        )
        train(settings, volumes[:2], [])
        found.append(losses(settings.out)[0][1])
    # An untrained network misses about half of every centre line.
    assert found[1] > found[0] + 0.1
