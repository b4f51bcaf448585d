"""Bundles that the benchmarks run: two exact ones, and the network of `peers.py`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurodeploy_runtime import Bundle, BundleWriter, ModelSpec, load_bundle
from neurodeploy_runtime._normalise import Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import NodeProto
    from torch import nn

Shape = tuple[int, int, int]


def identity_bundle(folder: Path, tile: Shape, overlap: float = 0.25) -> Bundle:
    """A bundle whose network gives its input back; for `NumpyEngine`, and for ONNX."""
    from onnx import helper

    node = helper.make_node("Identity", ["voxels"], ["probability"])
    return _exact_bundle(folder, "identity", tile, overlap, [node], {})


def convolution_bundle(folder: Path, tile: Shape, overlap: float = 0.25) -> Bundle:
    """A small network of real convolutions whose answer is its input all the same.

    Four channels of 3 × 3 × 3, a ReLU, and their mean: the kernels are 1 in their
    middle, so every voxel of the answer can be checked, to the bit.
    """
    from onnx import helper

    middle = np.zeros((4, 1, 3, 3, 3), np.float32)
    middle[:, :, 1, 1, 1] = 1
    mean = np.full((1, 4, 1, 1, 1), 0.25, np.float32)
    nodes = [
        helper.make_node("Conv", ["voxels", "middle"], ["features"], pads=[1] * 6),
        helper.make_node("Relu", ["features"], ["positive"]),
        helper.make_node("Conv", ["positive", "mean"], ["probability"]),
    ]
    weights = {"middle": middle, "mean": mean}
    return _exact_bundle(folder, "convolutions", tile, overlap, nodes, weights)


def _exact_bundle(
    folder: Path,
    name: str,
    tile: Shape,
    overlap: float,
    nodes: list[NodeProto],
    weights: dict[str, NDArray[np.float32]],
) -> Bundle:
    from onnx import TensorProto, helper, numpy_helper

    if folder.is_dir():
        return load_bundle(folder)
    voxels, probability = (
        helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", 1, *tile])
        for value in ("voxels", "probability")
    )
    tensors = [numpy_helper.from_array(values, key) for key, values in weights.items()]
    graph = helper.make_graph(nodes, name, [voxels], [probability], tensors)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    spec = ModelSpec(
        name=name,
        mode="volume",
        tile=tile,
        window=tile,
        overlap=(overlap,) * 3,
        threshold=0.5,
        normalisation="unit",
    )
    return _write(folder, spec, model.SerializeToString(), None)


def network_bundle(
    folder: Path,
    network: nn.Module,
    *,
    name: str,
    tile: Shape,
    overlap: float,
    flop_per_tile: float,
    normalisation: Kind = "background-asinh",
) -> Bundle:
    """A bundle of any torch network that takes and gives (B, 1, *tile) probabilities.

    Written with torch's own exporter, opset 20, and without the proof that
    `neurodeploy export` asks for: `peers.py` compares the answers itself.
    """
    import torch

    if folder.is_dir():
        return load_bundle(folder)
    spec = ModelSpec(
        name=name,
        mode="volume",
        tile=tile,
        window=tile,
        overlap=(overlap,) * 3,
        threshold=0.5,
        normalisation=normalisation,
        flop_per_tile=flop_per_tile,
    )
    example = torch.rand(2, 1, *tile)
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        opset_version=20,
        input_names=["voxels"],
        output_names=["probability"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
        external_data=False,
        verbose=False,
    )
    assert program is not None
    return _write(folder, spec, program.model_proto.SerializeToString(), network)


def _write(
    folder: Path, spec: ModelSpec, model: bytes, network: nn.Module | None
) -> Bundle:
    voxels = np.random.default_rng(0).random((1, 1, *spec.tile), np.float32)
    probability = voxels
    if network is not None:
        import torch

        with torch.inference_mode():
            probability = network(torch.from_numpy(voxels)).numpy()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with BundleWriter(folder) as writer:
        (writer.folder / "model.onnx").write_bytes(model)
        np.savez_compressed(
            writer.folder / "golden.npz", voxels=voxels, probability=probability
        )
        return writer.seal(spec)
