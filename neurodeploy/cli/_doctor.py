"""`neurodeploy doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click


@click.command()
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, bundle: Path | None, as_json: bool) -> None:
    """Say what is installed, what is wrong, and the command that cures it.

    Also which engine would run BUNDLE (without it, the one that ships), and why not a
    better one. Exits with 1 where something is at fault.
    """
    from neurodeploy_export import about_engine, diagnose, look

    findings = [*diagnose(look()), *about_engine(bundle)]
    if as_json:
        click.echo(json.dumps([asdict(f) for f in findings], indent=1))
    else:
        marks = {"good": "  ok    ", "note": "  --    ", "fault": "  FAULT "}
        for finding in findings:
            click.echo(f"{marks[finding.state]}{finding.topic}: {finding.text}")
            if finding.cure:
                click.echo(f"          cure: {finding.cure}")
    if any(f.state == "fault" for f in findings):
        ctx.exit(1)
