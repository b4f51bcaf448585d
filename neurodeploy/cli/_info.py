"""`neurodeploy info`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from neurodeploy.cli._console import console


@click.command()
@click.argument("path", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def info(ctx: click.Context, path: str | None, as_json: bool) -> None:
    """Show what a bundle or a result is and how it was made; verify its hashes.

    PATH is a bundle, or what `segment` wrote. Without it, the bundle that ships. The
    exit code is 1 where the voxels are not those that were written.
    """
    from neurodeploy_runtime._provenance import ALTERED

    values = (
        describe_result(Path(path))
        if path is not None and not (Path(path) / "model.json").exists()
        else describe_bundle(path)
    )
    if as_json:
        click.echo(json.dumps(values, indent=1))
    else:
        _show(values)
    if values["verified"].startswith(ALTERED):
        ctx.exit(1)


def _show(values: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2))
    for key, value in _flat(values):
        table.add_row(key, value)
    console().print(table)


def describe_bundle(path: str | None) -> dict[str, Any]:
    """What a bundle is; its hashes are verified when it is loaded."""
    from neurodeploy_runtime import load_bundle
    from neurodeploy_runtime.engines import read_local

    bundle = load_bundle(path)
    return {
        "bundle": str(bundle.path),
        "verified": f"{len(bundle.files)} files match their SHA-256",
        "digest": bundle.digest,
        **bundle.spec.to_json(),
        "files": bundle.files,
        "local": {
            f"{one.engine} {one.precision}, {number}": f"batch {one.batch}, "
            f"threads {one.threads or 'as there are cores'}, "
            f"{one.tile_s * 1e3:.3g} ms a tile on {one.machine}, {one.date}"
            for number, one in enumerate(read_local(bundle))
        },
    }


def describe_result(path: Path) -> dict[str, Any]:
    """What a result says of itself."""
    from neurodeploy_runtime import InputError
    from neurodeploy_runtime._provenance import read_provenance

    if not path.exists():
        raise InputError(f"{path} does not exist: name a bundle or a result")
    return {"result": str(path), **read_provenance(path)}


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            rows += _flat(value, f"{name}.")
        else:
            rows.append((name, str(value)))
    return rows
