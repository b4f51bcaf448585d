"""Everything that needs a GPU, in one call; says why where there is none.

    python benchmarks/gpu.py                     # results/gpu.json and a table
    python benchmarks/gpu.py --device cpu --tiny # a rehearsal of the same path

Measures the device's matmul and copy peaks; the network of `peers.py` in torch (eager
fp32, fp16, torch.compile fp16, through MONAI's tiling) and in our engines (ONNX Runtime
CUDA fp32 and fp16, TensorRT where its engine can be built; tiles blended on the host
and, where CuPy is installed, on the GPU), file to file and for a tile alone (with its
way to the GPU and back where tiles are blended on the host); agreement with torch fp32;
and the roofline: FLOPs and bytes of a tile counted, the floor they give on this device,
and measured over floor. fp32 is fp32 everywhere: torch's convolutions in TF32, its
default, are off.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from _process import answer, in_fresh_process, metered
from _results import save, spread, stamp, table

from neurodeploy_runtime import (
    Bundle,
    EngineSettings,
    NeurodeployError,
    Normalisation,
    Segmenter,
    SegmentSettings,
    load_bundle,
    open_volume,
)
from neurodeploy_runtime.engines import PlaceName
from neurodeploy_runtime.measure import agreement, candidates, tile_seconds

OVERLAP = 0.25
REFERENCE = "torch fp32"

#: Name, precision, compiled.
EAGER = (
    (REFERENCE, "fp32", False),
    ("torch fp16", "fp16", False),
    ("torch.compile fp16", "fp16", True),
)

#: Where our tiles are normalised, blended and quantised, and what a row says of it.
PLACES: tuple[tuple[PlaceName, str], ...] = (
    ("host", ""),
    ("gpu", ", tiles stay there"),
)


def why_not(device: str) -> str | None:
    """Why nothing can be measured here."""
    for module in ("torch", "monai", "einops"):
        if find_spec(module) is None:
            return f"{module} is not installed: sh benchmarks/peers_env.sh"
    if device == "cpu":
        return None
    import torch

    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return None


def synchronise(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.synchronize(device)


def no_tf32() -> None:
    """Torch rounds what fp32 convolutions read to 10 bits of mantissa by default."""
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def seconds_of(work: Callable[[], object], device: str, calls: int) -> list[float]:
    found = []
    for _ in range(calls + 2):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        found.append(time.perf_counter() - start)
    return found[2:]


def peaks(device: str, tiny: bool) -> dict[str, float]:
    """FLOP/s of a large product by precision, and bytes/s of a copy, read and write."""
    import torch

    no_tf32()
    edge = 256 if tiny else 8192
    found = {}
    for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        a = torch.rand(edge, edge, device=device).to(dtype)
        b = torch.rand(edge, edge, device=device).to(dtype)
        best = min(seconds_of(lambda a=a, b=b: a @ b, device, 10))
        found[f"matmul {name} FLOP/s"] = 2 * edge**3 / best
    source = torch.ones(2**16 if tiny else 2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = min(seconds_of(lambda: target.copy_(source), device, 10))
    found["copy bytes/s"] = 2 * source.numel() / best
    return found


def counted_bytes(network: Any, tile: tuple[int, int, int], batch: int) -> int:
    """Bytes that a tile moves at the least, at four bytes each.

    The input and output of every layer that multiplies, and its share of the weights
    of a batch. All between two such layers may be fused into them.
    """
    import torch

    total = 0

    def hook(module: Any, inputs: Any, output: Any) -> None:
        nonlocal total
        total += 4 * (inputs[0].numel() + output.numel())
        total += 4 * sum(p.numel() for p in module.parameters()) // batch

    handles = [
        m.register_forward_hook(hook)
        for m in network.modules()
        if isinstance(getattr(m, "weight", None), torch.Tensor) and m.weight.ndim > 1
    ]
    with torch.inference_mode():
        network(torch.zeros(1, 1, *tile))
    for handle in handles:
        handle.remove()
    return total


def typed_bundle(values: dict[str, Any], batch: int) -> Bundle:
    """The network as `neurodeploy export --precision fp16` writes it.

    No limits: random weights change more labels in half than a trained network's, and
    the table says how many.
    """
    from _unetr import Size, unetr

    from neurodeploy_export import (
        ExportSettings,
        ParityLimits,
        export_bundle,
        tiles_from_volume,
    )

    folder = Path(values["folder"])
    anything = ParityLimits(1, 0, 1, 1)
    spec = load_bundle(values["bundle"]).spec
    with open_volume(values["input"]) as source:
        tiles = tiles_from_volume(source, spec, count=2)
    return export_bundle(
        unetr(Size(**values["size"]), folder / "last.npz"),
        spec,
        tiles,
        ExportSettings(
            "fp16", max_batch=batch, limits_fp32=anything, limits_fp16=anything
        ),
        folder / "typed",
    )


def build_engines(bundle: Bundle, device: str, batch: int) -> dict[str, str]:
    """TensorRT's engines into the bundle; by precision, why one is not there."""
    from neurodeploy_export import BuildSettings, build_engine

    failed = {}
    index = int(device.partition(":")[2] or 0)
    for precision in bundle.precisions:
        asked = BuildSettings(precision=precision, max_batch=batch, gpu=index)
        try:
            build_engine(bundle.path, asked)
        except NeurodeployError as error:
            failed[precision] = str(error)
    return failed


def job(values: dict[str, Any]) -> None:
    """One variant, in this process."""
    (eager if values["kind"] == "torch" else ours)(values)


def eager(values: dict[str, Any]) -> None:
    import torch
    from _unetr import Size, unetr
    from monai.inferers import sliding_window_inference

    no_tf32()
    device, half = values["device"], values["precision"] == "fp16"
    network = unetr(Size(**values["size"]), Path(values["folder"]) / "last.npz")
    network = network.to(device)
    forward = torch.compile(network) if values["compiled"] else network
    kind = "cpu" if device == "cpu" else "cuda"
    dtype = torch.bfloat16 if device == "cpu" else torch.float16

    def run(voxels: Any) -> Any:
        with torch.inference_mode(), torch.autocast(kind, dtype=dtype, enabled=half):
            return forward(voxels).float()

    tile = (values["size"]["tile"],) * 3
    voxels = torch.rand(values["batch"], 1, *tile, device=device)
    alone = [s / values["batch"] for s in seconds_of(lambda: run(voxels), device, 5)]

    def whole() -> None:
        image = tifffile.imread(values["input"])
        normal = Normalisation(**values["normalisation"]).apply(image)
        with torch.inference_mode():
            result = sliding_window_inference(
                torch.from_numpy(normal)[None, None],
                tile,
                values["batch"],
                run,
                overlap=OVERLAP,
                mode="gaussian",
                sw_device=device,
                device="cpu",
            )
        mask = (result[0, 0].numpy() >= 0.5).astype(np.uint8) * np.uint8(255)
        tifffile.imwrite(values["output"], mask, photometric="minisblack")

    whole()
    _, figures = metered(whole)
    held = 0 if device == "cpu" else torch.cuda.max_memory_allocated(device)
    answer({**figures, "error": None, "tile_s": alone, "device_bytes": held})


def ours(values: dict[str, Any]) -> None:
    settings = SegmentSettings(
        engine=EngineSettings(**values["engine"]),
        normalisation=Normalisation(**values["normalisation"]),
    )
    with Segmenter(load_bundle(values["bundle"]), settings) as segmenter:
        alone = tile_seconds(segmenter.engines[0])

        def whole() -> Any:
            with open_volume(values["input"]) as source:
                return segmenter.segment(source, values["output"], overwrite=True)

        whole()
        report, figures = metered(whole)
        described = segmenter.engines[0].describe()
    answer(
        {
            **figures,
            "error": None,
            "tile_s": alone,
            "engine": described,
            "engine_busy": report.engine_busy,
            "seconds": report.seconds,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--counts", type=int, nargs=3, default=[4, 8, 8])
    parser.add_argument("--tiny", action="store_true", help="A network of no use.")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job(json.loads(options.job))
        return
    reason = why_not(options.device)
    if reason is not None:
        print(f"not run: {reason}")
        return
    started = stamp()
    with tempfile.TemporaryDirectory() as name:
        values, rows, floor = _measure(Path(name), options)
    if options.device != "cpu" and not options.tiny:
        save("gpu", {**values, "rows": rows, "floor": floor}, started)
    print(json.dumps(floor, indent=1))
    print(show(rows))


def _measure(
    folder: Path, options: argparse.Namespace
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    from _unetr import Size, unetr
    from peers import prepare

    options.threads = options.batch
    options.default = Path("no-default")
    values = prepare(folder, options)
    bundle = typed_bundle(values, options.batch)
    on_gpu = options.device != "cpu"
    unbuilt = build_engines(bundle, options.device, options.batch) if on_gpu else {}
    values |= {
        "device": options.device,
        "batch": options.batch,
        "bundle": str(bundle.path),
    }
    variants: dict[str, dict[str, Any]] = {
        name: {"kind": "torch", "precision": precision, "compiled": compiled}
        for name, precision, compiled in EAGER
    }
    skipped = {}
    for place, suffix in PLACES if on_gpu else PLACES[:1]:
        asked = EngineSettings(
            device=options.device, batch=options.batch, blend_on=place
        )
        for candidate in candidates(bundle, asked):
            name = candidate.name + suffix
            if candidate.why_not is not None:
                built = candidate.settings.engine != "tensorrt"
                reason = unbuilt.get(candidate.settings.precision)
                skipped[name] = (not built and reason) or candidate.why_not
                continue
            variants[name] = {"kind": "ours", "engine": vars(candidate.settings)}
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.repeat):
        for number, (name, variant) in enumerate(variants.items()):
            if name in skipped:
                continue
            output = str(folder / f"out-{number}.tif")
            got = in_fresh_process(
                __file__, {**values, **variant, "output": output}, timeout_s=1800
            )
            if got.get("error"):
                skipped[name] = got["error"]
                continue
            runs.setdefault(name, []).append({**got, "output": output})
    device = peaks(options.device, options.tiny)
    size = Size(**values["size"])
    network = unetr(size, folder / "last.npz")
    flop, moved = (
        values["flop_per_tile"],
        counted_bytes(network, (size.tile,) * 3, options.batch),
    )
    floor = {
        "flop_per_tile": flop,
        "bytes_per_tile": moved,
        **device,
        **{
            f"floor {p} s": max(
                flop / device[f"matmul {p} FLOP/s"],
                moved * (0.5 if p == "fp16" else 1.0) / device["copy bytes/s"],
            )
            for p in ("fp32", "fp16")
        },
        "skipped": skipped,
    }
    rows = []
    for name, found in runs.items():
        tile = min(min(r["tile_s"]) for r in found)
        precision = "fp16" if "fp16" in name else "fp32"
        same = (
            agreement(runs[REFERENCE][0]["output"], found[0]["output"])
            if REFERENCE in runs
            else None
        )
        wall = spread([r["wall_s"] for r in found])
        rows.append(
            {
                "variant": name,
                "wall_s": wall,
                "mvoxel_per_s": prod(values["shape"]) / wall["median"] / 1e6,
                "tile_s": tile,
                "over_floor": tile / floor[f"floor {precision} s"],
                "matmul_share": flop / tile / device[f"matmul {precision} FLOP/s"],
                "over_tiles": wall["median"] / (values["tiles"] * tile),
                "labels": same,
                "engine_busy": found[0].get("engine_busy"),
                "device_bytes": found[0].get("device_bytes"),
            }
        )
    return values, rows, floor


def show(rows: list[dict[str, Any]]) -> str:
    """The table of a result file."""
    return table(
        [
            "",
            "Mvoxel/s",
            "s",
            "tile ms",
            "of matmul",
            "over floor",
            "wall / tiles alone",
            "labels",
        ],
        [
            [
                r["variant"],
                f"{r['mvoxel_per_s']:.2f}",
                f"{r['wall_s']['median']:.2f}",
                f"{r['tile_s'] * 1e3:.2f}",
                f"{r['matmul_share']:.0%}",
                f"{r['over_floor']:.2f}",
                f"{r['over_tiles']:.2f}",
                "–" if r["labels"] is None else f"{r['labels'][0]:.5f}",
            ]
            for r in rows
        ],
    )


if __name__ == "__main__":
    main()
