"""The training loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurodeploy._errors import CheckpointError, ConfigError, TrainingError
from neurodeploy.data import SKELETON, AnnotatedVolume, Samples, mark_skeleton
from neurodeploy.data._volumes import Listed, listed, require_same
from neurodeploy.networks import Network
from neurodeploy.training._checkpoint import (
    Checkpoint,
    is_checkpoint,
    load_state,
    load_weights,
    put_weights,
    read_checkpoint,
    save_checkpoint,
)
from neurodeploy.training._log import Log, Row, draw_curves, written
from neurodeploy.training._losses import segmentation_loss
from neurodeploy.training._optimiser import (
    RunningAverage,
    build_optimiser,
    learning_rate,
)
from neurodeploy.training._settings import TrainSettings
from neurodeploy.training._validate import Score, validate
from neurodeploy.transfer import config_for, config_like, load_donor, transfer
from neurodeploy_runtime._atomic import write_atomically
from neurodeploy_runtime._errors import OutputError, said_by

OnRow = Callable[[Row], None]

#: What PyTorch says, as a plain RuntimeError, where it is not a GPU's that is full.
_NO_MEMORY = "can't allocate memory"
#: Of a checkpoint's state: the losses of the steps since the log's last row.
_UNLOGGED = "log.losses"


@dataclass(frozen=True)
class TrainResult:
    """Where a finished run lies and how well it does."""

    out: Path
    step: int
    loss: float
    score: Score | None
    #: The folder to use: `best` where there was validation, else `last`.
    checkpoint: Path
    #: Of several devices, only the first has written and says so.
    first_rank: bool = True


@contextmanager
def _named_memory() -> Iterator[None]:
    """Memory that is full, of a GPU or of the machine, as an error of ours."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the GPU has no memory left ({said_by(error)}): train with a smaller "
            "batch or tile"
        ) from error
    except RuntimeError as error:
        if _NO_MEMORY not in str(error):
            raise
        raise TrainingError(
            f"the machine has no memory left ({said_by(error)}): train with a smaller "
            "batch, tile or network"
        ) from error


@_named_memory()
def train(
    settings: TrainSettings,
    volumes: Sequence[AnnotatedVolume],
    validation: Sequence[AnnotatedVolume] = (),
    *,
    resume: bool = False,
    on_row: OnRow | None = None,
) -> TrainResult:
    """Train a network and write its checkpoints, log and curves into `settings.out`.

    Which crops a step sees depends on the seed and the step alone, so a run that was
    killed and resumed goes through the same losses as one that was not.

    Raises
    ------
    OutputError
        Where the run's folder is already there and `resume` is not asked for.
    CheckpointError
        Where what is to be resumed is of other settings or other volumes.
    TrainingError
        Where a loss or a gradient stops being finite, or a GPU or the machine has no
        memory left; the checkpoints written before stay.
    """
    if settings.loss.skeleton_recall:
        volumes = [
            v if (v.labels == SKELETON).any() else mark_skeleton(v) for v in volumes
        ]
    out = Path(settings.out)
    last, best = out / "last", out / "best"
    if not resume and out.exists() and not _is_empty(out):
        raise OutputError(
            f"{out} is there already: resume it with --resume, or choose another folder"
        )
    resumed = resume and is_checkpoint(last)
    if resume and not resumed:
        _require_begun(out)
    torch.manual_seed(settings.seed)
    if resumed and _has_donor(settings):
        begun = read_checkpoint(last).network
        settings = replace(settings, network=config_like(begun, settings.network))
    tuned = settings.init != "scratch" and not _has_donor(settings)
    used = {"training": listed(volumes), "validation": listed(validation)}
    if resumed:  # whatever became of what it started from
        begun_as = read_checkpoint(last)
        tuned = begun_as.tuned
        require_same(last, begun_as.volumes, used)
        used = begun_as.volumes
    else:
        used |= volumes_before(settings)
    settings, network, rows = _start(settings, fresh=not resumed)
    samples = Samples(
        volumes,
        settings.network.tile,
        settings.network.window,
        settings.augmentation,
        settings.seed,
        settings.shares,
        settings.neurite_share,
    )
    fabric = _fabric(settings)
    device = _device(settings) if fabric is None else fabric.device
    first_rank = fabric is None or fabric.global_rank == 0
    amp = _precision(settings, device)
    step, best_score, score, scored_at = 0, None, None, 0
    losses: list[float] = []
    network.to(device)
    for parameter in network.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(
                memory_format=torch.channels_last_3d
            )
    if resumed:
        rows = read_checkpoint(last).transfer
    optimiser = build_optimiser(network, settings, rows)
    average = RunningAverage(
        network, settings.ema, tuned_for=max(3, settings.steps) if tuned else None
    )
    if resumed:
        step, losses = _restore(last, settings, network, optimiser, average)
        score = _score_of(read_checkpoint(last))
        scored_at = read_checkpoint(last).figures.get("validation", {}).get("step", 0)
        if is_checkpoint(best):
            best_score = _score_of(read_checkpoint(best))
    if first_rank:
        _make(out)
        plain = json.dumps(settings.to_json(), indent=1)
        with written(out / "config.json"):
            write_atomically(out / "config.json", plain + "\n")
        log = Log(out / "log.csv", step)
    trained: Any = network
    stepper: Any = optimiser
    if fabric is not None:
        trained, stepper = fabric.setup(network, optimiser)
    shadow = Network(settings.network).to(device)

    def write(folder: Path, score: Score | None, *, state: bool) -> None:
        figures: dict[str, Any] = {}
        if score is not None:
            figures["validation"] = {
                "step": scored_at,
                "average_precision": score.average_precision,
                "dice": score.dice,
                "volumes": [v.name for v in validation],
            }
        checkpoint = Checkpoint(
            network=settings.network,
            step=step,
            name=settings.name,
            threshold=score.threshold if score else 0.5,
            voxel_size_um=_voxel_size_of(volumes, settings),
            transfer=rows,
            tuned=tuned,
            training=_portable(settings),
            figures=figures,
            volumes=used,
        )
        moments = None
        if state:
            moments = _moments(network, optimiser)
            moments[_UNLOGGED] = torch.tensor(losses, dtype=torch.float64)
        save_checkpoint(folder, checkpoint, average.tensors, moments)

    carried = len(losses)
    loss_value, norm_value, since = math.nan, math.nan, time.perf_counter()
    for voxels, labels in _batches(samples, settings, step, fabric):
        rate = learning_rate(step, settings)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        network.train()
        with torch.autocast(device.type, amp, enabled=amp is not None):
            logits = trained(
                voxels.to(device, non_blocking=True).contiguous(
                    memory_format=torch.channels_last_3d
                )
            )
        loss = segmentation_loss(
            logits, labels.to(device, non_blocking=True), settings.loss
        )
        optimiser.zero_grad(set_to_none=True)
        if fabric is None:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            fabric.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
        loss_value, norm_value = float(loss.detach()), float(norm)
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            raise TrainingError(_broken(step, settings, loss_value, norm_value, last))
        stepper.step()
        step += 1
        average.update(network, step)
        losses.append(loss_value)
        if not first_rank:
            continue
        ended = step == settings.steps
        due = bool(validation) and (ended or step % settings.validate_every == 0)
        if due:
            shadow.load_state_dict(average.tensors)
            score = validate(shadow, settings.network, validation, amp)
            scored_at = step
            if score is not None and (
                best_score is None
                or score.average_precision > best_score.average_precision
            ):
                best_score = score
                write(best, score, state=False)
        if due or ended or step % settings.log_every == 0:
            now = time.perf_counter()
            row = Row(
                step=step,
                loss=float(np.mean(losses)),
                learning_rate=rate,
                gradient_norm=norm_value,
                crops_per_s=(len(losses) - carried)
                * settings.batch
                / max(now - since, 1e-9),
                validation_average_precision=(
                    score.average_precision if due and score else None
                ),
                validation_dice=score.dice if due and score else None,
            )
            log.add(row)
            losses, carried, since = [], 0, now
            if on_row is not None:
                on_row(row)
        if ended or step % settings.save_every == 0:
            write(last, score, state=True)
            draw_curves(log.rows, out / "curves.png")
    chosen = last if best_score is None else best
    return TrainResult(out, step, loss_value, best_score, chosen, first_rank)


def _is_empty(out: Path) -> bool:
    return out.is_dir() and not any(out.iterdir())


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{out} cannot be made: {error.strerror}; choose another folder"
        ) from error


def _voxel_size_of(
    volumes: Sequence[AnnotatedVolume], settings: TrainSettings
) -> tuple[float, float, float] | None:
    """The voxel size of all volumes; None where it is not known, or not one."""
    sizes = {volume.voxel_size_um or settings.voxel_size_um for volume in volumes}
    return sizes.pop() if len(sizes) == 1 else None


def _portable(settings: TrainSettings) -> dict[str, Any]:
    """The settings without this machine's paths, which mean nothing elsewhere."""
    values: dict[str, Any] = json.loads(json.dumps(settings.to_json()))
    values["data"] = [Path(path).name for path in settings.data]
    del values["out"]
    if settings.init != "scratch" and not settings.init.startswith("timm:"):
        values["init"] = Path(settings.init).name
    return values


def require_settings(
    folder: Path, checkpoint: Checkpoint, settings: TrainSettings
) -> None:
    """Refuse to go on from a checkpoint whose settings would have learned otherwise.

    Raises
    ------
    CheckpointError
        Names the settings that differ.
    """
    free = {"workers", "device", "data", "log_every", "save_every", "name"}
    now, plain = _portable(settings), _portable(TrainSettings())
    # A field that is younger than the checkpoint had its default then.
    then = _over(plain, checkpoint.training)
    changed = sorted(
        name for name in now if name not in free and then[name] != now[name]
    )
    if changed:
        raise CheckpointError(
            f"{folder} was trained with another {', '.join(changed)}: resume with the "
            f"settings in {folder.parent / 'config.json'}, or start another run"
        )


def _over(plain: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Defaults with given values over them, table by table."""
    both = plain | given
    for name, value in plain.items():
        if isinstance(value, dict) and isinstance(both[name], dict):
            both[name] = _over(value, both[name])
    return both


def _has_donor(settings: TrainSettings) -> bool:
    """Whether the encoder starts from 2D weights, by `init` alone."""
    return settings.init != "scratch" and not is_checkpoint(Path(settings.init))


def volumes_before(settings: TrainSettings) -> dict[str, Listed]:
    """The volumes that a run's first weights were made with.

    `before` are those they learned from, `chosen before` those they were chosen by; no
    entry where it is not known.
    """
    if settings.init == "scratch" or _has_donor(settings):
        return {"before": []}
    theirs = read_checkpoint(Path(settings.init)).volumes
    if not {"before", "training"} <= set(theirs):
        return {}
    chosen = theirs.get("chosen before", []) + theirs.get("validation", [])
    return {
        "before": theirs["before"] + theirs["training"],
        **({"chosen before": chosen} if chosen else {}),
    }


def _start(
    settings: TrainSettings, *, fresh: bool
) -> tuple[TrainSettings, Network, list[dict[str, Any]]]:
    """A network with its first weights; its encoder has the shape of the donor's.

    A resumed run (not `fresh`) needs the donor no more.
    """
    if settings.init == "scratch" or not fresh:
        return settings, Network(settings.network), []
    path = Path(settings.init)
    if is_checkpoint(path):
        _require_no_transfer(settings)
        theirs = read_checkpoint(path)
        if theirs.network != settings.network:
            raise CheckpointError(
                f"{path} is of another configuration: its network is {theirs.network}, "
                f"not {settings.network}"
            )
        network = Network(settings.network)
        put_weights(network, load_weights(path), str(path))
        return settings, network, theirs.transfer
    donor = load_donor(settings.init, settings.donor_architecture)
    settings = replace(settings, network=config_for(donor, settings.network))
    network = Network(settings.network)
    rows = transfer(donor, network.encoder, settings.inflate)
    return settings, network, [row.to_json() for row in rows]


def _require_no_transfer(settings: TrainSettings) -> None:
    """Refuse what says how 2D weights become 3D, of weights that are 3D."""
    for name, plain in (("inflate", "center"), ("donor_architecture", "")):
        value = getattr(settings, name)
        if value != plain:
            raise ConfigError(
                f"{name} is {value!r}, and init is {settings.init}, a checkpoint "
                "whose weights are 3D already: leave it out"
            )


def _fabric(settings: TrainSettings) -> Any:
    """Lightning Fabric, launched, where there are several devices; else None."""
    if settings.devices == 1:
        return None
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise ConfigError(
            f"{settings.devices} devices need Lightning Fabric: pip install "
            "lightning-fabric"
        ) from error
    device = _device(settings)
    if device.index is not None:
        raise ConfigError(
            f"device {settings.device!r} is one device, and devices is "
            f"{settings.devices}: name their kind, {device.type}"
        )
    if device.type == "cuda" and torch.cuda.device_count() < settings.devices:
        raise ConfigError(
            f"{settings.devices} devices were asked for, and PyTorch sees "
            f"{torch.cuda.device_count()} GPUs here: use as many, or device = 'cpu'"
        )
    fabric = Fabric(accelerator=device.type, devices=settings.devices, strategy="ddp")
    fabric.launch()
    return fabric


def _device(settings: TrainSettings) -> torch.device:
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(settings.device)
    except RuntimeError as error:
        raise ConfigError(f"device {settings.device!r} is unknown: {error}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device {settings.device!r} was asked for, and PyTorch sees no GPU here: "
            "use cpu"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {settings.device!r} was asked for, and PyTorch sees "
            f"{torch.cuda.device_count()} here: they are counted from cuda:0"
        )
    if device.type not in ("cpu", "cuda"):
        try:
            torch.zeros(1, device=device).item()
        except RuntimeError as error:
            raise ConfigError(
                f"device {settings.device!r} was asked for, and PyTorch cannot use it "
                f"here ({said_by(error)}): use cpu"
            ) from error
    return device


def _precision(settings: TrainSettings, device: torch.device) -> torch.dtype | None:
    """The dtype to autocast to; None for float32."""
    if settings.precision == "fp32":
        return None
    if settings.precision == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    # Without AMX or AVX512-BF16 a CPU is slower in bf16 than in float32.
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else None


def _batches(
    samples: Samples, settings: TrainSettings, first_step: int, fabric: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of the steps that are left; with several devices, this one's part."""
    from torch.utils.data import DataLoader

    numbers = range(first_step * settings.batch, settings.steps * settings.batch)
    share = settings.batch // settings.devices
    rank = 0 if fabric is None else fabric.global_rank
    # No list: a run that somebody will stop has more steps than memory holds numbers.
    mine = (n for n in numbers if n % settings.batch // share == rank)
    loader: DataLoader[Any] = DataLoader(
        samples,  # type: ignore[arg-type]
        batch_size=share,
        sampler=mine,
        num_workers=settings.workers,
        prefetch_factor=4 if settings.workers else None,
        worker_init_fn=_one_thread if settings.workers else None,
    )
    yield from loader


def _one_thread(worker: int) -> None:
    del worker
    torch.set_num_threads(1)


def _moments(network: Network, optimiser: torch.optim.AdamW) -> dict[str, Tensor]:
    """Raw weights and the optimiser's moments, by the parameters' names."""
    tensors = {f"weights.{k}": v for k, v in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser.{key}.{name}"] = value
    return tensors


def _require_begun(out: Path) -> None:
    """Refuse to resume in a folder that holds anything but a run just begun."""
    ours = {"config.json", "log.csv", "curves.png", "last", "best"}
    theirs = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
    for name in theirs:
        if name not in ours and not name.startswith("."):
            raise OutputError(
                f"{out} holds {name} and no checkpoint to resume: choose another folder"
            )
    if theirs:
        try:
            begun = "steps" in json.loads((out / "config.json").read_bytes())
        except (OSError, ValueError, TypeError):
            begun = False
        if not begun:
            raise OutputError(
                f"{out} holds no run to resume (its config.json is not of one): choose "
                "another folder"
            )


def _restore(
    folder: Path,
    settings: TrainSettings,
    network: Network,
    optimiser: torch.optim.AdamW,
    average: RunningAverage,
) -> tuple[int, list[float]]:
    """Everything as it was after the checkpoint's last step.

    Returns that step, and the losses since the log's last row.
    """
    checkpoint = read_checkpoint(folder)
    require_settings(folder, checkpoint, settings)
    state = load_state(folder)
    weights = {
        name.removeprefix("weights."): value
        for name, value in state.items()
        if name.startswith("weights.")
    }
    put_weights(network, weights, str(folder))
    for name, value in load_weights(folder).items():
        average.tensors[name].copy_(value)
    for name, parameter in network.named_parameters():
        optimiser.state[parameter] = {
            key: _like(state[f"optimiser.{key}.{name}"], parameter, key)
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"optimiser.{key}.{name}" in state
        }
    unlogged = state.get(_UNLOGGED)  # checkpoints had none once
    return checkpoint.step, [] if unlogged is None else unlogged.tolist()


def _like(value: Tensor, parameter: Tensor, key: str) -> Tensor:
    if key == "step":
        return value
    return torch.empty_like(parameter).copy_(value)


def _score_of(checkpoint: Checkpoint) -> Score | None:
    figures = checkpoint.figures.get("validation")
    if not figures:
        return None
    return Score(figures["average_precision"], figures["dice"], checkpoint.threshold)


def _broken(
    step: int, settings: TrainSettings, loss: float, norm: float, last: Path
) -> str:
    first = step * settings.batch
    kept = (
        f"{last} holds the last good one"
        if is_checkpoint(last)
        else ("no checkpoint had been written yet")
    )
    return (
        f"training stopped at step {step}: the loss is {loss} and the gradient's norm "
        f"{norm} on the batch of samples {first} to {first + settings.batch - 1} "
        f"(seed {settings.seed}); {kept}; lower learning_rate or clip, or look at "
        "those samples"
    )
