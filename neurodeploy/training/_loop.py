"""The training loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurodeploy._errors import CheckpointError, ConfigError, TrainingError
from neurodeploy.data import AnnotatedVolume, Samples
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
from neurodeploy.training._log import Log, Row, draw_curves
from neurodeploy.training._losses import segmentation_loss
from neurodeploy.training._optimiser import (
    RunningAverage,
    build_optimiser,
    learning_rate,
)
from neurodeploy.training._settings import TrainSettings
from neurodeploy.training._validate import Score, validate
from neurodeploy_runtime._errors import OutputError

OnRow = Callable[[Row], None]


@dataclass(frozen=True)
class TrainResult:
    """Where a finished run lies and how well it does."""

    out: Path
    step: int
    loss: float
    score: Score | None
    #: The folder to use: `best` where there was validation, else `last`.
    checkpoint: Path


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
        Where what is to be resumed is of other settings.
    TrainingError
        Where a loss or a gradient stops being finite; the checkpoints written before
        stay.
    """
    out = Path(settings.out)
    last, best = out / "last", out / "best"
    if not resume and out.exists() and any(out.iterdir()):
        raise OutputError(
            f"{out} is there already: resume it with --resume, or choose another folder"
        )
    samples = Samples(
        volumes,
        settings.network.tile,
        settings.network.window,
        settings.augmentation,
        settings.seed,
        settings.shares,
        settings.neurite_share,
    )
    device = _device(settings)
    amp = _precision(settings, device)
    torch.manual_seed(settings.seed)
    network = Network(settings.network)
    step, best_score, rows = 0, None, _start(network, settings)
    resumed = resume and is_checkpoint(last)
    network.to(device=device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimiser = build_optimiser(network, settings, transferred=bool(rows))
    average = RunningAverage(network, settings.ema)
    if resumed:
        step, rows = _restore(last, settings, network, optimiser, average)
        if is_checkpoint(best):
            best_score = _score_of(read_checkpoint(best))
    out.mkdir(parents=True, exist_ok=True)
    config_file = out / "config.json"
    config_file.write_text(json.dumps(settings.to_json(), indent=1) + "\n", "utf-8")
    log = Log(out / "log.csv", step)
    shadow = Network(settings.network).to(device)

    def write(folder: Path, score: Score | None, *, state: bool) -> None:
        figures: dict[str, Any] = {}
        if score is not None:
            figures["validation"] = {
                "average_precision": score.average_precision,
                "dice": score.dice,
                "volumes": [v.name for v in validation],
            }
        checkpoint = Checkpoint(
            network=settings.network,
            step=step,
            name=settings.name,
            threshold=score.threshold if score else 0.5,
            transfer=rows,
            training=_portable(settings),
            figures=figures,
        )
        moments = _moments(network, optimiser) if state else None
        save_checkpoint(folder, checkpoint, average.tensors, moments)

    score: Score | None = None
    losses: list[float] = []
    loss_value, norm_value, since = math.nan, math.nan, time.perf_counter()
    for voxels, labels in _batches(samples, settings, step):
        rate = learning_rate(step, settings)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        network.train()
        with torch.autocast(device.type, amp, enabled=amp is not None):
            logits = network(
                voxels.to(device, non_blocking=True).contiguous(
                    memory_format=torch.channels_last_3d
                )
            )
        loss = segmentation_loss(
            logits, labels.to(device, non_blocking=True), settings.loss
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
        loss_value, norm_value = float(loss.detach()), float(norm)
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            raise TrainingError(_broken(step, settings, loss_value, norm_value, last))
        optimiser.step()
        step += 1
        average.update(network, step)
        losses.append(loss_value)
        ended = step == settings.steps
        due = bool(validation) and (ended or step % settings.validate_every == 0)
        if due:
            shadow.load_state_dict(average.tensors)
            score = validate(shadow, settings.network, validation, amp)
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
                crops_per_s=len(losses) * settings.batch / max(now - since, 1e-9),
                validation_average_precision=(
                    score.average_precision if due and score else None
                ),
                validation_dice=score.dice if due and score else None,
            )
            log.add(row)
            losses, since = [], now
            if on_row is not None:
                on_row(row)
        if ended or step % settings.save_every == 0:
            write(last, score, state=True)
            draw_curves(log.rows, out / "curves.png")
    chosen = best if is_checkpoint(best) else last
    return TrainResult(out, step, loss_value, best_score, chosen)


def _portable(settings: TrainSettings) -> dict[str, Any]:
    """The settings without this machine's paths, which mean nothing elsewhere."""
    values: dict[str, Any] = json.loads(json.dumps(settings.to_json()))
    values["data"] = [Path(path).name for path in settings.data]
    del values["out"]
    if not settings.init.startswith("timm:"):
        values["init"] = Path(settings.init).name
    return values


def _start(network: Network, settings: TrainSettings) -> list[dict[str, Any]]:
    """Put a donor's or a checkpoint's weights into a new network."""
    if settings.init == "scratch":
        return []
    path = Path(settings.init)
    if is_checkpoint(path):
        theirs = read_checkpoint(path)
        if theirs.network != settings.network:
            raise CheckpointError(
                f"{path} is of another configuration: its network is {theirs.network}, "
                f"not {settings.network}"
            )
        put_weights(network, load_weights(path), str(path))
        return theirs.transfer
    from neurodeploy.transfer import load_donor, transfer

    donor = load_donor(settings.init)
    return [row.to_json() for row in transfer(donor, network.encoder, settings.inflate)]


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
    samples: Samples, settings: TrainSettings, first_step: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of the steps that are left."""
    from torch.utils.data import DataLoader

    numbers = range(first_step * settings.batch, settings.steps * settings.batch)
    loader: DataLoader[Any] = DataLoader(
        samples,  # type: ignore[arg-type]
        batch_size=settings.batch,
        sampler=numbers,
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


def _restore(
    folder: Path,
    settings: TrainSettings,
    network: Network,
    optimiser: torch.optim.AdamW,
    average: RunningAverage,
) -> tuple[int, list[dict[str, Any]]]:
    """Everything as it was after the checkpoint's last step."""
    checkpoint = read_checkpoint(folder)
    now = _portable(settings)
    free = {"workers", "device", "data", "log_every", "save_every", "name"}
    changed = sorted(
        name
        for name in now
        if name not in free and checkpoint.training.get(name) != now[name]
    )
    if changed:
        raise CheckpointError(
            f"{folder} was trained with another {', '.join(changed)}: resume with the "
            f"settings in {folder.parent / 'config.json'}, or start another run"
        )
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
    return checkpoint.step, checkpoint.transfer


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


def split(
    volumes: Sequence[AnnotatedVolume], share: float, seed: int
) -> tuple[list[AnnotatedVolume], list[AnnotatedVolume]]:
    """Training and validation volumes, by a seed; never an empty training part."""
    order = np.random.default_rng(seed).permutation(len(volumes))
    held = 0 if share == 0 or len(volumes) < 2 else max(1, round(share * len(volumes)))
    held = min(held, len(volumes) - 1)
    chosen = set(order[:held].tolist())
    return (
        [v for i, v in enumerate(volumes) if i not in chosen],
        [v for i, v in enumerate(volumes) if i in chosen],
    )
