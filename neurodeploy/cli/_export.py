"""`neurodeploy export`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neurodeploy.cli._build import build_options, build_settings, describe_engine
from neurodeploy.cli._options import refuse_without
from neurodeploy.cli._steps import steps

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from neurodeploy_runtime import Bundle, ModelSpec


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the bundle.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="fp16 adds a typed FP16 graph.",
)
@click.option("--engine", is_flag=True, help="Also build a TensorRT engine.")
@click.option("--tiles", multiple=True, help="Image to prove it on; repeatable.")
@click.option(
    "--tile-count",
    type=click.IntRange(1, 256),
    default=6,
    show_default=True,
    help="Tiles to prove it on.",
)
@click.option(
    "--opset", type=int, default=20, show_default=True, help="ONNX operator set."
)
@click.option("--keep-fp32", multiple=True, metavar="REGEX", help="Nodes left in FP32.")
@click.option(
    "--io",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    help="Type of the FP16 graph's input and output.",
)
@click.option(
    "--absmax-limit",
    type=float,
    default=1024.0,
    show_default=True,
    help="Nodes whose values exceed this stay in FP32.",
)
@click.option("--max-flips", type=float, help="Share of voxels that may change label.")
@click.option("--min-dice", type=float, help="Dice with the network's own answers.")
@click.option(
    "--card",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Markdown that opens the model card: data, licence, figures, limits.",
)
@click.option(
    "--to",
    multiple=True,
    type=click.Choice(["bioimageio", "triton"]),
    help="Also write it for another tool, beside the bundle.",
)
@build_options
@click.option("--overwrite", is_flag=True, help="Replace a bundle that exists.")
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
def export(**options: Any) -> None:
    """Turn a checkpoint into a bundle, with proof that it still says the same.

    Every step's answers are compared with the network's own on real tiles: of
    --tiles, or of a simulated volume without it. Beyond the limits the command fails,
    and no bundle has the final name.
    """
    from dataclasses import replace

    from neurodeploy.networks import probability_module
    from neurodeploy.training import load_checkpoint
    from neurodeploy_export import ExportSettings, export_bundle
    from neurodeploy_export._triton import require_replaceable
    from neurodeploy_runtime import OutputError

    built = build_settings(options)
    if not options["engine"]:
        refuse_without(
            "--engine",
            *("library", "workspace", "optimisation", "gpu", "build_timeout"),
            *("version_compatible", "hardware_compatibility"),
        )
    if options["precision"] != "fp16":
        refuse_without("--precision fp16", "keep_fp32", "absmax_limit")
    quiet: bool = options.pop("quiet")
    settings = ExportSettings(
        precision=options["precision"],
        io=options["io"],
        opset=options["opset"],
        max_batch=built.max_batch,
        keep_fp32=options["keep_fp32"],
        absmax_limit=options["absmax_limit"],
        about=options["card"].read_text("utf-8") if options["card"] else None,
        overwrite=options["overwrite"],
    )
    own = {"flips": options["max_flips"], "dice": options["min_dice"]}
    own = {name: value for name, value in own.items() if value is not None}
    settings = replace(
        settings,
        limits_fp32=replace(settings.limits_fp32, **own),
        limits_fp16=replace(settings.limits_fp16, **own),
    )
    # Before the work, and not after it.
    for tool in options["to"]:
        path = _path_for(tool, options["output"])
        if tool == "triton":
            require_replaceable(path, overwrite=settings.overwrite)
        elif path.exists() and not settings.overwrite:
            raise OutputError(f"{path} exists: move it away, or pass --overwrite")
    with steps(quiet) as tell:
        tell("loading the checkpoint", None)
        network, checkpoint = load_checkpoint(options["checkpoint"])
        spec = checkpoint.spec()
        tell("choosing tiles", None)
        tiles = choose_tiles(spec, options["tiles"], options["tile_count"])
        bundle = export_bundle(
            probability_module(network),
            spec,
            tiles,
            settings,
            options["output"],
            engine=built if options["engine"] else None,
            progress=tell,
        )
        extra = [_write_for(tool, bundle, settings.overwrite) for tool in options["to"]]
    if quiet:
        return
    click.echo(report(bundle))
    for path in extra:
        click.echo(f"also written: {path}")
    click.echo(f"next: neurodeploy verify {shlex.quote(str(bundle.path))}")


def choose_tiles(
    spec: ModelSpec, files: tuple[str, ...], count: int
) -> NDArray[np.float32]:
    """Normalised tiles that hold signal, of the files or of a simulated volume."""
    import numpy as np

    from neurodeploy_export import tiles_from_volume
    from neurodeploy_runtime import ArraySource, open_volume

    each = max(1, -(-count // max(1, len(files))))
    if not files:
        from neurodeploy.simulate import SimulationSettings, simulate_volume

        z, y, x = (max(2 * t, 64) for t in spec.tile)
        volume = simulate_volume(SimulationSettings(shape=(z, y, x)), seed=4)
        return tiles_from_volume(ArraySource(volume.image), spec, count=each)
    found = []
    for file in files:
        with open_volume(file) as source:
            found.append(tiles_from_volume(source, spec, count=each))
    return np.concatenate(found)


def _path_for(tool: str, output: Path) -> Path:
    ending = ".triton" if tool == "triton" else ".bioimageio.zip"
    return output.with_name(output.name + ending)


def _write_for(tool: str, bundle: Bundle, overwrite: bool) -> Path:
    from neurodeploy_export import write_bioimageio, write_triton

    write = write_triton if tool == "triton" else write_bioimageio
    return write(bundle, _path_for(tool, bundle.path), overwrite=overwrite)


def report(bundle: Bundle) -> str:
    """One screen: what was compared, and how far apart it is."""
    names = {"onnx": "PyTorch to ONNX", "fp16": "PyTorch to FP16"}
    lines = [f"{bundle.path}: {', '.join(sorted(bundle.files))}"]
    for name, step in bundle.spec.parity.get("steps", {}).items():
        lines.append(
            f"  {names.get(name, name)}: {step['flips']:.4%} of voxels change label, "
            f"Dice {step['dice']:.5f}, max |dp| {float(step['max_difference']):.2g}, "
            f"p99.9 {float(step['p999_difference']):.2g} "
            f"({step['tiles']} tiles, {step['foreground']:.2%} foreground)"
        )
    engine = bundle.spec.parity.get("engine")
    if engine:
        lines.append("  " + describe_engine(engine))
    return "\n".join(lines)
