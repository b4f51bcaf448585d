"""Checkpoints: safetensors weights beside a JSON that says what they are.

A checkpoint is a folder::

    checkpoint.json               what follows, and the SHA-256 of each file it names
    weights-00005000.safetensors  the averaged weights, which are used
    state-00005000.safetensors    the raw weights and the optimiser's moments, to resume

Files are written under a name of their own (a second content of one step gets an ending
more) and `checkpoint.json` is replaced last, so that a folder always holds one whole
checkpoint, whenever the writer is killed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from neurodeploy._errors import CheckpointError
from neurodeploy.data._volumes import Listed
from neurodeploy.networks import Network, NetworkConfig, cost
from neurodeploy.training._checkpoint_json import SCHEMA, read_fields
from neurodeploy_runtime._errors import WriteError, said_by
from neurodeploy_runtime._spec import ModelSpec

if TYPE_CHECKING:
    from neurodeploy_runtime._normalise import Kind

_FILE = "checkpoint.json"
#: Names that checkpoints give their tensors.
_WRITTEN = re.compile(r"(weights|state)-\d{8,}(-[0-9a-f]{8})?\.safetensors")
#: What a writer that was killed leaves of them.
_TORN = re.compile(rf"\.({_WRITTEN.pattern}|checkpoint\.json)\.\d+")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of its weights.

    Parameters
    ----------
    network
        The network's configuration.
    step
        Optimiser steps taken.
    threshold
        Probability above which a voxel is a neurite, chosen on the validation data.
    overlap
        Share of the window that neighbouring tiles have in common, z, y, x.
    voxel_size_um
        Of the volumes that were trained on, z, y, x; None: not known, or not one.
    transfer
        What became of each parameter of the donor, as rows of plain values.
    tuned
        The run began from the weights of another checkpoint.
    training
        The effective settings.
    figures
        What was measured.
    volumes
        Which volumes were trained on, held out for validation, and trained on before
        in what the run began from: names and digests. Empty: not known.
    """

    network: NetworkConfig
    step: int
    name: str = "neurodeploy"
    threshold: float = 0.5
    overlap: tuple[float, float, float] = (0.25, 0.25, 0.25)
    normalisation: Kind = "background-asinh"
    voxel_size_um: tuple[float, float, float] | None = None
    transfer: list[dict[str, Any]] = field(default_factory=list)
    tuned: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    validated_on: dict[str, Any] = field(default_factory=dict)
    volumes: dict[str, Listed] = field(default_factory=dict)

    def spec(self, *, max_batch: int = 16) -> ModelSpec:
        """The draft of the bundle's contract; the exporter adds parity to it."""
        flop = cost(Network(self.network), self.network).flop_per_tile
        training = {
            "steps": self.step,
            "settings": self.training,
            "figures": self.figures,
            "transfer": _summary(self.transfer),
            "volumes": self.volumes,
        }
        overlap = self.overlap
        if self.network.mode == "slice":
            overlap = (0.0, *self.overlap[1:])
        return ModelSpec(
            name=self.name,
            mode=self.network.mode,
            tile=self.network.tile,
            window=self.network.window,
            overlap=overlap,
            threshold=self.threshold,
            normalisation=self.normalisation,
            voxel_size_um=self.voxel_size_um,
            max_batch=max_batch,
            flop_per_tile=flop,
            validated_on=self.validated_on,
            training=training,
        )


def _summary(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How many parameters each rule gave."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["rule"]] = counts.get(row["rule"], 0) + 1
    return counts


def save_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    weights: dict[str, torch.Tensor],
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a checkpoint into a folder, replacing the one there as one step.

    `state` is what a resumed run needs beside the weights; None leaves it out. What
    a writer that was killed has left there goes.

    Raises
    ------
    WriteError
        Where the disk is full or refuses; the checkpoint that was there stays.
    """
    try:
        _save(folder, checkpoint, weights, state)
    except (OSError, SafetensorError) as error:
        raise WriteError(
            f"cannot write a checkpoint to {folder}: {said_by(error)}; free space "
            "there and resume the run, or choose another folder"
        ) from error


def _save(
    folder: Path,
    checkpoint: Checkpoint,
    weights: dict[str, torch.Tensor],
    state: dict[str, torch.Tensor] | None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for torn in folder.glob(".*"):
        if _TORN.fullmatch(torn.name):
            torn.unlink()
    files = {}
    for kind, tensors in (("weights", weights), ("state", state)):
        if tensors is None:
            continue
        stem = f"{kind}-{checkpoint.step:08d}"
        name = f"{stem}.safetensors"
        whole = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        partial = folder / f".{name}.{os.getpid()}"
        save_file(whole, partial)
        _durable(partial)
        digest = _sha256(partial)
        if (folder / name).exists() and _sha256(folder / name) != digest:
            # The checkpoint that is still there may name it.
            name = f"{stem}-{digest[:8]}.safetensors"
        partial.replace(folder / name)
        files[kind] = {"file": name, "sha256": digest}
    values = {
        "schema": SCHEMA,
        **{
            f.name: getattr(checkpoint, f.name)
            for f in dataclasses.fields(checkpoint)
            if f.name != "network"
        },
        "network": checkpoint.network.to_json(),
        "files": files,
    }
    partial = folder / f".{_FILE}.{os.getpid()}"
    partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    _durable(partial)
    partial.replace(folder / _FILE)
    kept = {entry["file"] for entry in files.values()}
    for old in folder.glob("*.safetensors"):
        # What somebody else put here stays.
        if old.name not in kept and _WRITTEN.fullmatch(old.name):
            old.unlink()


def _durable(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a folder with a checkpoint in it."""
    return (path / _FILE).is_file()


def read_checkpoint(path: Path) -> Checkpoint:
    """What a checkpoint says, without its weights.

    Raises
    ------
    CheckpointError
        Where the folder holds none, or one of another schema or with odd fields.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[Checkpoint, dict[str, dict[str, str]]]:
    path = Path(path)
    if not is_checkpoint(path):
        raise CheckpointError(
            f"{path} is no checkpoint: a folder with {_FILE} in it was expected, such "
            "as the `best` or `last` folder of a run"
        )
    known = {f.name for f in dataclasses.fields(Checkpoint)}
    values, files = read_fields(path / _FILE, known)
    return Checkpoint(**values), files


def _tensors(path: Path, files: dict[str, Any], kind: str) -> dict[str, torch.Tensor]:
    entry = files.get(kind)
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("file"), str)
        or Path(entry["file"]).name != entry["file"]
    ):
        raise CheckpointError(f"{path / _FILE} names no file of {kind}")
    file = path / entry["file"]
    if not file.is_file():
        raise CheckpointError(f"{path} lacks {file.name}: copy the whole folder")
    if _sha256(file) != entry.get("sha256"):
        raise CheckpointError(
            f"{file} is not the file that was written: its SHA-256 differs; copy the "
            "checkpoint again"
        )
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of a checkpoint."""
    path = Path(path)
    return _tensors(path, _read(path)[1], "weights")


def load_state(path: Path) -> dict[str, torch.Tensor]:
    """The raw weights and the optimiser's moments of a checkpoint."""
    path = Path(path)
    return _tensors(path, _read(path)[1], "state")


def load_checkpoint(path: Path) -> tuple[Network, Checkpoint]:
    """The network of a checkpoint, in evaluation mode, and what the checkpoint says.

    The network gives logits; :func:`neurodeploy.networks.probability_module` wraps it.

    Raises
    ------
    CheckpointError
        Where the folder is not a whole checkpoint, or its weights do not fit its
        configuration.
    """
    path = Path(path)
    checkpoint, files = _read(path)
    weights = _tensors(path, files, "weights")
    # Held to its weights before anything of the size that it claims is allocated.
    if checkpoint.network.depth > len(weights):
        raise CheckpointError(
            f"{path} is of another configuration: it has {len(weights)} tensors, and "
            f"its network {checkpoint.network.depth} blocks"
        )
    try:
        with torch.device("meta"):
            claimed = Network(checkpoint.network).state_dict()
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{path} has a network that cannot be built: {said_by(error)}"
        ) from error
    require_fit(claimed, weights, str(path))
    network = Network(checkpoint.network)
    put_weights(network, weights, str(path))
    return network.eval(), checkpoint


def put_weights(
    network: torch.nn.Module, weights: dict[str, torch.Tensor], where: str
) -> None:
    """Give a network its weights; one that is missing or does not fit is named."""
    require_fit(network.state_dict(), weights, where)
    network.load_state_dict(weights)


def require_fit(
    own: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], where: str
) -> None:
    """Refuse weights that are not those of a network with the tensors `own`.

    Raises
    ------
    CheckpointError
        A tensor is missing, too many, or of another shape; the text names it.
    """
    problems = [
        *(f"lacks {name}" for name in own if name not in weights),
        *(
            f"has {name}, which this network has not"
            for name in weights
            if name not in own
        ),
        *(
            f"has {name} of shape {tuple(weights[name].shape)}, "
            f"not {tuple(own[name].shape)}"
            for name in own
            if name in weights and weights[name].shape != own[name].shape
        ),
    ]
    if problems:
        raise CheckpointError(
            f"{where} is of another configuration: it {problems[0]}"
            + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")
        )
