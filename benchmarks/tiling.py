"""What tiling and blending cost without a network: ours against the peers'.

    python benchmarks/tiling.py                 # every peer that is installed
    python benchmarks/tiling.py --sizes 128 --repeat 1

Prints Mvoxel per CPU-second, the peak of memory over what the process held before, and
the largest error of an identity network (0 to 255), one thread each, in fresh
processes, in turn. Ours takes uint8 and gives uint8; the peers are handed the float32
copy that they need inside the measured part, and may leave their float32 result.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from _bundles import identity_bundle
from _process import answer, in_fresh_process, metered
from _results import save, spread, stamp, table
from numpy.typing import NDArray

TILE = 96
OVERLAP = 0.25

Tiler = Callable[[NDArray[np.uint8]], NDArray[Any]]


def ours(folder: Path) -> Tiler:
    from neurodeploy_runtime import (
        Normalisation,
        NumpyEngine,
        Segmenter,
        SegmentSettings,
    )

    bundle = identity_bundle(folder / "identity", (TILE,) * 3, OVERLAP)
    settings = SegmentSettings(
        output_kind="probability", normalisation=Normalisation("unit", 0.0, 255.0)
    )
    segmenter = Segmenter(bundle, settings, engines=[NumpyEngine(bundle)])
    return segmenter.segment_array


def _identity() -> Any:
    import torch

    torch.set_num_threads(1)
    network = torch.nn.Conv3d(1, 1, 1, bias=False)
    torch.nn.init.ones_(network.weight)
    return network.eval()


def monai(mode: str) -> Tiler:
    import torch
    from monai.inferers import sliding_window_inference

    network = _identity()

    def run(volume: NDArray[np.uint8]) -> NDArray[Any]:
        with torch.inference_mode():
            voxels = torch.from_numpy(volume).float()[None, None]
            result = sliding_window_inference(
                voxels, (TILE,) * 3, 1, network, overlap=OVERLAP, mode=mode
            )
        array: NDArray[Any] = result[0, 0].numpy()
        return array

    return run


def torchio() -> Tiler:
    import torch
    import torchio as tio

    network = _identity()
    shared = round(TILE * OVERLAP)

    def run(volume: NDArray[np.uint8]) -> NDArray[Any]:
        image = tio.ScalarImage(tensor=torch.from_numpy(volume).float()[None])
        sampler = tio.inference.GridSampler(
            tio.Subject(image=image), TILE, shared, padding_mode=None
        )
        joiner = tio.inference.GridAggregator(sampler, overlap_mode="hann")
        with torch.inference_mode():
            for patch in sampler:
                data = network(patch["image"][tio.DATA][None])
                joiner.add_batch(data, patch[tio.LOCATION][None])
        array: NDArray[Any] = joiner.get_output_tensor()[0].numpy()
        return array

    return run


def nnunet() -> Tiler:
    """Its predictor's own tiling loop, with the identity in place of its network."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=1 - OVERLAP,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.network = _identity()

    class Patch:
        patch_size = (TILE,) * 3

    class Label:
        num_segmentation_heads = 1

    predictor.configuration_manager = Patch()
    predictor.label_manager = Label()

    def run(volume: NDArray[np.uint8]) -> NDArray[Any]:
        with torch.inference_mode():
            voxels = torch.from_numpy(volume).float()[None]
            result = predictor.predict_sliding_window_return_logits(voxels)
        array: NDArray[Any] = result[0].float().numpy()
        return array

    return run


def torch_em() -> Tiler:
    """Halos cropped, not blended: 12 voxels on each side make 25 % overlap."""
    import torch
    from torch_em.util.prediction import predict_with_halo

    network = _identity()
    halo = round(TILE * OVERLAP / 2)

    def run(volume: NDArray[np.uint8]) -> NDArray[Any]:
        output = np.zeros(volume.shape, np.float32)
        with torch.inference_mode():
            predict_with_halo(
                volume,
                network,
                ["cpu"],
                (TILE - 2 * halo,) * 3,
                (halo,) * 3,
                output=output,
                preprocess=lambda block: block.astype(np.float32),
                disable_tqdm=True,
            )
        return output

    return run


#: Name; the module that it needs; how it is made.
TILERS: dict[str, tuple[str, Callable[[Path], Tiler]]] = {
    "neurodeploy": ("neurodeploy_runtime", ours),
    "MONAI gaussian": ("monai", lambda folder: monai("gaussian")),
    "MONAI constant": ("monai", lambda folder: monai("constant")),
    "TorchIO hann": ("torchio", lambda folder: torchio()),
    "nnU-Net gaussian": ("nnunetv2", lambda folder: nnunet()),
    "torch-em crop": ("torch_em", lambda folder: torch_em()),
}


def job(values: dict[str, Any]) -> None:
    """One repetition of one tiler, in this process."""
    size = values["size"]
    volume = np.random.default_rng(0).integers(0, 256, (size,) * 3, np.uint8)
    run = TILERS[values["tiler"]][1](Path(values["folder"]))
    run(volume[:TILE, :TILE, :TILE])  # libraries load, allocators wake
    result, figures = metered(lambda: run(volume))
    error = max(
        float(np.abs(a.astype(np.float32) - b).max())
        for a, b in zip(volume, result, strict=True)
    )
    answer({**figures, "error": None, "max_error": error})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 384])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job(json.loads(options.job))
        return
    started = stamp()
    absent = sorted({m for m, _ in TILERS.values() if find_spec(m) is None})
    names = [n for n, (module, _) in TILERS.items() if module not in absent]
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        identity_bundle(Path(folder) / "identity", (TILE,) * 3, OVERLAP)
        for size in options.sizes:
            for _ in range(options.repeat):
                for name in names:
                    if name in failed:
                        continue
                    job_values = {"tiler": name, "size": size, "folder": folder}
                    got = in_fresh_process(__file__, job_values, threads=1)
                    if got.get("error"):
                        failed[name] = got["error"]
                        continue
                    found.setdefault((name, size), []).append(got)
    rows = []
    for (name, size), runs in found.items():
        rate = spread([size**3 / 1e6 / r["cpu_s"] for r in runs])
        rows.append(
            {
                "tiler": name,
                "size": size,
                "mvoxel_per_cpu_s": rate,
                "wall_s": spread([r["wall_s"] for r in runs]),
                "peak_bytes": spread([r.get("peak_bytes", 0) for r in runs]),
                "max_error": max(r["max_error"] for r in runs),
            }
        )
    save(
        "tiling",
        {
            "tile": TILE,
            "overlap": OVERLAP,
            "rows": rows,
            "absent": absent,
            "failed": failed,
        },
        started,
    )
    print(show(rows))
    for name in absent:
        print(f"not measured: {name} is not installed (benchmarks/peers_env.sh)")
    for name, why in failed.items():
        print(f"not measured: {name}: {why}")


def show(rows: list[dict[str, Any]]) -> str:
    """The table of a result file."""
    return table(
        [
            "tiler",
            "size",
            "Mvoxel per CPU-s",
            "least–most",
            "peak MiB",
            "B/voxel",
            "max error",
        ],
        [
            [
                r["tiler"],
                f"{r['size']}³",
                f"{r['mvoxel_per_cpu_s']['median']:.1f}",
                f"{r['mvoxel_per_cpu_s']['least']:.1f}–{r['mvoxel_per_cpu_s']['most']:.1f}",
                f"{r['peak_bytes']['median'] / 2**20:.0f}",
                f"{r['peak_bytes']['median'] / r['size'] ** 3:.1f}",
                f"{r['max_error']:.2g}",
            ]
            for r in rows
        ],
    )


if __name__ == "__main__":
    main()
