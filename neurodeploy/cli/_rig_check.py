"""`neurodeploy rig-check`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import click

from neurodeploy.cli._console import console
from neurodeploy.cli._options import Finite, Size, engine_options, engine_settings

if TYPE_CHECKING:
    from neurodeploy_runtime.live import RigReport


class Plane(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Height and width, as `2048x2048`."""

    name = "HEIGHTxWIDTH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """(y, x)."""
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"\s*([1-9]\d*)\s*[x×]\s*([1-9]\d*)\s*", value.lower())
        if not found:
            self.fail(f"{value!r} is no plane: write 2048x2048", param, ctx)
        return int(found[1]), int(found[2])


@click.command("rig-check")
@click.argument("bundle", required=False)
@click.option("--plane", type=Plane(), required=True, help="Pixels, as 2048x2048.")
@click.option("--rate", type=Finite(above=0), required=True, help="Planes per second.")
@click.option(
    "--dtype",
    type=click.Choice(["uint8", "uint16", "int16", "float32"]),
    default="uint16",
    show_default=True,
    help="What the camera gives.",
)
@click.option("--overlap", type=float, help="Share that neighbouring tiles overlap.")
@click.option("--flips", is_flag=True, help="Average over flips: 4 times the work.")
@click.option("--ring", type=click.IntRange(1), help="Raw planes that are held.")
@click.option("--memory", type=Size(), help="What the buffers may take.")
@click.option(
    "--seconds",
    type=Finite(least=0.1),
    default=10.0,
    show_default=True,
    help="How long to measure.",
)
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rig_check(**options: Any) -> None:
    """Say what this machine sustains beside a camera, and what to change.

    BUNDLE is the model; without it, the one that ships. The exit code is 0 whether the
    rate is sustained or not: the JSON says `sustains`.
    """
    from neurodeploy_runtime import LiveSettings, load_bundle
    from neurodeploy_runtime.live import measure_rig

    settings = LiveSettings(
        engine=engine_settings(options),
        overlap=options["overlap"],
        flips=options["flips"],
        ring_planes=options["ring"],
        memory_bytes=options["memory"],
    )
    report = measure_rig(
        load_bundle(options["bundle"]),
        options["plane"],
        options["rate"],
        options["dtype"],
        settings,
        seconds=options["seconds"],
    )
    if options["as_json"]:
        click.echo(json.dumps(report.to_json(), indent=1))
    else:
        show_rig(report)


def show_rig(report: RigReport) -> None:
    """One screen of what a machine sustains."""
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2))
    y, x = report.plane_shape
    verdict = "sustained" if report.sustains else "not sustained"
    table.add_row("camera", f"{y} × {x} {report.dtype}, {report.rate_hz:g} planes/s")
    table.add_row(
        "verdict", f"{verdict}: this machine keeps up with {report.sustained_hz:.3g}/s"
    )
    engine = report.engine
    table.add_row(
        "engine",
        f"{report.model}, {engine['engine']} {engine['precision']} on "
        f"{engine['device']}: {report.tile_s * 1e3:.4g} ms a tile "
        f"(p99 {report.tile_p99_s * 1e3:.4g}), {report.tiles_per_layer} tiles a layer",
    )
    table.add_row(
        "live path",
        f"adds {report.overhead:.1%} to the engine's time (measured at "
        f"{report.measured_shape[0]} × {report.measured_shape[1]})",
    )
    least, most = report.lag_planes
    if report.delay_s is not None:
        delay = f"{report.delay_s[0] * 1e3:,.0f} to {report.delay_s[1] * 1e3:,.0f} ms"
    else:
        delay = f"grows; the ring is full after {report.full_after_s:.3g} s"
    table.add_row("delay", f"{least} to {most} planes, {delay}")
    table.add_row(
        "push",
        f"{report.push_p50_s * 1e3:.2f} ms, p99 {report.push_p99_s * 1e3:.2f} ms, "
        "with the engine busy",
    )
    table.add_row(
        "memory",
        f"{report.memory_bytes / 1e9:.2f} GB, of which {report.ring_planes} raw planes",
    )
    for advice in report.advice:
        table.add_row("change", advice)
    console().print(table)
