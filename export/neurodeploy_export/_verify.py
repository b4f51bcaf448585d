"""A bundle's golden tiles, on every engine that this machine has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neurodeploy_export._parity import Parity, compare
from neurodeploy_export._settings import ExportSettings, ParityLimits
from neurodeploy_runtime._bundle import Bundle, load_bundle
from neurodeploy_runtime._errors import NeurodeployError
from neurodeploy_runtime._golden import Golden
from neurodeploy_runtime.engines._base import EngineSettings, PrecisionName
from neurodeploy_runtime.engines._choose import (
    ADAPTERS,
    Adapter,
    Choice,
    open_engines,
    require_device,
)
from neurodeploy_runtime.engines._timing import tile_seconds

_DEFAULTS = ExportSettings()
#: bfloat16 has three bits of mantissa less than half.
LIMITS: dict[str, ParityLimits] = {
    "fp32": _DEFAULTS.limits_fp32,
    "fp16": _DEFAULTS.limits_fp16,
    "bf16": ParityLimits(4e-3, 0.97, 0.4, 0.1),
}


@dataclass(frozen=True)
class Verdict:
    """What one engine said to the golden tiles.

    `parity` is None where it could not be asked; then `reason` says why. `seconds`
    is the median for one tile of a batch of `batch`. It agrees where there are no
    `failures`.
    """

    engine: str
    device: str
    precision: PrecisionName
    parity: Parity | None
    failures: tuple[str, ...] = ()
    reason: str | None = None
    seconds: float | None = None
    batch: int | None = None

    @property
    def agrees(self) -> bool | None:
        """None where it could not be asked."""
        return None if self.parity is None else not self.failures


def verify_bundle(bundle: str | Path | None, device: str = "auto") -> Iterator[Verdict]:
    """Ask every engine of this machine, best first; a verdict each, as it comes.

    Opening the bundle has verified its hashes. `device` is ``auto`` for all of them,
    ``cpu`` or ``cuda:N``. Each is asked in the batches that a run would give it, with
    a tile in every place of them. An engine that is possible and then fails to load or
    to run has a verdict with that as its failure, not an exception.
    """
    require_device(device)
    if device == "cuda":
        device = "cuda:0"
    opened = load_bundle(bundle)
    golden = opened.golden()
    for adapter in ADAPTERS:
        on_cuda = adapter.device == "cuda"
        if device != "auto" and device.startswith("cuda") != on_cuda:
            continue
        place = device if device != "auto" else ("cuda:0" if on_cuda else "cpu")
        half: PrecisionName = "fp16" if on_cuda else "bf16"
        for precision in ("fp32", half):
            settings = EngineSettings(device=place, precision=precision)
            yield _ask(adapter, opened, golden, settings)


def _ask(
    adapter: Adapter, bundle: Bundle, golden: Golden, settings: EngineSettings
) -> Verdict:
    where = (adapter.name, settings.device, settings.precision)
    reason = adapter.why_not(bundle, settings)
    lacks_half = settings.precision == "fp16" and "fp16" not in bundle.precisions
    if reason is None and lacks_half:
        reason = "the bundle has no FP16 graph: export with --precision fp16"
    if reason is not None:
        return Verdict(*where, None, reason=reason)
    choice = Choice(adapter, settings, ())
    try:
        # As a run opens it: a batch that a GPU does not hold is halved.
        (engine,) = open_engines(bundle, [choice])
        with engine:
            tiles = golden.batches(engine.batch)
            answers = np.empty(
                (*tiles.shape, *golden.probability.shape[1:]), np.float32
            )
            for numbers, out in zip(tiles, answers, strict=True):
                engine.infer(golden.voxels[numbers], out)
            times = tile_seconds(engine, 2)
    except NeurodeployError as error:
        nothing = compare(
            "verify", golden.probability, golden.probability * np.nan, 0.5
        )
        return Verdict(*where, nothing, failures=(str(error),))
    frozen = golden.probability[tiles.ravel()]
    answers = answers.reshape(frozen.shape)
    parity = compare("verify", frozen, answers, bundle.spec.threshold)
    found = parity.failures(LIMITS[settings.precision])
    return Verdict(
        *where,
        parity,
        tuple(found),
        seconds=float(np.median(times)),
        batch=engine.batch,
    )
