"""`neurodeploy serve`."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Any

import click

from neurodeploy.cli._options import Size, engine_options, engine_settings


@click.command()
@click.argument("bundle", required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Listen here.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=7355,
    show_default=True,
    help="0: any that is free; it is printed.",
)
@click.option(
    "--allow-remote",
    is_flag=True,
    help="Let other machines in; there is no password, and no encryption.",
)
@click.option(
    "--view-port",
    type=click.IntRange(0, 65535),
    help="Show a page of what arrives, on this machine; 0 takes a free port.",
)
@click.option("--threshold", type=float, help="Probability that is foreground.")
@click.option("--overlap", type=float, help="Share that neighbouring tiles overlap.")
@click.option("--ring", type=click.IntRange(1), help="Raw planes that are held.")
@click.option("--memory", type=Size(), help="What the buffers may take.")
@click.option(
    "--limit",
    type=Size(),
    default=256 * 2**20,
    help="The largest message that is accepted.  [default: 256MiB]",
)
@engine_options
def serve(**options: Any) -> None:
    """Segment planes that another process sends over TCP, for rigs not in Python.

    BUNDLE is the model; without it, the one that ships. The protocol, with a client
    in C, lies in neurodeploy_runtime/serving. When the engine is warm, one line says
    where the server listens; Ctrl-C ends it.
    """
    from neurodeploy_runtime import LiveSettings, load_bundle
    from neurodeploy_runtime.live import LiveView
    from neurodeploy_runtime.serving import RigServer, ServerSettings

    settings = ServerSettings(
        host=options["host"],
        port=options["port"],
        allow_remote=options["allow_remote"],
        limit_bytes=options["limit"],
    )
    live = LiveSettings(
        engine=engine_settings(options),
        threshold=options["threshold"],
        overlap=options["overlap"],
        ring_planes=options["ring"],
        memory_bytes=options["memory"],
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with ExitStack() as stack:
        server = stack.enter_context(
            RigServer(load_bundle(options["bundle"]), live, settings)
        )
        click.echo(f"listening on {settings.host}:{server.port}")
        if options["view_port"] is not None:
            view = stack.enter_context(
                LiveView(lambda: server.live, port=options["view_port"])
            )
            click.echo(f"see {view.address}")
        server.wait()
