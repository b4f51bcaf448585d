"""`neurodeploy train`."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neurodeploy.cli._console import console, on_terminal
from neurodeploy.cli._options import READING_NAMES, Triple, reading_options

if TYPE_CHECKING:
    from neurodeploy.data import AnnotatedVolume
    from neurodeploy.training import Row, TrainSettings
    from neurodeploy.training._loop import OnRow

#: Options that are fields of the settings under the same name.
_FIELDS = (
    "init", "donor_architecture", "inflate", "out", "name", "steps", "batch", "seed",
    "learning_rate", "device", "devices", "precision", "workers", "unit",
    "labels", "validation_share",
)  # fmt: skip

#: Options that are fields of its network.
_OF_NETWORK = ("mode", "tile", "patch")

#: The paper's block: five slices deep, the middle one is answered.
_SLICE_NETWORK = {"mode": "slice", "tile": [5, 96, 96], "patch": [5, 16, 16]}


@click.command()
@click.argument(
    "config", required=False, type=click.Path(dir_okay=False, path_type=Path)
)
@click.option(
    "--data",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Folder of images with tracings, masks or labelled slices; may be repeated.",
)
@click.option(
    "--init",
    help="scratch, timm:NAME (as timm:vit_base_patch16_224.dino), a file of 2D "
    "weights, or a checkpoint folder.",
)
@click.option(
    "--donor-architecture",
    metavar="NAME",
    help="The timm model that the file of --init belongs to.",
)
@click.option(
    "--inflate", type=click.Choice(["center", "average"]), help="How kernels get depth."
)
@click.option(
    "--mode",
    type=click.Choice(["volume", "slice"]),
    help="volume answers a whole tile; slice, the paper's, the middle slice of five.",
)
@click.option("--tile", type=Triple(whole=True), help="Voxels of a crop.")
@click.option(
    "--patch",
    type=Triple(whole=True),
    help="Voxels of a token; a donor has its own in y and x.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--name", help="What the model is called.")
@click.option("--steps", type=int, help="Optimiser steps in all.")
@click.option("--batch", type=int, help="Crops per step.")
@click.option("--learning-rate", type=float, help="At the end of the warm-up.")
@click.option("--seed", type=int, help="Decides everything that is drawn.")
@click.option("--device", help="auto, cpu, cuda, cuda:1.")
@click.option("--devices", type=int, help="How many; above 1 by Lightning Fabric.")
@click.option(
    "--precision", type=click.Choice(["auto", "bf16", "fp32"]), help="Of the network."
)
@click.option("--workers", type=int, help="Processes that prepare crops.")
@click.option(
    "--unit", type=click.Choice(["voxel", "um"]), help="Of tracings that do not say."
)
@click.option(
    "--voxel-size",
    metavar="Z,Y,X",
    help="Micrometres per voxel, where the images do not say.",
)
@click.option(
    "--labels",
    type=click.Choice(["auto", "mask", "slices"]),
    help="How voxel annotations are read; auto looks at a folder's values together.",
)
@reading_options
@click.option("--validation-share", type=float, help="Share of volumes held out.")
@click.option("--resume", is_flag=True, help="Go on where the run in --out stopped.")
@click.option("--quiet", is_flag=True, help="No progress.")
def train(
    config: Path | None,
    data: tuple[Path, ...],
    voxel_size: str | None,
    resume: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train a network, from CONFIG.toml, from options, or both: options win.

    The run's folder gets `config.json` (the effective settings), `log.csv`,
    `curves.png`, and the checkpoints `last` and `best`.
    """
    from neurodeploy.training import read_checkpoint
    from neurodeploy.training import train as run
    from neurodeploy.training._data import load_volumes

    settings = _settings(config, data, voxel_size, resume, options)

    def say(text: str) -> None:
        if not quiet:
            click.echo(text, err=True)

    volumes = load_volumes(settings, say)
    training, validation = _parts(volumes, settings, resume, say)
    if settings.init == "scratch":
        say("from scratch: no donor's weights are used")
    started = time.perf_counter()
    with _progress(settings.steps, quiet) as on_row:
        result = run(settings, training, validation, resume=resume, on_row=on_row)
    if not result.first_rank:
        return
    table = read_checkpoint(result.checkpoint).transfer
    if table and not quiet:
        _show_transfer(table)
    if result.score:
        figures = (
            f"validation average precision {result.score.average_precision:.3f}, best "
            f"Dice {result.score.dice:.3f} at threshold {result.score.threshold:.2f}"
        )
    elif validation:
        figures = (
            f"the {len(validation)} volumes held out are labelled with one class only, "
            "which gives no figure: the last step is taken"
        )
    else:
        figures = "no volume was held out for validation"
    click.echo(
        f"{result.checkpoint}: step {result.step} of {settings.steps}, "
        f"{time.perf_counter() - started:.0f} s; {figures}"
    )


def _parts(
    volumes: list[AnnotatedVolume],
    settings: TrainSettings,
    resume: bool,
    say: Callable[[str], None],
) -> tuple[list[AnnotatedVolume], list[AnnotatedVolume]]:
    """What is trained on and what is held out; of a run that goes on, as it began."""
    from neurodeploy.data._volumes import image_digest
    from neurodeploy.training import is_checkpoint, read_checkpoint, split
    from neurodeploy.training._loop import volumes_before
    from neurodeploy.training._split import split_as, split_by_place

    last = Path(settings.out) / "last"
    share, seed = settings.validation_share, settings.seed
    if not (resume and is_checkpoint(last)):
        before = volumes_before(settings)
        marks = {entry["image"] for entries in before.values() for entry in entries}
        training, held = split(volumes, share, seed, marks)
        _say_copies(volumes, say)
        known = [v.name for v in held if image_digest(v.image) in marks]
        if known:
            say(
                f"held out: {', '.join(known)}, which {settings.init} was made with: "
                "figures of the validation do not say how well the network does on "
                "other images"
            )
        return training, held
    begun = read_checkpoint(last).volumes
    if begun:
        return split_as(volumes, begun)
    say(
        f"{last} does not say which images it was trained on: whether these are "
        "the same is not known"
    )
    return split_by_place(volumes, share, seed)


def _say_copies(volumes: list[AnnotatedVolume], say: Callable[[str], None]) -> None:
    from neurodeploy.data._volumes import image_digest

    first: dict[str, str] = {}
    for volume in volumes:
        other = first.setdefault(image_digest(volume.image), volume.name)
        if other != volume.name:
            say(f"{volume.name} is a copy of {other}: both are on one side")


def _settings(
    config: Path | None,
    data: tuple[Path, ...],
    voxel_size: str | None,
    resume: bool,
    options: dict[str, Any],
) -> TrainSettings:
    """The file's fields, the options over them, and the defaults below both."""
    from neurodeploy.training import TrainSettings, read_toml

    values: dict[str, Any] = {}
    where = "the options"
    stored = Path(options["out"] or TrainSettings.out) / "config.json"
    if config is not None:
        values, where = read_toml(config), str(config)
    elif resume and stored.is_file():
        values, where = _stored(stored), str(stored)
    for name in _FIELDS:
        if options[name] is not None:
            value = options[name]
            values[name] = str(value) if isinstance(value, Path) else value
    if data:
        values["data"] = [str(path) for path in data]
    if voxel_size is not None:
        values["voxel_size_um"] = _three(voxel_size)
    asked = {n: options[n] for n in READING_NAMES if options[n] is not None}
    reading = values.get("reading", {})
    if asked and isinstance(reading, dict):  # else it is refused below
        values["reading"] = {**reading, **asked}
    network = values.get("network", {})
    changed = {n: options[n] for n in _OF_NETWORK if options[n] is not None}
    if changed and isinstance(network, dict):  # else it is refused below
        turned = changed.get("mode") == "slice" != network.get("mode")
        plain = _SLICE_NETWORK if turned else {}
        values["network"] = {**plain, **network, **changed}
    return TrainSettings.from_plain(values, where)


def _stored(path: Path) -> dict[str, Any]:
    """The settings that a run has written down."""
    from neurodeploy._errors import ConfigError

    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no settings: it is not of a run")
    return values


def _three(text: str) -> list[float]:
    words = re.split(r"[,x×]", text)
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or min(numbers) <= 0:
        raise click.BadParameter(
            f"{text!r} is not three numbers above 0: write z,y,x in micrometres"
        )
    return numbers


def _show_transfer(table: list[dict[str, Any]]) -> None:
    """What became of the donor's parameters; equal blocks as one line."""
    from rich.table import Table

    shown = Table("parameter", "rule", "shape", "how", box=None)
    seen: dict[tuple[str, str, str], int] = {}
    for row in table:
        name = re.sub(r"^blocks\.\d+\.", "blocks.*.", row["parameter"])
        key = (name, row["rule"], row["note"])
        seen[key] = seen.get(key, 0) + 1
        if seen[key] == 1:
            shape = "×".join(map(str, row["shape"]))
            shown.add_row(name, row["rule"], shape, row["note"])
    console(stderr=True).print(shown)


@contextmanager
def _progress(steps: int, quiet: bool) -> Iterator[OnRow | None]:
    """A bar on a terminal; elsewhere a line a minute and one per validation."""
    if quiet:
        yield None
        return
    if not on_terminal():
        last = time.monotonic()

        def line(row: Row) -> None:
            nonlocal last
            measured = row.validation_average_precision is not None
            if measured or time.monotonic() - last > 60:
                last = time.monotonic()
                click.echo(f"step {row.step} of {steps}: {_text(row)}", err=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task("", total=steps)

        def show(row: Row) -> None:
            bar.update(task, completed=row.step, description=_text(row))

        yield show


def _text(row: Row) -> str:
    text = f"loss {row.loss:.3f}, {row.crops_per_s:.1f} crops/s"
    if row.validation_average_precision is not None:
        text += f", validation AP {row.validation_average_precision:.3f}"
    return text
