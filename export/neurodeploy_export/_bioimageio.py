"""A bundle as a bioimage.io model package (specification 0.5).

The network's input is the *normalised* image: the specification has no step for
``asinh((v - background) / noise)``, and an approximation would change the answers. The
package's documentation gives the formula and this package's function for it.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from neurodeploy_runtime._bundle import Bundle
from neurodeploy_runtime._errors import OutputError, WriteError
from neurodeploy_runtime._spec import INPUT_NAME, OUTPUT_NAME

#: Old enough for the tools in use, new enough for ONNX with external data.
FORMAT_VERSION = "0.5.7"


def write_bioimageio(bundle: Bundle, path: Path, *, overwrite: bool = False) -> Path:
    """Write ``path`` (a zip) with the FP32 graph, a test tile and its answer.

    Raises
    ------
    OutputError
        The file exists and `overwrite` is not given.
    WriteError
        The disk is full or refuses.
    """
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists: choose another name, or pass --overwrite")
    from neurodeploy_export import _graph

    golden = bundle.golden()
    graph = bundle.onnx("fp32")
    weights = [graph, *_graph.external_files(_graph.load_skeleton(graph), bundle.path)]
    contents: dict[str, bytes | Path] = {
        "test_input.npy": _npy(golden.voxels[:1]),
        "test_output.npy": _npy(golden.probability[:1]),
        "README.md": _documentation(bundle).encode(),
        **{file.name: file for file in weights},
    }
    description = json.dumps(_describe(bundle, weights, contents), indent=1)
    part = path.with_name(f".{path.name}.partial")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            # JSON is YAML.
            archive.writestr("rdf.yaml", description)
            for name, content in contents.items():
                if isinstance(content, Path):
                    archive.write(content, name, zipfile.ZIP_STORED)
                else:
                    archive.writestr(name, content)
        part.replace(path)
    except OSError as error:
        raise WriteError(
            f"cannot write {path}: {error.strerror or error}; free space there"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return path


def _npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def _describe(
    bundle: Bundle, weights: list[Path], contents: dict[str, bytes | Path]
) -> dict[str, Any]:
    from neurodeploy_export import _graph

    spec = bundle.spec
    opset = _graph.load_skeleton(weights[0]).opset_import[0].version

    def space(shape: tuple[int, int, int]) -> list[dict[str, Any]]:
        axes = []
        scale = spec.voxel_size_um or (1.0, 1.0, 1.0)
        for name, size, voxel in zip("zyx", shape, scale, strict=True):
            axis: dict[str, Any] = {"type": "space", "id": name, "size": size}
            if spec.voxel_size_um is not None:
                axis |= {"unit": "micrometer", "scale": voxel}
            axes.append(axis)
        return axes

    outer: list[dict[str, Any]] = [
        {"type": "batch", "id": "batch"},
        {"type": "channel", "id": "channel", "channel_names": ["image"]},
    ]
    # No halo: bioimageio.core 0.11 pads a sample by it, and a tile has one size.
    outputs = space(spec.window)
    onnx_entry: dict[str, Any] = {
        "source": weights[0].name,
        "sha256": bundle.files[weights[0].name],
        "opset_version": opset,
        "parent": None,
    }
    if len(weights) > 1:
        onnx_entry["external_data"] = {
            "source": weights[1].name,
            "sha256": bundle.files[weights[1].name],
        }

    def file(name: str) -> dict[str, str]:
        content = contents[name]
        assert isinstance(content, bytes)
        return {"source": name, "sha256": hashlib.sha256(content).hexdigest()}

    return {
        "format_version": FORMAT_VERSION,
        "type": "model",
        "name": f"{_plain(spec.name)} (neurites)",
        "description": f"Segments neurites in 3D light microscopy ({spec.mode} mode).",
        "authors": [{"name": "the authors of neurodeploy"}],
        "cite": [
            {
                "text": "Vision Transformers for volumes with weights of a 2D donor",
                "doi": "10.48550/arXiv.2010.11929",
            }
        ],
        "license": "BSD-3-Clause",
        "documentation": file("README.md"),
        "tags": ["neuron", "segmentation", "3d", "light-microscopy"],
        "inputs": [
            {
                "id": INPUT_NAME,
                "description": "normalised voxels, see the documentation",
                "axes": [*outer, *space(spec.tile)],
                "data": {"type": "float32"},
                "test_tensor": file("test_input.npy"),
            }
        ],
        "outputs": [
            {
                "id": OUTPUT_NAME,
                "description": f"of a neurite; one above {spec.threshold:g}",
                "axes": [
                    outer[0],
                    {**outer[1], "channel_names": ["neurite"]},
                    *outputs,
                ],
                "data": {"type": "float32", "range": [0.0, 1.0]},
                "test_tensor": file("test_output.npy"),
            }
        ],
        "weights": {"onnx": onnx_entry},
        "config": {
            "bioimageio": {
                "reproducibility_tolerance": [
                    {
                        "relative_tolerance": 1e-3,
                        "absolute_tolerance": 1e-3,
                        "mismatched_elements_per_million": 10,
                    }
                ]
            }
        },
    }


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in " _-()" else " " for c in name)


def _documentation(bundle: Bundle) -> str:
    spec = bundle.spec
    formula = (
        "`asinh((v - background) / noise)`: background is the median of the volume's "
        "voxels, noise the distance from its 15.87th percentile to it"
        if spec.normalisation == "background-asinh"
        else "voxels over the largest value of their type"
    )
    return (
        f"# {spec.name}\n\n"
        "Segments neurites in 3D light microscopy. The model takes a **normalised** "
        f"volume: {formula}, both taken once for a whole volume. In Python, "
        "`neurodeploy_runtime.Histogram` gives them and `Normalisation.apply` does "
        "it.\n\n"
        f"A voxel is a neurite above probability {spec.threshold:g}. "
        + (
            f"Trained at {spec.voxel_size_um} µm per voxel (z, y, x).\n"
            if spec.voxel_size_um
            else ""
        )
        + "\n# Validation\n\nThe test tensors are of neurodeploy's parity check, which "
        "held this graph to the network in PyTorch.\n"
    )
