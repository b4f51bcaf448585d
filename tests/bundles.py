"""Bundles made for tests: real ones, whose network is one ONNX node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from neurodeploy_runtime import Bundle, BundleWriter, ModelSpec


def identity_spec(
    tile: tuple[int, int, int] = (8, 16, 16),
    *,
    window: tuple[int, int, int] | None = None,
    overlap: tuple[float, float, float] = (0.25, 0.25, 0.25),
    threshold: float = 0.5,
    normalisation: str = "unit",
) -> ModelSpec:
    return ModelSpec(
        name="identity",
        mode="volume" if window in (None, tile) else "slice",
        tile=tile,
        window=window or tile,
        overlap=overlap,
        threshold=threshold,
        normalisation=normalisation,  # type: ignore[arg-type]
    )


def write_identity_bundle(folder: Path, spec: ModelSpec) -> Bundle:
    """A bundle whose network gives the middle of its tile back."""
    axes = [2, 3, 4]
    starts = list(spec.margin)
    ends = [m + w for m, w in zip(spec.margin, spec.window, strict=True)]
    constants = [
        helper.make_tensor(name, TensorProto.INT64, [3], values)
        for name, values in (("starts", starts), ("ends", ends), ("axes", axes))
    ]
    graph = helper.make_graph(
        [
            helper.make_node(
                "Slice", ["voxels", "starts", "ends", "axes"], ["probability"]
            )
        ],
        "identity",
        [
            helper.make_tensor_value_info(
                "voxels", TensorProto.FLOAT, ["batch", 1, *spec.tile]
            )
        ],
        [
            helper.make_tensor_value_info(
                "probability", TensorProto.FLOAT, ["batch", 1, *spec.window]
            )
        ],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    tiles = np.random.default_rng(0).random((1, 1, *spec.tile), np.float32)
    middle = tuple(slice(s, e) for s, e in zip(starts, ends, strict=True))
    with BundleWriter(folder) as writer:
        onnx.save(model, str(writer.folder / "model.onnx"))
        np.savez_compressed(
            writer.folder / "golden.npz",
            voxels=tiles,
            probability=tiles[(slice(None), slice(None), *middle)],
        )
        return writer.seal(spec)
