"""`neurodeploy reproduce`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from neurodeploy.cli._options import Roi, engine_options, engine_settings


@click.command()
@click.argument("output")
@click.option("--roi", type=Roi(), help="Region of the volume; else its middle.")
@click.option("-m", "--model", help="Bundle; without it, the one that ships.")
@click.option("--input", "source", help="Where the input lies now.")
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reproduce(
    output: str,
    roi: Any,
    model: str | None,
    source: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Run a region of a result again and compare it, voxel by voxel.

    OUTPUT is what `segment` wrote, with its report beside it. Exit code 1 where voxels
    differ although the same engine ran.
    """
    from neurodeploy_runtime import EngineSettings, RunError, load_bundle
    from neurodeploy_runtime import reproduce as run_again

    engine = engine_settings(options)
    result = run_again(
        Path(output),
        load_bundle(model),
        roi,
        engine=None if engine == EngineSettings() else engine,
        source_path=source,
    )
    if as_json:
        click.echo(json.dumps({**asdict(result), "region": str(result.region)}))
    else:
        click.echo(
            f"{result.region}: {result.differing} of {result.voxels} voxels differ, "
            f"Dice {result.dice:.6f}"
            + ("" if result.same_engine else " (another engine than then)")
            + "".join(f" ({text})" for text in result.other_versions)
        )
    if result.differing and result.same_engine:
        raise RunError(
            f"{result.differing} voxels differ from what {output} holds: the result "
            "or the libraries have changed since"
        )
