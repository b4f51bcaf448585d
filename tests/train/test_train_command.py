"""`neurodeploy train`: options and a file say the same, and nothing is guessed."""

import json
import re
import shutil

import numpy as np
import pytest
import tifffile

from neurodeploy.training import load_checkpoint, read_checkpoint, read_log

TINY = """
steps = 3
batch = 1
log_every = 1
device = "cpu"
precision = "fp32"

[network]
tile = [8, 16, 16]
width = 24
depth = 1
taps = [1]
half_channels = 4
quarter_channels = 8
"""


@pytest.fixture
def folder(tmp_path, volumes):
    data = tmp_path / "data"
    data.mkdir()
    for i, volume in enumerate(volumes):
        tifffile.imwrite(data / f"cell{i}.tif", volume.image)
        tifffile.imwrite(data / f"cell{i}_mask.tif", volume.labels * np.uint8(255))
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


def test_a_file_and_options_train_a_checkpoint(run, folder):
    out = folder / "run"
    ended = run(
        "train", folder / "tiny.toml", "--data", folder / "data", "--out", out,
        "--seed", 4, "--validation-share", 0.34,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "3 annotated images" in ended.err
    assert "from scratch" in ended.err
    assert "step 3 of 3" in ended.out
    _, checkpoint = load_checkpoint(out / "best")
    assert checkpoint.network.tile == (8, 16, 16)
    assert checkpoint.training["seed"] == 4
    assert [row.step for row in read_log(out / "log.csv")] == [1, 2, 3]
    assert json.loads((out / "config.json").read_text())["data"] == [
        str(folder / "data")
    ]


def test_images_that_were_trained_on_are_marked_and_pooled_apart(run, folder, another):
    out = folder / "run"
    ended = run(
        "train", folder / "tiny.toml", "--data", folder / "data", "--out", out,
        "--validation-share", 0.34,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    all_of_them = ("evaluate", out / "best", "--data", folder / "data")
    tifffile.imwrite(folder / "data" / "new.tif", another.image)
    tifffile.imwrite(folder / "data" / "new_mask.tif", another.labels * np.uint8(255))
    values = json.loads(run(*all_of_them, "--json").out)
    parts = {image["name"]: image["part"] for image in values["images"]}
    assert sorted(parts.values()) == ["training", "training", "unseen", "validation"]
    assert parts["data/new.tif"] == "unseen"
    assert values["parts"]["unseen"]["voxels"] == values["images"][3]["voxels"]
    voxels = {part: f["voxels"]["voxels"] for part, f in values["parts"].items()}
    assert voxels["training"] == 2 * voxels["unseen"] == 2 * voxels["validation"]
    assert values["pooled"]["voxels"]["voxels"] == sum(voxels.values())
    table = run(*all_of_them).out
    assert "data/new.tif (not seen)" in table
    assert table.count("(trained on)") == 3  # two images, and both together
    assert "of 4 images the model was trained on 2 and chosen by 1" in table
    # A resume on the folder as it is now would train on what was held out.
    again = run("train", "--resume", "--out", out)
    assert again.code == 2
    assert "other volumes" in again.err


def test_a_run_goes_on_where_its_images_have_other_names(run, folder):
    out, data = folder / "run", folder / "data"
    run("train", folder / "tiny.toml", "--data", data, "--out", out)
    for i, name in enumerate(("z", "a", "m")):
        for ending in (".tif", "_mask.tif"):
            (data / f"cell{i}{ending}").rename(data / f"{name}{ending}")
    ended = run("train", "--resume", "--out", out)
    assert ended.code == 0, ended.err
    # A run of before does not name them: it goes on by their places.
    for part in ("last", "best"):
        path = out / part / "checkpoint.json"
        values = json.loads(path.read_text())
        path.write_text(json.dumps({**values, "volumes": {}}))
    ended = run("train", "--resume", "--out", out)
    assert ended.code == 0, ended.err
    assert "does not say which images it was trained on" in ended.err


@pytest.mark.parametrize("text", ['{"steps": 3', "[]"])
def test_a_damaged_config_of_a_run_is_one_sentence(run, folder, text):
    out = folder / "run"
    run("train", folder / "tiny.toml", "--data", folder / "data", "--out", out)
    (out / "config.json").write_text(text)
    ended = run("train", "--resume", "--out", out)
    assert ended.code == 2
    assert str(out / "config.json") in ended.err
    assert "not foreseen" not in ended.err


def test_a_finished_run_is_resumed_to_more_by_its_own_settings_only(run, folder):
    out = folder / "run"
    run("train", folder / "tiny.toml", "--data", folder / "data", "--out", out)
    again = run("train", folder / "tiny.toml", "--data", folder / "data", "--out", out)
    assert again.code == 2
    assert "--resume" in again.err
    ended = run("train", "--resume", "--out", out)
    assert ended.code == 0, ended.err
    other = run("train", "--resume", "--out", out, "--seed", 9)
    assert other.code == 2
    assert "another seed" in other.err


def test_a_donor_file_decides_the_encoder_and_its_table_is_stored(run, folder):
    import torch
    from safetensors.torch import save_file
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    donor = VisionTransformer(
        img_size=32, patch_size=16, embed_dim=192, depth=1, num_heads=3, num_classes=5
    )
    save_file(donor.state_dict(), folder / "donor.safetensors")
    out = folder / "run"
    arguments = (
        "train", folder / "tiny.toml", "--data", folder / "data", "--out", out,
        "--init", folder / "donor.safetensors", "--steps", 2,
    )  # fmt: skip
    ended = run(*arguments)
    assert ended.code == 0, ended.err
    assert "inflated" in ended.err
    _, checkpoint = load_checkpoint(out / "last")
    assert (checkpoint.network.width, checkpoint.network.heads) == (192, 3)
    rules = {row["parameter"]: row["rule"] for row in checkpoint.transfer}
    assert rules["patch_embed.weight"] == "inflated"
    assert rules["head.bias"] == "left out"
    assert checkpoint.training["init"] == "donor.safetensors"
    # The donor is not needed to go on.
    (folder / "donor.safetensors").unlink()
    assert run("train", "--resume", "--out", out).code == 0
    # What no donor decides is held to what the run began with.
    wider = TINY.replace("half_channels = 4", "half_channels = 8")
    (folder / "wider.toml").write_text(wider)
    again = run("train", folder / "wider.toml", *arguments[2:], "--resume")
    assert again.code == 2
    assert "was trained with another network" in again.err


def test_a_donor_of_other_patches_is_refused_with_the_words_that_it_takes(run, folder):
    import torch
    from safetensors.torch import save_file
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    donor = VisionTransformer(
        img_size=28, patch_size=14, embed_dim=192, depth=1, num_heads=3, num_classes=0
    )
    save_file(donor.state_dict(), folder / "donor.safetensors")
    arguments = (
        "train", folder / "tiny.toml", "--data", folder / "data", "--out",
        folder / "run", "--init", folder / "donor.safetensors", "--steps", 1,
        "--validation-share", 0,
    )  # fmt: skip
    refused = run(*arguments)
    assert refused.code == 2
    assert "has patches of (14, 14), which do not divide tile" in refused.err
    words = re.search(r"\((--tile \S+ --patch \S+)\)", refused.err)
    assert words is not None, refused.err
    assert run(*arguments, *words[1].split()).code == 0
    _, checkpoint = load_checkpoint(folder / "run" / "last")
    assert checkpoint.network.patch[1:] == (14, 14)


def test_slice_mode_answers_the_middle_slice_in_half_precision_too(run, folder):
    out = folder / "run"
    toml = TINY.replace("[8, 16, 16]", "[5, 96, 96]\npatch = [5, 16, 16]")
    # This backward once wrote over its memory: see PlaneConv.
    toml = toml.replace('precision = "fp32"', 'precision = "bf16"')
    (folder / "tiny.toml").write_text(toml)
    ended = run(
        "train", folder / "tiny.toml", "--data", folder / "data", "--out", out,
        "--mode", "slice", "--validation-share", 0,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    _, checkpoint = load_checkpoint(out / "last")
    assert checkpoint.network.window == (1, 96, 96)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--init", "timm:vit_enormous"), "vit_enormous"),
        (("--init", "nowhere.safetensors"), "no file of weights"),
        (("--voxel-size", "1,2"), "three numbers"),
        (("--steps", "0"), "steps is 0"),
        (("--seed", str(2**64)), f"seed is {2**64}: use at most {2**64 - 1}"),
        (("--device", "cuda:9"), "cuda:9"),
    ],
)
def test_a_wrong_request_gets_one_sentence_and_code_2(run, folder, arguments, said):
    out = folder / "run"
    ended = run(
        "train", folder / "tiny.toml", "--data", folder / "data", "--out", out,
        *arguments,
    ) if "--device" not in arguments else run(
        "train", "--data", folder / "data", "--out", out, *arguments
    )  # fmt: skip
    assert ended.code == 2
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert not out.exists()


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_a_place_that_cannot_hold_a_run_is_refused(run, folder, resume):
    words = ("train", folder / "tiny.toml", "--data", folder / "data", *resume)
    for out in (folder / "tiny.toml", folder / "tiny.toml" / "run"):
        ended = run(*words, "--out", out)
        assert ended.code == 2
        assert f"{out} is there already" in ended.err or (
            f"{out} cannot be made" in ended.err
        )
    assert (folder / "tiny.toml").read_text() == TINY


def test_a_misspelt_field_of_the_file_is_named(run, folder):
    (folder / "tiny.toml").write_text("lerning_rate = 1.0\n")
    ended = run("train", folder / "tiny.toml", "--data", folder / "data")
    assert ended.code == 2
    assert "did you mean learning_rate" in ended.err


def test_a_run_says_when_it_is_measured_on_what_it_starts_from(run, folder):
    first, second = folder / "first", folder / "second"
    words = ("train", folder / "tiny.toml", "--validation-share", 0.34)
    assert run(*words, "--data", folder / "data", "--out", first).code == 0
    ended = run(
        *words, "--data", folder / "data", "--out", second, "--init", first / "best"
    )
    assert ended.code == 0, ended.err
    volumes = read_checkpoint(second / "best").volumes
    # All three images belong to the first run: one of them is held out, and said.
    held = volumes["validation"][0]["name"]
    assert f"held out: {held}, which {first / 'best'} was made with" in ended.err
    then = read_checkpoint(first / "best").volumes
    assert volumes["before"] == then["training"]
    assert volumes["chosen before"] == then["validation"]
    for values, option in (("average", "--inflate"), ("vit", "--donor-architecture")):
        ended = run(
            *words, "--data", folder / "data", "--out", folder / "third",
            "--init", first / "best", option, values,
        )  # fmt: skip
        assert ended.code == 2
        assert "a checkpoint whose weights are 3D already" in ended.err


def test_copies_are_said_and_never_measured_on(run, folder):
    data = folder / "data"
    for suffix in ("", "_mask"):
        shutil.copy(data / f"cell0{suffix}.tif", data / f"again{suffix}.tif")
    ended = run(
        "train", folder / "tiny.toml", "--data", data, "--out", folder / "run",
        "--validation-share", 0.34,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "data/cell0.tif is a copy of data/again.tif: both are on one side" in (
        ended.err
    )
    volumes = read_checkpoint(folder / "run" / "best").volumes
    marks = [
        {entry["image"] for entry in volumes[part]}
        for part in ("training", "validation")
    ]
    assert not marks[0] & marks[1]


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        ("register_tokens = -1", "register_tokens -1 is below 0"),
        ("mlp_ratio = -1.0", "mlp_ratio -1.0 makes no layer"),
        ("norm_eps = -1.0", "norm_eps -1.0 is not between 0 and 1"),
    ],
)
def test_a_network_that_cannot_be_is_refused_in_a_sentence(
    run, folder, field, sentence
):
    (folder / "odd.toml").write_text(TINY + field + "\n")
    ended = run(
        "train", folder / "odd.toml", "--data", folder / "data", "--out", folder / "run"
    )
    assert ended.code == 2
    assert sentence in ended.err
    assert not (folder / "run").exists()


def test_a_network_that_is_a_word_is_refused_in_a_sentence(run, folder):
    (folder / "odd.toml").write_text('network = "small"\n')
    ended = run(
        "train", folder / "odd.toml", "--mode", "slice", "--data", folder / "data"
    )
    assert ended.code == 2
    assert "network" in ended.err
    assert "not foreseen" not in ended.err


def test_volumes_of_one_class_are_held_out_and_give_no_figure(run, folder):
    data = folder / "data"
    for path in data.glob("*_mask.tif"):
        labels = tifffile.imread(path) // 255 + 1  # 1 background, 2 neurite
        tifffile.imwrite(
            path, np.minimum(labels, 1) if "cell2" in path.name else labels
        )
    seed = next(
        seed
        for seed in range(50)
        if "cell2" in held_out(run, folder, seed, folder / f"run{seed}")
    )
    ended = run(
        "train", folder / "tiny.toml", "--data", data, "--labels", "slices",
        "--validation-share", 0.34, "--seed", seed, "--out", folder / "again",
    )  # fmt: skip
    assert "the 1 volumes held out are labelled with one class only" in ended.out


def held_out(run, folder, seed, out):
    ended = run(
        "train", folder / "tiny.toml", "--data", folder / "data", "--labels", "slices",
        "--validation-share", 0.34, "--seed", seed, "--out", out, "--steps", 1,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    return read_checkpoint(out / "last").volumes["validation"][0]["name"]


def test_a_channel_of_every_image_is_what_is_trained_on(run, folder, volumes):
    both = folder / "both"
    shutil.copytree(folder / "data", both)
    for i, volume in enumerate(volumes):
        values = np.stack([volume.image[::-1], volume.image], axis=1)
        path = both / f"cell{i}.tif"
        tifffile.imwrite(path, values, imagej=True, metadata={"axes": "ZCYX"})
    words = ("train", folder / "tiny.toml", "--data")
    ended = run(*words, both, "--out", folder / "none")
    assert ended.code == 2
    assert "has 2 channels" in ended.err
    assert "--channel" in ended.err
    assert not (folder / "none").exists()
    assert run(*words, folder / "data", "--out", folder / "one").code == 0
    assert run(*words, both, "--out", folder / "two", "--channel", 1).code == 0
    # The same voxels: the same losses.
    losses = [
        [row.loss for row in read_log(folder / name / "log.csv")]
        for name in ("one", "two")
    ]
    assert losses[0] == losses[1]
    assert read_checkpoint(folder / "two" / "last").training["reading"]["channel"] == 1
    # A run that goes on reads them again.
    ended = run("train", "--out", folder / "two", "--resume")
    assert ended.code == 0, ended.err
    ended = run("train", "--out", folder / "two", "--resume", "--channel", 0)
    assert ended.code == 2
    assert "not among those of now" in ended.err


@pytest.mark.parametrize(
    ("table", "said"),
    [("channel = -1", "count from 0"), ("chanel = 1", "did you mean reading.channel")],
)
def test_a_reading_that_makes_no_sense_is_refused(run, folder, table, said):
    config = folder / "odd.toml"
    config.write_text(f"{TINY}\n[reading]\n{table}\n")
    ended = run("train", config, "--data", folder / "data", "--out", folder / "run")
    assert ended.code == 2
    assert said in ended.err
