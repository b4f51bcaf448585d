"""The options of an export, each in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from neurodeploy_export._errors import ExportRequestError

Precision = Literal["fp32", "fp16"]

#: Below 18 torch's exporter has to convert down; from 23 on attention becomes ONNX
#: `Attention`, whose FP32 form TensorRT cannot build.
OPSETS = range(18, 23)

#: Computed in FP32 inside an FP16 graph. Norms and powers square their input: |x| of
#: 256 is already beyond half (65504). Exponentials and sums lose their small terms.
KEEP_OPS: dict[str, str] = {
    **dict.fromkeys(
        (
            "InstanceNormalization",
            "LayerNormalization",
            "GroupNormalization",
            "RMSNormalization",
            "BatchNormalization",
            "LpNormalization",
        ),
        "a norm squares its input",
    ),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Exp"), "an exponential"),
    **dict.fromkeys(
        (
            "ReduceMean",
            "ReduceSum",
            "ReduceSumSquare",
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceProd",
            "GlobalAveragePool",
            "CumSum",
        ),
        "a long sum",
    ),
    **dict.fromkeys(("Pow", "Sqrt", "Reciprocal"), "a power"),
    "Range": "positions",
}


@dataclass(frozen=True)
class ParityLimits:
    """How far two answers may differ; beyond any of them they do not agree.

    `flips` is a share of all voxels, `dice` is between the two segmentations at the
    model's threshold, the others are differences of probability. A NaN or an infinity
    never agrees, whatever the limits.
    """

    flips: float
    dice: float
    max_difference: float
    p999_difference: float


@dataclass(frozen=True)
class ExportSettings:
    """What an export is asked for.

    Attributes
    ----------
    precision
        ``fp16`` adds a typed FP16 graph beside the FP32 one.
    io
        Type of the FP16 graph's input and output; ``fp16`` halves the bus traffic.
    max_batch
        The largest batch that engines are made for; None takes the ModelSpec's.
    keep_fp32
        Regular expressions, searched in node names (``decoder.up1/ConvTranspose``).
    keep_ops
        Operators that stay in FP32, each with the reason.
    absmax_limit
        Nodes whose values exceed this on the tiles stay in FP32.
    external_data_above_bytes
        Weights larger than this go to a file beside the graph.
    golden_limit_bytes
        Uncompressed size of the golden tiles; at least one tile is kept.
    about
        Markdown that opens the model card: data, licence, figures, limits.
    """

    precision: Precision = "fp32"
    io: Precision = "fp32"
    opset: int = 20
    max_batch: int | None = None
    keep_fp32: tuple[str, ...] = ()
    keep_ops: dict[str, str] = field(default_factory=lambda: dict(KEEP_OPS))
    absmax_limit: float = 1024.0
    external_data_above_bytes: int = 256 << 20
    golden_limit_bytes: int = 12 << 20
    limits_fp32: ParityLimits = ParityLimits(1e-5, 0.9999, 1e-3, 1e-4)
    limits_fp16: ParityLimits = ParityLimits(5e-4, 0.99, 0.1, 0.02)
    about: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("precision", "io"):
            value = getattr(self, name)
            if value not in get_args(Precision):
                raise ExportRequestError(f"{name} {value!r} is neither fp32 nor fp16")
        if self.opset not in OPSETS:
            raise ExportRequestError(
                f"opset {self.opset} cannot be used: {OPSETS.start} to "
                f"{OPSETS.stop - 1} can (below, torch converts its graph down; above, "
                "attention becomes an operator whose FP32 form TensorRT cannot build); "
                "leave --opset at 20"
            )
        if self.io == "fp16" and self.precision != "fp16":
            raise ExportRequestError("--io fp16 needs --precision fp16")
        if self.max_batch is not None and not 1 <= self.max_batch <= 4096:
            raise ExportRequestError(
                f"max batch {self.max_batch} is not between 1 and 4096"
            )
        for pattern in self.keep_fp32:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ExportRequestError(
                    f"--keep-fp32 {pattern!r} is not a regular expression: {error}"
                ) from None
