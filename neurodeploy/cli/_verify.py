"""`neurodeploy verify`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click


@click.command()
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--device", default="auto", help="auto, cpu or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def verify(ctx: click.Context, bundle: Path | None, device: str, as_json: bool) -> None:
    """Run a bundle's golden tiles on every engine of this machine.

    Each answer is compared with the one that was frozen at the export. Exits with 1
    where one differs, or where no engine could be asked. Without BUNDLE, the one that
    ships.
    """
    from neurodeploy_export import verify_bundle

    verdicts = []
    for verdict in verify_bundle(bundle, device):
        verdicts.append(verdict)
        if as_json:
            continue
        name = f"{verdict.engine} {verdict.precision} on {verdict.device}"
        if verdict.parity is None:
            click.echo(f"  --    {name}: {verdict.reason}")
        elif verdict.failures:
            click.echo(f"  FAIL  {name}: {'; '.join(verdict.failures)}")
        else:
            click.echo(
                f"  same  {name}: {verdict.parity.flips:.4%} of voxels change label, "
                f"Dice {verdict.parity.dice:.5f}, max |dp| "
                f"{verdict.parity.max_difference:.2g}; "
                f"{(verdict.seconds or 0) * 1e3:.0f} ms a tile"
            )
    asked = [v for v in verdicts if v.agrees is not None]
    if as_json:
        plain = [
            {**asdict(v), "parity": v.parity.to_json() if v.parity else None}
            for v in verdicts
        ]
        click.echo(json.dumps(plain, indent=1))
    elif not asked:
        click.echo("no engine of this machine could be asked")
    if not asked or not all(v.agrees for v in asked):
        ctx.exit(1)
