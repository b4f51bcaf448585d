"""The entry point: verbs are found lazily, errors become a sentence and a code."""

from __future__ import annotations

import difflib
import os
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

#: Verb, and what `neurodeploy --help` says of it. Its module is imported when used.
VERBS = {
    "sample": "Make a realistic light-sheet volume with known truth.",
    "segment": "Segment a volume of any size.",
    "info": "Show what a bundle or a result is, and verify it.",
    "plan": "Predict memory, disk, tiles and time of a segmentation.",
    "ingest": "Rewrite a volume as sharded OME-Zarr, in one pass.",
    "reproduce": "Run a region of a result again and compare.",
    "train": "Train a 3D network from a 2D donor.",
    "evaluate": "Measure a network against annotated images.",
    "export": "Turn a checkpoint into a bundle, with proof.",
    "build": "Build a TensorRT engine for a bundle.",
    "verify": "Run a bundle's golden tiles on this machine.",
    "doctor": "Say what is installed and what is wrong.",
    "benchmark": "Measure every engine that is possible here.",
    "rig-check": "Say what this machine sustains beside a camera.",
    "serve": "Segment planes that another process sends.",
}


class LazyGroup(click.Group):
    """Knows the verbs by name; imports a verb's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every verb, in the order in which they are used."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The verb's command, from ``neurodeploy.cli._VERB``."""
        if name not in VERBS:
            return None
        symbol = name.replace("-", "_")
        module = import_module(f"neurodeploy.cli._{symbol}")
        command: click.Command = getattr(module, symbol)
        return command

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """Write the verbs without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, naming the nearest verb where there is none."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], VERBS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="neurodeploy")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Train, export and run 3D neuron segmentation networks."""
    ctx.obj = {"debug": debug}


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 2 wrong request, 1 failed, 130 Ctrl-C."""
    arguments = sys.argv[1:] if args is None else args
    debug = "--debug" in arguments
    # --debug may stand anywhere.
    arguments = [a for a in arguments if a != "--debug"]
    if debug:
        arguments = ["--debug", *arguments]
    try:
        # What ctx.exit() was given comes back; a verb returns nothing itself.
        code = cli.main(arguments, prog_name="neurodeploy", standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _say("stopped; nothing half-done has taken a final name")
        sys.exit(130)
    except click.ClickException as error:
        _say(_usage(error))
        sys.exit(2)
    except BrokenPipeError:
        os._exit(1)
    except Exception as error:
        if debug:
            raise
        _fail(error)
    sys.exit(code or 0)


def _usage(error: click.ClickException) -> str:
    text = error.format_message()
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        names = [
            name
            for parameter in error.ctx.command.params
            for name in parameter.opts
            if name.startswith("--")
        ]
        near = difflib.get_close_matches(error.option_name, names, 1, 0.5)
        text = f"there is no option {error.option_name} here"
        text += f": did you mean {near[0]}?" if near else "; see --help"
    return text


def _fail(error: Exception) -> NoReturn:
    code: Any = getattr(error, "exit_code", None)
    if isinstance(code, int):
        _say(str(error))
        sys.exit(code)
    if isinstance(error, ModuleNotFoundError):
        _say(_missing(error))
        sys.exit(2)
    if isinstance(error, OSError) and error.filename is not None:
        _say(
            f"{error.filename} cannot be used: {error.strerror}; see to it and to who "
            "may use it, or name another"
        )
        sys.exit(2 if isinstance(error, PermissionError) else 1)
    if isinstance(error, MemoryError):
        _say("the machine has no memory left: pass a smaller --memory")
        sys.exit(1)
    _say(
        f"{type(error).__name__}: {error} (an error that was not foreseen; repeat with "
        "--debug and report what it shows)"
    )
    sys.exit(1)


def _missing(error: ModuleNotFoundError) -> str:
    name = (error.name or "").partition(".")[0]
    extras = {
        "torch": "train",
        "timm": "train",
        "safetensors": "train",
        "matplotlib": "train",
        "skimage": "train",
        "sklearn": "train",
        "onnx": "export",
        "onnxscript": "export",
        "openvino": "openvino",
        "tensorrt": "tensorrt",
        "tensorstore": "cluster",
        "h5py": "cluster",
        "pymmcore_plus": "rig",
    }
    extra = extras.get(name)
    if extra is None:
        return f"the module {name} is not installed: pip install {name}"
    return f'{name} is not installed: pip install "neurodeploy[{extra}]"'


def _say(text: str) -> None:
    click.echo(f"neurodeploy: {text}", err=True)
