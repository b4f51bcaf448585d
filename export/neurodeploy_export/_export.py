"""From a network to a bundle, each step proven against the one before."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_export import _card
from neurodeploy_export._errors import ExportError, ExportRequestError, ParityError
from neurodeploy_export._parity import Parity, compare, picture
from neurodeploy_export._settings import ExportSettings, ParityLimits
from neurodeploy_export._tiles import check_tiles, write_golden
from neurodeploy_runtime._bundle import ONNX, Bundle, BundleWriter
from neurodeploy_runtime._errors import WriteError
from neurodeploy_runtime._spec import ModelSpec

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from neurodeploy_export._build import BuildSettings
    from neurodeploy_export._progress import Progress

REPORT = "fp16_report.json"


def export_bundle(
    module: nn.Module,
    spec: ModelSpec,
    tiles: NDArray[np.float32],
    settings: ExportSettings,
    out: str | Path,
    *,
    engine: BuildSettings | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Export a network to a bundle that gives the same answers on these tiles.

    Parameters
    ----------
    module
        Takes (B, 1, *tile) float32 normalised voxels, gives (B, 1, *window) float32
        probabilities; on the CPU, in evaluation mode.
    spec
        What the bundle will say of it; `parity` and `max_batch` are filled in.
    tiles
        (N, 1, *tile) float32, normalised, with signal in them.
    out
        The bundle's folder; it exists only after everything has agreed.
    engine
        Also build a TensorRT engine with these settings.
    progress
        Told what is being done.

    Raises
    ------
    ExportRequestError
        The network, the tiles or the settings cannot be exported; nothing was written.
    ParityError
        A step's answers differ by more than the settings' limits. The worst tile is
        left as ``<out>.failed-<step>.png``, or with a number where that is there;
        nothing has the name `out`.
    ExportError, PrecisionError, WriteError
        The export failed otherwise; nothing has the name `out`.
    """
    from neurodeploy_export import _onnx

    tell = progress or (lambda text, share: None)
    _onnx.check_module(module)
    spec = replace(spec, max_batch=settings.max_batch or spec.max_batch)
    tiles = check_tiles(tiles, spec)
    with BundleWriter(out, overwrite=settings.overwrite) as writer:
        run = _Run(Path(out), writer.folder, spec, settings, tiles, tell)
        tell("asking the network itself", None)
        reference = _torch_answers(module, tiles, spec)
        _require_foreground(reference, spec, settings)
        tell("writing ONNX", None)
        model = _onnx.export_onnx(module, spec, settings, writer.folder / ONNX["fp32"])
        steps = run.prove_fp32(model, reference)
        if settings.precision == "fp16":
            steps |= run.prove_fp16(model, reference)
        golden = write_golden(
            writer.folder, tiles, reference, spec.threshold, settings.golden_limit_bytes
        )
        parity: dict[str, Any] = {
            "steps": {name: step.to_json() for name, step in steps.items()},
            "golden_tiles": golden,
            "checked_with": _machine(),
        }
        if engine is not None:
            from neurodeploy_export._build import build_into

            built = build_into(writer.folder, spec, engine, tell)
            parity["engine"] = built.to_json()
        spec = replace(spec, parity=parity)
        card = _card.render(spec, settings.about)
        (writer.folder / "MODEL_CARD.md").write_text(card, "utf-8")
        tell("sealing the bundle", None)
        _make_durable(writer.folder)
        return writer.seal(spec)


class _Run:
    """One export's tiles, settings and folder."""

    def __init__(
        self,
        out: Path,
        folder: Path,
        spec: ModelSpec,
        settings: ExportSettings,
        tiles: NDArray[np.float32],
        tell: Progress,
    ) -> None:
        self.out, self.folder, self.spec = out, folder, spec
        self.settings, self.tiles, self.tell = settings, tiles, tell

    def prove_fp32(
        self, model: onnx.ModelProto, reference: NDArray[np.float32]
    ) -> dict[str, Parity]:
        """The FP32 graph against the network, one tile at a time and in pairs."""
        from neurodeploy_export import _graph, _ranges

        _graph.check_sizes(model, self.spec.max_batch)
        self.tell("comparing ONNX with the network", None)
        pairs = self.tiles if len(self.tiles) > 1 else np.repeat(self.tiles, 2, axis=0)
        answers = _ranges.run(model, self.folder, pairs, batch=2)[: len(self.tiles)]
        return {
            "onnx": self._gate("onnx", reference, answers, self.settings.limits_fp32)
        }

    def prove_fp16(
        self, model: onnx.ModelProto, reference: NDArray[np.float32]
    ) -> dict[str, Parity]:
        """Write the FP16 graph, and hold it to the network's answers."""
        from neurodeploy_export import _graph, _half, _ranges

        model = _graph.infer(model)
        self.tell("measuring the range of every node", None)
        absmax = _ranges.measure(model, self.folder, self.tiles).absmax
        self.tell("writing the FP16 graph", None)
        path = self.folder / ONNX["fp16"]
        report = _half.write_half(model, self.folder, absmax, self.settings, path)
        half = _graph.infer(_graph.load_skeleton(path))
        self.tell("rounding as FP16 does, node by node", None)
        found = _ranges.measure_rounded(half, self.folder, self.tiles)
        overflow = _ranges.first_overflow(half, found.absmax)
        (self.folder / REPORT).write_text(
            json.dumps({**report.to_json(), "absmax": _finite(absmax)}, indent=1)
        )
        if overflow is not None:
            raise ExportError(
                f"FP16 overflows at {overflow.node} ({overflow.operator}): it reaches "
                f"{overflow.magnitude:.4g}, half ends at {_half.HALF_MAX:.0f}; keep it "
                f"in FP32 with --keep-fp32 '{overflow.node}'"
            )
        # The file itself: that it loads and runs. Its numbers are FP32's on a CPU.
        self._finite_answers(_ranges.run(half, self.folder, self.tiles[:1]))
        return {
            "fp16": self._gate(
                "fp16", reference, found.answers, self.settings.limits_fp16
            )
        }

    def _gate(
        self,
        step: str,
        before: NDArray[np.float32],
        after: NDArray[np.float32],
        limits: ParityLimits,
    ) -> Parity:
        parity = compare(step, before, after, self.spec.threshold)
        image = picture(parity, self.tiles, before, after, self.spec)
        if parity.failures(limits):
            left = self._name_of_failure(step)
            left.write_bytes(image)
            parity.require(limits, f"the worst tile is drawn in {left}")
        (self.folder / f"parity_{step}.png").write_bytes(image)
        return parity

    def _name_of_failure(self, step: str) -> Path:
        """Beside the bundle; not that of a file that is there, unless it may be."""
        name = f"{self.out.name}.failed-{step}"
        left, number = self.out.with_name(f"{name}.png"), 1
        while left.exists() and not self.settings.overwrite:
            number += 1
            left = self.out.with_name(f"{name}-{number}.png")
        return left

    def _finite_answers(self, answers: NDArray[np.float32]) -> None:
        bad = int(np.count_nonzero(~np.isfinite(answers)))
        if bad:
            raise ParityError(f"the FP16 file gives {bad} values that are not finite")


def _torch_answers(
    module: nn.Module, tiles: NDArray[np.float32], spec: ModelSpec
) -> NDArray[np.float32]:
    """The network's own answers; refused where they are no probabilities."""
    import torch

    found = []
    with torch.inference_mode():
        for tile in tiles:
            found.append(module(torch.from_numpy(tile[None])).float().numpy())
    answers = np.concatenate(found)
    wanted = (len(tiles), 1, *spec.window)
    if answers.shape != wanted:
        raise ExportRequestError(
            f"the network gives {answers.shape}, its specification says {wanted}"
        )
    if not np.isfinite(answers).all():
        bad = int(np.count_nonzero(~np.isfinite(answers)))
        raise ExportRequestError(
            f"the network itself gives {bad} NaN or infinite values on these tiles: "
            "the checkpoint is broken, or the tiles are not normalised as it expects"
        )
    if answers.min() < 0 or answers.max() > 1:
        raise ExportRequestError(
            f"the network gives values from {answers.min():.3g} to "
            f"{answers.max():.3g}, not probabilities: end it with a sigmoid"
        )
    return answers


def _require_foreground(
    reference: NDArray[np.float32], spec: ModelSpec, settings: ExportSettings
) -> None:
    """Refuse tiles in which the network finds nothing, where labels are to prove it.

    A graph that collapsed to background would agree on all of them (TensorRT #4723).
    """
    least_dice = min(settings.limits_fp32.dice, settings.limits_fp16.dice)
    if least_dice > 0 and float(reference.max()) < spec.threshold:
        raise ExportRequestError(
            f"the network finds nothing on these tiles (its largest answer is "
            f"{reference.max():.3g}, its threshold {spec.threshold:.3g}), and a graph "
            "that never finds anything would agree: give an image with neurites in it "
            "with --tiles, or ask for no Dice with --min-dice 0"
        )


def _make_durable(folder: Path) -> None:
    """Have every file reach the disk before the bundle takes its name."""
    for file in folder.rglob("*"):
        if not file.is_file():
            continue
        try:
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        except OSError as error:
            raise WriteError(
                f"the disk did not take {file.name}: {error.strerror or error}; free "
                "space there, or choose another folder"
            ) from error


def _finite(absmax: dict[str, float]) -> dict[str, float | str]:
    return {k: v if np.isfinite(v) else str(v) for k, v in absmax.items()}


def _machine() -> dict[str, str]:
    versions = {}
    for name in ("torch", "onnx", "onnxruntime-gpu", "onnxruntime"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**versions, "python": platform.python_version(), "on": "cpu"}
