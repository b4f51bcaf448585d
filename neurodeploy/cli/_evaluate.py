"""`neurodeploy evaluate`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neurodeploy.cli._console import console
from neurodeploy.cli._options import (
    READING_NAMES,
    Finite,
    Triple,
    engine_options,
    engine_settings,
    reading_options,
    refuse_without,
)

if TYPE_CHECKING:
    from neurodeploy.data import Found, Part, Reading
    from neurodeploy.data._labels import LabelKind
    from neurodeploy.evaluation import (
        Annotated,
        BaselineFigures,
        Evaluation,
        Figures,
    )

    Kinds = dict[Path, LabelKind]

#: What a table says of a part.
_SEEN = {"training": "trained on", "validation": "validation", "unseen": "not seen"}


@click.command()
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="Folder of annotated images; for a tracing, the true tracing.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="New folder for evaluation.json and the overlays.",
)
@click.option(
    "--threshold",
    type=Finite(least=0, most=1),
    help="Probability that is neurite, 0 to 1; without it, the model's own.",
)
@click.option("--baselines", is_flag=True, help="Also measure filters.")
@click.option(
    "--unit",
    type=click.Choice(["voxel", "um"]),
    default="voxel",
    show_default=True,
    help="What tracings are written in where they do not say.",
)
@click.option(
    "--voxel-size",
    type=Triple(whole=False),
    help="Micrometres, where the images do not say.",
)
@click.option(
    "--labels",
    type=click.Choice(["auto", "mask", "slices"]),
    default="auto",
    show_default=True,
    help="How voxel annotations are read; auto looks at a folder's values together.",
)
@reading_options
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quiet", is_flag=True, help="Print the figures only.")
def evaluate(
    model: Path | None,
    data: Path,
    output: Path | None,
    threshold: float | None,
    baselines: bool,
    unit: Any,
    voxel_size: tuple[float, float, float] | None,
    labels: Any,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure a network against annotated images.

    MODEL is a bundle or a checkpoint; without it, the bundle that ships. It may also
    be a tracing (.swc), which is compared with the tracing that --data names: ESA, DSA
    and PDS as Vaa3D defines them, in voxels.
    """
    if model is not None and model.suffix.lower() in (".swc", ".eswc"):
        refuse_without(
            "a network",
            *("output", "threshold", "baselines", "labels"),
            *options,
        )
        if unit == "voxel":
            refuse_without("--unit um", "voxel_size")
        _print_distances(model, data, unit, voxel_size)
        return
    from neurodeploy.data import Reading, describe_kinds, find_pairs, label_kinds
    from neurodeploy.evaluation import evaluate as measure
    from neurodeploy.evaluation import open_model, overlay_png

    reading = Reading(**{name: options.pop(name) for name in READING_NAMES})
    found = find_pairs(data)
    kinds = label_kinds(found, labels)

    def say(text: str) -> None:
        if not quiet and not as_json:
            click.echo(text, err=True)

    say(found.describe())
    if kinds:
        say(describe_kinds(kinds))
    pictures: dict[str, bytes] = {}

    def on_image(image: Annotated, probability: Any, figures: Figures) -> None:
        say(f"measured {figures.name}")
        if output is not None:
            stem = figures.name.replace("/", "_")
            # Images of one name in two folders have a picture each.
            name = f"{stem}.png"
            for number in count(2):
                if name not in pictures:
                    break
                name = f"{stem}-{number}.png"
            volume = image.volume
            mask = probability >= figures.voxels.threshold
            pictures[name] = overlay_png(volume.image, volume.labels, mask)

    with open_model(model, engine_settings(options)) as opened:
        if output is not None:
            _make_folder(output)
        result = measure(
            _images(found, kinds, unit, voxel_size, reading, say),
            opened.predict,
            opened.threshold if threshold is None else threshold,
            on_image=on_image,
            part_of=opened.part_of,
        )
        name = opened.name
    filters = _filters(found, kinds, unit, voxel_size, reading) if baselines else {}
    values = {
        "model": name,
        "data": str(data),
        **result.to_json(),
        "baselines": {k: None if v is None else vars(v) for k, v in filters.items()},
        "labels": {str(path): kind for path, kind in kinds.items()},
        "left_out": [[str(path), reason] for path, reason in found.left_out],
    }
    text = json.dumps(values, indent=1)
    if as_json:
        click.echo(text)
    else:
        _print_table(name, result, filters)
    if output is not None:
        _write(output, {**pictures, "evaluation.json": text.encode()})


def _make_folder(folder: Path) -> None:
    """Make a folder, or take an empty one, before hours of measuring."""
    from neurodeploy_runtime import OutputError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = not any(folder.iterdir())
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be made: {error.strerror}; name another folder"
        ) from error
    if not is_empty:
        raise OutputError(f"{folder} is not empty: name a new folder")


def _write(folder: Path, files: dict[str, bytes]) -> None:
    from neurodeploy_runtime import WriteError

    try:
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise WriteError(
            f"{folder} lacks figures or pictures: {error.strerror}; the figures were "
            "printed"
        ) from error


def _images(
    found: Found,
    kinds: Kinds,
    unit: Any,
    size: tuple[float, float, float] | None,
    reading: Reading,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Annotated]:
    from neurodeploy.data import load_pair, read_tracing
    from neurodeploy.evaluation import Annotated, draw_line

    for pair in found.pairs:
        volume = load_pair(
            pair,
            unit=unit,
            voxel_size_um=size,
            labels=kinds.get(pair.annotation, "auto"),
            reading=reading,
            say=say,
        )
        line = None
        if pair.kind == "tracing":
            tracing = read_tracing(pair, unit=unit, voxel_size_um=size, reading=reading)
            line = draw_line(tracing.samples(0.5)[0], volume.image.shape)
        yield Annotated(volume, line)


def _filters(
    found: Found,
    kinds: Kinds,
    unit: Any,
    size: tuple[float, float, float] | None,
    reading: Reading,
) -> dict[str, BaselineFigures | None]:
    from neurodeploy.evaluation import BASELINES, baseline_figures

    volumes = [image.volume for image in _images(found, kinds, unit, size, reading)]
    return {name: baseline_figures(volumes, score) for name, score in BASELINES.items()}


def _print_distances(
    tracing: Path, truth: Path, unit: Any, size: tuple[float, float, float] | None
) -> None:
    from neurodeploy._errors import DataError
    from neurodeploy.morphology import read_swc, tracing_distances

    found = []
    sizes = []
    for path in (truth, tracing):
        read = read_swc(path)
        if unit == "um" or read.voxel_size_um is not None:
            own = read.voxel_size_um or size
            if own is None:
                raise DataError(
                    f"{path} is in micrometres and does not say the voxel size: give "
                    "it with --voxel-size"
                )
            read = read.to_voxels(own)
            sizes.append(own)
        found.append(read)
    if len(set(sizes)) > 1:
        raise DataError(
            f"{truth} is of voxels of {sizes[0]} µm (z, y, x) and {tracing} of "
            f"{sizes[1]}: compare tracings of one image"
        )
    distances = tracing_distances(found[0], found[1])
    click.echo(json.dumps(distances.to_json(), indent=1))


def _print_table(
    name: str, result: Evaluation, filters: dict[str, BaselineFigures | None]
) -> None:
    from rich.table import Table

    table = Table(title=f"{name}, threshold {result.threshold:.3g}")
    rows = [(_marked(figures.name, figures.part), figures) for figures in result.images]
    longest = max(len(name) for name, _ in rows)
    table.add_column("image", min_width=min(40, longest))
    heads = ["AP", "Dice", "best", "prec.", "recall", "clDice"]
    heads += ["line rec. 2", "3", "line prec. 2", "3", "HD95"]
    for head in heads:
        table.add_column(head, justify="right")
    if len(result.parts) > 1:
        parts = sorted(result.parts.items())
        rows += [(_marked("together", part), figures) for part, figures in parts]
    for text, figures in (*rows, (result.pooled.name, result.pooled)):
        if len(table.rows) == len(result.images):
            table.add_section()
        v, s = figures.voxels, figures.skeleton
        row = [v.average_precision, v.dice, v.best_dice, v.precision, v.recall]
        row += [s.cl_dice, s.recall_2, s.recall_3, s.precision_2, s.precision_3]
        row.append(math.inf if s.hd95_infinite else s.hd95)
        table.add_row(text, *("–" if x is None else f"{x:.3f}" for x in row))
    for filter_, figure in filters.items():
        values = ("–", "", "–")
        if figure is not None:
            values = f"{figure.average_precision:.3f}", "", f"{figure.best_dice:.3f}"
        table.add_row(filter_, *values)
    out = console(width=max(140, console().width))
    out.print(table)
    if any(f.skeleton.slices for f in result.images):
        out.print("labels lie in single planes: centre lines are judged in 2D")
    out.print(_said_of_parts(result), highlight=False)


def _marked(name: str, part: Part | None) -> str:
    return name if part is None else f"{name} ({_SEEN[part]})"


def _said_of_parts(result: Evaluation) -> str:
    """How far the figures tell of images that the network has never seen."""
    total = len(result.images)
    count = {part: sum(i.part == part for i in result.images) for part in _SEEN}
    if sum(count.values()) < total:
        return "the model does not say which images it was trained on"
    if not count["training"] and not count["validation"]:
        return "the model was trained on none of these images"
    return (
        f"of {total} images the model was trained on {count['training']} and chosen by "
        f"{count['validation']} (validation): figures of these do not say how well it "
        "does on others"
    )
