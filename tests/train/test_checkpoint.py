"""A checkpoint is whole whenever its writer dies, and anybody may have written it."""

import json
import re
import resource
from pathlib import Path

import pytest
import torch

from neurodeploy._errors import CheckpointError
from neurodeploy.networks import Network, NetworkConfig
from neurodeploy.training import _checkpoint as checkpoints
from neurodeploy.training._checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_weights,
    read_checkpoint,
    save_checkpoint,
)
from neurodeploy_runtime import WriteError


def saved(folder: Path, step: int = 1, value: float = 0.0, size: int = 2) -> Path:
    """A checkpoint of one tensor, which fits no network."""
    told = Checkpoint(network=NetworkConfig(), step=step)
    save_checkpoint(folder, told, {"a": torch.full((size,), value)})
    return folder / "checkpoint.json"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_that_was_altered_is_refused(tmp_path):
    saved(tmp_path)
    file = next(tmp_path.glob("weights-*"))
    blob = bytearray(file.read_bytes())
    blob[-1] ^= 1
    file.write_bytes(blob)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_checkpoint(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match="lacks weights"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_removes_only_what_checkpoints_wrote(tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(b"precious")
    (tmp_path / ".mine.safetensors.7").write_bytes(b"precious")
    for torn in (".weights-00000001.safetensors.7", ".checkpoint.json.7"):
        (tmp_path / torn).write_bytes(b"left by a writer that was killed")
    saved(tmp_path, 1)
    saved(tmp_path, 2)
    assert files(tmp_path) == [
        ".mine.safetensors.7",
        "checkpoint.json",
        "mine.safetensors",
        "weights-00000002.safetensors",
    ]


@pytest.mark.parametrize("then", [1, 2])
def test_a_writer_that_dies_at_any_rename_leaves_the_checkpoint_that_was_there(
    tmp_path, monkeypatch, then
):
    """Also where the new one is of the same step: a GPU gives no two runs alike."""
    saved(tmp_path, 5, value=1.0)
    rename, left = Path.replace, [then]

    def dies(self: Path, target: Path) -> Path:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as planted:
        planted.setattr(Path, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            saved(tmp_path, 5, value=2.0)
    assert load_weights(tmp_path)["a"].tolist() == [1.0, 1.0]
    saved(tmp_path, 5, value=2.0)
    assert load_weights(tmp_path)["a"].tolist() == [2.0, 2.0]
    saved(tmp_path, 6, value=3.0)
    assert files(tmp_path) == ["checkpoint.json", "weights-00000006.safetensors"]


def test_a_full_disk_is_a_sentence_and_keeps_the_checkpoint_that_was_there(tmp_path):
    saved(tmp_path, 1, value=1.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(WriteError, match="free space there and resume"):
            saved(tmp_path, 2, size=1 << 16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_checkpoint(tmp_path).step == 1
    assert load_weights(tmp_path)["a"].tolist() == [1.0, 1.0]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "wrong",
    [
        {"files": []}, {"files": {"weights": {}}}, {"volumes": {"a": 1}},
        {"schema": True}, {"step": -1}, {"step": "5"}, {"name": 5}, {"tuned": 1},
        {"threshold": NAN}, {"threshold": 1.5}, {"threshold": "0.5"},
        {"overlap": 5}, {"overlap": [0.25]}, {"overlap": [0.25, 0.25, 0.9]},
        {"normalisation": "percentile"}, {"voxel_size_um": [1, 1, -1]},
        {"voxel_size_um": [1, INF, 1]}, {"transfer": [{"rule": "new"}]},
        {"transfer": [{"parameter": 3, "rule": "new", "shape": [], "note": ""}]},
        {"transfer": [{"parameter": "a", "rule": "new", "shape": 5, "note": ""}]},
        {"figures": {"validation": "good"}}, {"figures": {"validation": {"dice": 1}}},
        {"figures": {"validation": {"average_precision": "x", "dice": 0.5}}},
        {"figures": []}, {"training": None}, {"unheard": 1},
        {"network": []}, {"network": {"taps": ["a"]}}, {"network": {"width": "a"}},
    ],
)  # fmt: skip
def test_a_checkpoint_that_somebody_wrote_is_read_with_care(tmp_path, wrong):
    path = saved(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **wrong}))
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
        load_weights(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "", "[]", '"a"'])
def test_a_file_that_is_no_checkpoint_is_a_sentence(tmp_path, text):
    saved(tmp_path).write_text(text)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json"):
        read_checkpoint(tmp_path)


def test_a_file_larger_than_any_checkpoint_is_not_read(tmp_path, monkeypatch):
    path = saved(tmp_path)
    with path.open("ab") as file:
        file.truncate(1 << 33)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("8 GiB were read"))
    with pytest.raises(CheckpointError, match="too many for a checkpoint"):
        read_checkpoint(tmp_path)


def test_a_network_larger_than_its_weights_is_refused_before_it_is_made(
    tmp_path, monkeypatch
):
    tensors = {f"a{i}": torch.zeros(2) for i in range(9)}
    save_checkpoint(tmp_path, Checkpoint(network=NetworkConfig(), step=1), tensors)
    path = tmp_path / "checkpoint.json"
    values = json.loads(path.read_text())

    def sketched(config):
        assert torch.empty(0).is_meta, "300 GB would be allocated"
        return Network(config)

    monkeypatch.setattr(checkpoints, "Network", sketched)
    # 300 GB of blocks, and a thousand million of them.
    for wrong in ({"width": 40000, "heads": 1}, {"depth": 10**9}):
        values["network"] = {**NetworkConfig().to_json(), **wrong}
        path.write_text(json.dumps(values))
        with pytest.raises(CheckpointError, match="another configuration"):
            load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mlp_ratio": "4"}, {"mlp_ratio": INF}, {"mlp_ratio": NAN},
        {"register_tokens": -1}, {"depth": 1.5}, {"width": 10**18, "heads": 1},
        {"norm_eps": "small"},
    ],
)  # fmt: skip
def test_a_network_that_cannot_be_built_is_a_sentence(tmp_path, wrong):
    path = saved(tmp_path)
    values = json.loads(path.read_text())
    save_checkpoint(
        tmp_path,
        Checkpoint(network=NetworkConfig(), step=1),
        Network(NetworkConfig()).state_dict(),
    )
    values = json.loads(path.read_text())
    values["network"] = {**NetworkConfig().to_json(), **wrong}
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path)
