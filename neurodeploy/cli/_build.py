"""`neurodeploy build`, and the options of an engine that `export` shares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from neurodeploy.cli._options import Size
from neurodeploy.cli._steps import steps

if TYPE_CHECKING:
    from neurodeploy_export import BuildSettings

F = TypeVar("F", bound=Callable[..., Any])


def build_options(function: F) -> F:
    """What a TensorRT engine is built for."""
    for option in reversed(
        (
            click.option(
                "--max-batch",
                type=click.IntRange(1),
                help="An engine's largest batch.",
            ),
            click.option(
                "--library",
                type=click.Choice(["auto", "tensorrt", "tensorrt_rtx"]),
                default="auto",
                help="Which TensorRT builds.",
            ),
            click.option("--workspace", type=Size(), help="Scratch memory: 4GB."),
            click.option(
                "--optimisation",
                type=click.IntRange(0, 5),
                default=3,
                show_default=True,
                help="TensorRT's builder optimisation level.",
            ),
            click.option(
                "--version-compatible",
                is_flag=True,
                help="An engine that newer TensorRT versions load too; slower.",
            ),
            click.option(
                "--hardware-compatibility",
                type=click.Choice(["none", "ampere_plus", "same_compute_capability"]),
                default="none",
                help="An engine that other GPUs run too; slower.",
            ),
            click.option(
                "--gpu", type=click.IntRange(0), default=0, help="The GPU it is for."
            ),
            click.option(
                "--build-timeout", type=float, metavar="S", help="Stop a build after S."
            ),
        )
    ):
        function = option(function)
    return function


def build_settings(options: dict[str, Any]) -> BuildSettings:
    """Take an engine's options out of a verb's, as settings."""
    from neurodeploy_export import BuildSettings

    return BuildSettings(
        library=options.pop("library"),
        max_batch=options.pop("max_batch"),
        workspace_bytes=options.pop("workspace"),
        optimisation=options.pop("optimisation"),
        version_compatible=options.pop("version_compatible"),
        hardware_compatibility=options.pop("hardware_compatibility"),
        gpu=options.pop("gpu"),
        timeout_s=options.pop("build_timeout"),
        precision=options.get("precision", "auto"),
    )


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "fp16"]),
    default="auto",
    help="auto: FP16 where the bundle has it.",
)
@build_options
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
def build(bundle: Path, quiet: bool, **options: Any) -> None:
    """Build a TensorRT engine for a bundle, for this machine's GPU.

    An engine that is there and still true is kept; one that is truncated, altered or
    of another model is built again. Ctrl-C stops a build.
    """
    from neurodeploy_export import build_engine

    with steps(quiet) as tell:
        built = build_engine(bundle, build_settings(options), tell)
    if quiet:
        return
    if built.rebuilt_because:
        click.echo(
            f"the engine that was there was not trusted: {built.rebuilt_because}"
        )
    kept = "kept, it is still true" if built.reused else "built"
    click.echo(f"{built.path}: {kept}")
    click.echo("  " + describe_engine(built.to_json()))


def describe_engine(facts: dict[str, Any]) -> str:
    """What was built, and what is known of its precision."""
    text = (
        f"{facts['library']} {facts['version']} {facts['precision']} for "
        f"{facts['gpu']}, batch up to {facts['max_batch']}, "
        f"{facts['bytes'] / 1e6:.1f} MB in {facts['seconds']:.1f} s; "
        f"{facts['network_half_share']:.0%} of its arithmetic layers are in half"
    )
    share = facts["engine_half_share"]
    if share is not None:
        text += f"; read back from the engine: {share:.0%} of all layers"
    else:
        text += f". The engine itself was not read back: {facts['engine_unread']}"
    parity = facts["parity"]
    if parity is None:
        return text + ". It was not run: there is no GPU here"
    return text + (
        f". On the golden tiles {parity['flips']:.4%} of voxels change label, Dice "
        f"{parity['dice']:.5f}"
    )
