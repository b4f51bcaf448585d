"""The same network, weights, volume and overlap: the peers' way and ours, end to end.

    python benchmarks/peers.py                   # all that is installed, some minutes
    python benchmarks/peers.py --tiny --repeat 1 # the same path in seconds, no figures

From a TIFF to a mask in a TIFF; every run in a process of its own, all in turn,
repeated. MONAI with torch in fp32 runs again right before each other variant, and the
ratio is taken between these two. Prints seconds, ratios, tiles that each one ran, the
peak of the process's memory with libraries and weights in it (what an engine keeps from
its first tile on is its own), and agreement with torch in fp32: of labels in the same
tiling, so that it is the engine that is compared and not the blending. A run during
which the host of a virtual machine gave more than `--stolen` of its time to others is
made again with the one before it, up to `--tries` times, whatever they measured. The
least disturbed pair counts, where no turn has a better one, and the result says how
much was stolen.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from _bundles import network_bundle
from _process import answer, in_fresh_process, metered
from _results import load, save, spread, stamp, table
from _stolen import StolenTime, least_disturbed
from numpy.typing import NDArray

from neurodeploy_runtime import (
    Bundle,
    DeviceError,
    EngineSettings,
    Normalisation,
    NumpyEngine,
    Segmenter,
    SegmentSettings,
    TilePlan,
    default_bundle_path,
    load_bundle,
    open_volume,
)
from neurodeploy_runtime.measure import agreement, measure_peaks, tile_seconds

OVERLAP = 0.25
REFERENCE = "MONAI, torch fp32"
SAME_TILING = "neurodeploy, torch fp32"
#: What of a run's values goes into the result.
KEPT = ("shape", "size", "tiles", "flop_per_tile", "parameters", "threads")

Voxels = NDArray[np.float32]


# -- the network in torch --------------------------------------------------------------


def torch_network(values: dict[str, Any], precision: str, compiled: bool) -> Any:
    """A function of a (B, 1, z, y, x) tensor, in a precision."""
    import torch
    from _unetr import Size, unetr

    torch.set_num_threads(values["threads"])
    network = unetr(Size(**values["size"]), Path(values["folder"]) / "last.npz")
    forward = torch.compile(network) if compiled else network

    def run(voxels: Any) -> Any:
        if precision == "fp32":
            return forward(voxels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return forward(voxels).float()

    return run


def torch_tile(values: dict[str, Any], network: Any) -> Callable[[], object]:
    """The network on one tile, made as MONAI makes it.

    It is a view of a volume, under inference mode: compiled code is for a tensor's
    strides and its kind, and would be made anew in the run that is timed.
    """
    import torch

    corner = (..., *(slice(values["size"]["tile"]),) * 3)
    with torch.inference_mode():
        voxels = torch.rand(1, 1, *values["shape"])[corner]

    def run() -> object:
        with torch.inference_mode():
            return network(voxels)

    return run


# -- from file to file -----------------------------------------------------------------


def _normalised(values: dict[str, Any]) -> Voxels:
    image = tifffile.imread(values["input"])
    return Normalisation(**values["normalisation"]).apply(image)


def _write(values: dict[str, Any], probability: Voxels) -> None:
    mask = (probability >= 0.5).astype(np.uint8) * np.uint8(255)
    tifffile.imwrite(values["output"], mask, bigtiff=True, photometric="minisblack")


def monai(precision: str, compiled: bool = False) -> Callable[[dict[str, Any]], Any]:
    def make(values: dict[str, Any]) -> Any:
        import torch
        from monai.inferers import sliding_window_inference

        network = torch_network(values, precision, compiled)

        def run() -> None:
            with torch.inference_mode():
                result = sliding_window_inference(
                    torch.from_numpy(_normalised(values))[None, None],
                    (values["size"]["tile"],) * 3,
                    1,
                    network,
                    overlap=OVERLAP,
                    mode="gaussian",
                )
            _write(values, result[0, 0].numpy())

        return run, torch_tile(values, network), values["tiles"]

    return make


def nnunet(values: dict[str, Any]) -> Any:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    network = torch_network(values, "fp32", False)

    class Module(torch.nn.Module):
        def forward(self, voxels: Any) -> Any:
            return network(voxels)

    class Patch:
        patch_size = (values["size"]["tile"],) * 3

    class Label:
        num_segmentation_heads = 1

    predictor = nnUNetPredictor(
        tile_step_size=1 - OVERLAP,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.network = Module().eval()
    predictor.configuration_manager = Patch()
    predictor.label_manager = Label()

    def run() -> None:
        voxels = torch.from_numpy(_normalised(values))[None]
        with torch.inference_mode():
            result = predictor.predict_sliding_window_return_logits(voxels)
        _write(values, result[0].float().numpy())

    return run, torch_tile(values, network), values["tiles"]


def torch_em(values: dict[str, Any]) -> Any:
    import torch
    from torch_em.util.prediction import predict_with_halo

    network = torch_network(values, "fp32", False)
    tile = values["size"]["tile"]
    halo = round(tile * OVERLAP / 2)

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # Its first parameter tells it the device.
            self.place = torch.nn.Parameter(torch.zeros(()), requires_grad=False)

        def forward(self, voxels: Any) -> Any:
            return network(voxels)

    def run() -> None:
        voxels = _normalised(values)
        output = np.zeros(voxels.shape, np.float32)
        with torch.inference_mode():
            predict_with_halo(
                voxels,
                Module().eval(),
                ["cpu"],
                (tile - 2 * halo,) * 3,
                (halo,) * 3,
                output=output,
                preprocess=lambda block: block,
                disable_tqdm=True,
            )
        _write(values, output)

    return run, torch_tile(values, network), cropped_tiles(values["shape"], tile, halo)


def cropped_tiles(shape: Sequence[int], tile: int, halo: int) -> int:
    """Tiles of `predict_with_halo`: what is left of them without halos lies edge to
    edge, also where the volume was sized for tiles that overlap."""
    return prod(-(-extent // (tile - 2 * halo)) for extent in shape)


def ours(engine: str, precision: str, which: str = "bundle") -> Any:
    def make(values: dict[str, Any]) -> Any:
        bundle = load_bundle(values[which])
        settings = SegmentSettings(
            engine=EngineSettings(
                engine=engine,  # type: ignore[arg-type]
                device="cpu",
                precision=precision,  # type: ignore[arg-type]
                threads=values["threads"],
            ),
            normalisation=Normalisation(**values["normalisation"]),
        )
        return _segmenting(values, Segmenter(bundle, settings))

    return make


def ours_in_torch(values: dict[str, Any]) -> Any:
    """Torch's own arithmetic in our tiling: what engines are held to."""
    import torch

    network = torch_network(values, "fp32", False)

    def infer(batch: Voxels) -> Voxels:
        with torch.inference_mode():
            result: Voxels = network(torch.from_numpy(batch)).numpy()
        return result

    bundle = load_bundle(values["bundle"])
    settings = SegmentSettings(normalisation=Normalisation(**values["normalisation"]))
    return _segmenting(
        values, Segmenter(bundle, settings, engines=[NumpyEngine(bundle, infer)])
    )


def _segmenting(values: dict[str, Any], segmenter: Segmenter) -> Any:
    def run() -> dict[str, Any]:
        with open_volume(values["input"]) as source:
            report = segmenter.segment(source, values["output"], overwrite=True)
        assert report is not None
        return {
            "seconds": report.seconds,
            "engine_busy": report.engine_busy,
            "stream_s": report.wall_s,
        }

    engine = segmenter.engines[0]
    tiles = values["tiles_of"][str(segmenter.bundle.path)]
    return run, lambda: tile_seconds(engine, 1), tiles


#: Name; the module that it needs; how it is made.
VARIANTS: dict[str, tuple[str, Any]] = {
    REFERENCE: ("monai", monai("fp32")),
    "MONAI, torch bf16": ("monai", monai("bf16")),
    "MONAI, torch.compile fp32": ("monai", monai("fp32", True)),
    "MONAI, torch.compile bf16": ("monai", monai("bf16", True)),
    "nnU-Net, torch fp32": ("nnunetv2", nnunet),
    "torch-em, torch fp32": ("torch_em", torch_em),
    SAME_TILING: ("torch", ours_in_torch),
    "neurodeploy, ONNX Runtime fp32": ("onnxruntime", ours("onnxruntime", "fp32")),
    "neurodeploy, OpenVINO fp32": ("openvino", ours("openvino", "fp32")),
    "neurodeploy, OpenVINO bf16": ("openvino", ours("openvino", "bf16")),
}

#: The network that ships, on the same volume.
DEFAULTS: dict[str, tuple[str, Any]] = {
    f"default bundle, {name}": (module, ours(module, precision, "default"))
    for name, module, precision in (
        ("ONNX Runtime fp32", "onnxruntime", "fp32"),
        ("OpenVINO fp32", "openvino", "fp32"),
        ("OpenVINO bf16", "openvino", "bf16"),
    )
}


def job(values: dict[str, Any]) -> None:
    """One run of one variant, in this process."""
    _, make = (VARIANTS | DEFAULTS)[values["variant"]]
    try:
        run, tile, tiles = make(values)
    except DeviceError as error:
        answer({"error": str(error)})
        return
    tile()
    watch = StolenTime()
    if values.get("alone") is False:
        _, figures = metered(run)
        answer({**figures, "error": None, "stolen": watch.share})
        return
    before = _alone(tile)
    details, figures = metered(run)
    alone = statistics.median(before + _alone(tile))
    answer(
        {
            **figures,
            "error": None,
            "tile_s": alone,
            "tiles": tiles,
            "over_tiles": figures["wall_s"] / (tiles * alone),
            "stolen": watch.share,
            "details": details,
            "output": values["output"],
        }
    )


def _alone(tile: Callable[[], object]) -> list[float]:
    """Seconds of two tiles, or as many as the function says that it ran."""
    found: list[float] = []
    for _ in range(2):
        said, figures = metered(tile)
        found += said if isinstance(said, list) else [figures["wall_s"]]
    return found


# -- all of them -----------------------------------------------------------------------


def prepare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The network, its bundle, the volume: made once, read by every run."""
    from _unetr import TINY, Size, flop_per_tile, parameters, unetr

    from neurodeploy.simulate import SampleSettings, write_sample

    size = TINY if options.tiny else Size()
    tile = (size.tile,) * 3
    network = unetr(size, folder / "last.npz")
    flop = flop_per_tile(network, size)
    bundle = network_bundle(
        folder / "unetr",
        network,
        name="ViT-S UNETR",
        tile=tile,
        overlap=OVERLAP,
        flop_per_tile=flop,
    )
    stride = size.tile - round(size.tile * OVERLAP)
    z, y, x = (n * stride + size.tile - stride for n in options.counts)
    volume = folder / "volume.tif"
    write_sample(volume, SampleSettings((z, y, x), seed=3))
    with open_volume(volume) as source:
        from neurodeploy_runtime._survey import survey

        normalisation = survey(source).freeze("background-asinh")
    values = {
        "folder": str(folder),
        "size": asdict(size),
        "input": str(volume),
        "shape": [z, y, x],
        "bundle": str(bundle.path),
        "default": str(options.default),
        "normalisation": normalisation.to_json(),
        "threads": options.threads,
        "tiles": prod(options.counts),
        "flop_per_tile": flop,
        "parameters": parameters(network),
        "tiles_of": {str(bundle.path): _tiles(bundle, (z, y, x))},
    }
    if options.default.is_dir():
        default = load_bundle(options.default)
        values["tiles_of"][str(options.default)] = _tiles(default, (z, y, x))
        values["default_spec"] = {
            "name": default.spec.name,
            "digest": default.digest,
            "tile": list(default.spec.tile),
            "overlap": default.spec.overlap[1],
            "flop_per_tile": default.spec.flop_per_tile,
        }
    return values


def _tiles(bundle: Bundle, shape: tuple[int, int, int]) -> int:
    return TilePlan.of(bundle.spec, shape).tiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--counts", type=int, nargs=3, default=[2, 3, 3])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--only",
        nargs="+",
        help="Variants that begin so; the others' rows stay as they are.",
    )
    parser.add_argument("--stolen", type=float, default=0.05)
    parser.add_argument("--tries", type=int, default=4)
    parser.add_argument("--tiny", action="store_true", help="A network of no use.")
    parser.add_argument("--default", type=Path, default=default_bundle_path())
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job(json.loads(options.job))
        return
    started = stamp()
    every = dict(VARIANTS)
    skipped = {}
    if options.default.is_dir():
        every |= DEFAULTS
    else:
        skipped["default bundle"] = "it is not in this checkout"
    for name, (module, _) in every.items():
        if find_spec(module) is None:
            skipped[name] = f"{module} is not installed (benchmarks/peers_env.sh)"
    names = [
        n
        for n in every
        if n not in skipped and (not options.only or n.startswith(tuple(options.only)))
    ]
    peaks = measure_peaks()
    runs: dict[str, list[dict[str, Any]]] = {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = prepare(folder, options)
        for turn in range(options.repeat):
            for number, variant in enumerate(names):
                if variant in skipped:
                    continue
                asked = {
                    **values,
                    "variant": variant,
                    "output": str(folder / f"out-{number}.tif"),
                }
                before = None
                if REFERENCE not in {variant, *skipped}:
                    before = {
                        **asked,
                        "variant": REFERENCE,
                        "alone": False,
                        "output": str(folder / "before.tif"),
                    }
                got = least_disturbed(
                    partial(_pair, asked, before, options.threads),
                    options.stolen,
                    options.tries,
                )
                if got.get("error"):
                    skipped[variant] = got["error"]
                    continue
                runs.setdefault(variant, []).append(got)
                print(f"{turn + 1} {variant}: {_told(got)}", flush=True)
            # After each turn: a run that is stopped leaves what it has found.
            rows = _rows(runs, values, options.stolen)
            if not options.tiny:
                rows = _with_others(rows) if options.only else rows
                save(
                    "peers",
                    {
                        **{k: values[k] for k in KEPT},
                        "default": values.get("default_spec"),
                        "overlap": OVERLAP,
                        "peaks": peaks.to_json(),
                        "rows": rows,
                        "skipped": skipped,
                    },
                    started,
                )
    print(show(rows))
    for variant, why in skipped.items():
        print(f"not measured: {variant}: {why}")


def _pair(
    asked: dict[str, Any], before: dict[str, Any] | None, threads: int
) -> dict[str, Any]:
    """A variant, and right before it the reference; disturbed as the worse of both."""
    first = None
    if before is not None:
        first = in_fresh_process(__file__, before, threads=threads)
        if first.get("error"):
            return first
    got = in_fresh_process(__file__, asked, threads=threads)
    if got.get("error"):
        return got
    got["reference_s"] = got["wall_s"] if first is None else first["wall_s"]
    if first is not None and got["stolen"] is not None:
        got["stolen"] = max(got["stolen"], first["stolen"])
    return got


def _told(got: dict[str, Any]) -> str:
    text = f"{got['wall_s']:.2f} s after {got['reference_s']:.2f} s"
    if got["stolen"] is not None:
        text += f", {got['stolen']:.0%} stolen in the best of {got['tries']}"
    return text


def _with_others(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With the rows of an earlier run, of variants that this one did not ask for."""
    ours = {row["variant"] for row in rows}
    earlier = (load("peers") or {"rows": []})["rows"]
    every = [*rows, *(row for row in earlier if row["variant"] not in ours)]
    order = list(VARIANTS | DEFAULTS)
    return sorted(every, key=lambda row: order.index(row["variant"]))


def _rows(
    runs: dict[str, list[dict[str, Any]]], values: dict[str, Any], limit: float
) -> list[dict[str, Any]]:
    runs = {variant: _quiet(found, limit) for variant, found in runs.items()}
    labels: dict[str, dict[str, float]] = {}
    for variant, found in runs.items():
        for against in (SAME_TILING, REFERENCE):
            if against in runs and not variant.startswith("default"):
                same, dice = agreement(runs[against][0]["output"], found[0]["output"])
                labels.setdefault(variant, {})[against] = same
                labels[variant][f"dice, {against}"] = dice
    return [_row(n, found, runs, labels.get(n), values) for n, found in runs.items()]


def _quiet(found: list[dict[str, Any]], limit: float) -> list[dict[str, Any]]:
    """The runs of the turns that nobody disturbed; all where there is none."""
    return [run for run in found if (run["stolen"] or 0.0) <= limit] or found


def _row(
    name: str,
    found: list[dict[str, Any]],
    runs: dict[str, list[dict[str, Any]]],
    labels: dict[str, float] | None,
    values: dict[str, Any],
) -> dict[str, Any]:
    voxels = prod(values["shape"])
    times = [run["reference_s"] / run["wall_s"] for run in found]
    half = runs.get("MONAI, torch bf16")
    over_half = None
    if REFERENCE in runs and half is not None:
        # Each against the same reference: its median, since they lie minutes apart.
        other = statistics.median(run["reference_s"] / run["wall_s"] for run in half)
        over_half = spread([each / other for each in times])
    middle = sorted(found, key=lambda run: run["wall_s"])[len(found) // 2]
    return {
        "variant": name,
        "wall_s": spread([r["wall_s"] for r in found]),
        "mvoxel_per_s": spread([voxels / r["wall_s"] / 1e6 for r in found]),
        "over_monai_fp32": spread(times) if REFERENCE in runs else None,
        "over_monai_bf16": over_half,
        "reference_s": spread([r["reference_s"] for r in found]),
        "tile_s": spread([r["tile_s"] for r in found]),
        "tiles": found[0]["tiles"],
        "over_tiles": spread([r["over_tiles"] for r in found]),
        "peak_bytes": spread([r.get("peak_bytes", 0) for r in found]),
        "peak_rss_bytes": max(r.get("peak_rss_bytes", 0) for r in found),
        "labels": labels,
        "stolen": [r["stolen"] for r in found],
        "tries": [r["tries"] for r in found],
        "stages": middle["details"],
    }


def show(rows: list[dict[str, Any]]) -> str:
    """The table of a result file."""

    def ratio(value: dict[str, float] | None) -> str:
        if value is None:
            return "–"
        return f"{value['median']:.2f} ({value['least']:.2f}–{value['most']:.2f})"

    def labels(row: dict[str, Any]) -> str:
        if not row["labels"] or SAME_TILING not in row["labels"]:
            return "–"
        found = row["labels"]
        return f"{found[SAME_TILING]:.5f} / {found[f'dice, {SAME_TILING}']:.4f}"

    return table(
        [
            "",
            "s",
            "Mvoxel/s",
            "× MONAI fp32",
            "× MONAI bf16",
            "tiles",
            "wall / tiles alone",
            "process MiB",
            "labels / Dice",
        ],
        [
            [
                r["variant"],
                f"{r['wall_s']['median']:.2f}",
                f"{r['mvoxel_per_s']['median']:.3f}",
                ratio(r["over_monai_fp32"]),
                ratio(r["over_monai_bf16"]),
                r["tiles"],
                ratio(r["over_tiles"]),
                f"{r['peak_rss_bytes'] / 2**20:.0f}",
                labels(r),
            ]
            for r in rows
        ],
    )


if __name__ == "__main__":
    main()
