"""Options that several verbs share, and the text of their values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from neurodeploy_runtime import EngineSettings, SegmentSettings, Source

#: What `input_options` adds to a verb.
INPUT_NAMES = ("channel", "time", "level", "axes", "dataset", "voxel_size_um")

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{k}i": 2 ** (10 * i) for i, k in enumerate("kmgt", 1)}


class Size(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Bytes, as `4GB`, `500 MB`, `2GiB`."""

    name = "SIZE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Bytes as a whole number."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", value.lower())
        if not found:
            self.fail(f"{value!r} is not a size: write 4GB, 500MB or 2GiB", param, ctx)
        return int(float(found[1]) * _UNITS[found[2] or ""])


class Roi(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A box, as `z0:z1,y0:y1,x0:x1`."""

    name = "Z0:Z1,Y0:Y1,X0:X1"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """The box."""
        from neurodeploy_runtime import Box

        if isinstance(value, Box):
            return value
        found = re.fullmatch(r"(\d+):(\d+),(\d+):(\d+),(\d+):(\d+)", value.strip())
        if not found:
            self.fail(f"{value!r} is not a box: write z0:z1,y0:y1,x0:x1", param, ctx)
        z0, z1, y0, y1, x0, x1 = map(int, found.groups())
        if not (z0 < z1 and y0 < y1 and x0 < x1):
            self.fail(f"{value!r} holds no voxel: each end is behind its start", param)
        return Box((z0, y0, x0), (z1, y1, x1))


class Finite(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A number that is one: within its bounds, and neither NaN nor infinite."""

    name = "NUMBER"

    def __init__(
        self,
        above: float | None = None,
        least: float | None = None,
        most: float | None = None,
    ) -> None:
        self.above, self.least, self.most = above, least, most

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        if self.above is not None and number <= self.above:
            self.fail(f"{value} is not above {self.above:g}", param, ctx)
        if self.least is not None and number < self.least:
            self.fail(f"{value} is less than {self.least:g}", param, ctx)
        if self.most is not None and number > self.most:
            self.fail(f"{value} is more than {self.most:g}", param, ctx)
        return number


class Triple(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Three numbers z,y,x."""

    name = "Z,Y,X"

    def __init__(self, whole: bool) -> None:
        self.whole = whole

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """Three numbers."""
        if isinstance(value, tuple):
            return value
        kind = int if self.whole else float
        try:
            numbers = tuple(kind(word) for word in re.split(r"[,x×]", value))
        except ValueError:
            numbers = ()
        if len(numbers) != 3:
            what = "whole numbers" if self.whole else "numbers"
            self.fail(f"{value!r} is not three {what}: write z,y,x", param, ctx)
        if not self.whole and not all(0 < n < float("inf") for n in numbers):
            self.fail(f"{value!r}: all three must be positive", param, ctx)
        return numbers


class Share(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """One of several workers, as `2/8`."""

    name = "I/N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """(i, n)."""
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d+)/(\d+)", value.strip())
        if not found:
            self.fail(f"{value!r} is not a share: write 1/8, 2/8, … 8/8", param, ctx)
        return int(found[1]), int(found[2])


def _apply(function: F, options: list[Callable[[F], F]]) -> F:
    for option in reversed(options):
        function = option(function)
    return function


def input_options(function: F) -> F:
    """What to read of a file that holds more than one volume."""
    return _apply(
        function,
        [
            click.option("--channel", type=int, help="Channel, counted from 0."),
            click.option("--time", type=int, help="Time point, counted from 0."),
            click.option("--level", type=int, default=0, help="Pyramid level."),
            click.option("--axes", help="Axes of the stored array, such as zcyx."),
            click.option("--dataset", help="Name of the array inside the file."),
            click.option(
                "--voxel-size",
                "voxel_size_um",
                type=Triple(whole=False),
                help="Micrometres at the level that is read, whatever the file says.",
            ),
        ],
    )


#: What `reading_options` put among a verb's options: the fields of a `Reading`.
READING_NAMES = ("channel", "time", "axes", "dataset")


def reading_options(function: F) -> F:
    """What to read of every image of a data folder."""
    return _apply(
        function,
        [
            click.option("--channel", type=int, help="Of every image, from 0."),
            click.option("--time", type=int, help="Time point of every image, from 0."),
            click.option("--axes", help="Axes of the stored arrays, such as zcyx."),
            click.option("--dataset", help="Name of the array inside the files."),
        ],
    )


def engine_options(function: F) -> F:
    """What runs the network, and where."""
    return _apply(
        function,
        [
            click.option(
                "--engine",
                type=click.Choice(["auto", "onnxruntime", "openvino", "tensorrt"]),
                default="auto",
                help="What runs the network.",
            ),
            click.option(
                "--device",
                default="auto",
                help="auto, cpu, cuda:N, or GPUs of one kind: cuda:0,cuda:1.",
                show_default=True,
            ),
            click.option(
                "--precision",
                type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
                default="auto",
                help="Arithmetic of the network.",
            ),
            click.option("--batch", type=click.IntRange(1), help="Tiles in a call."),
            click.option("--threads", type=click.IntRange(1), help="CPU threads."),
            click.option(
                "--blend-on",
                type=click.Choice(["auto", "host", "gpu"]),
                default="auto",
                help="Where tiles are normalised and blended; gpu takes CuPy.",
            ),
        ],
    )


def engine_settings(options: dict[str, Any]) -> EngineSettings:
    """Take the engine's options out of a verb's, as settings."""
    from neurodeploy_runtime import EngineSettings

    names = ("engine", "device", "precision", "threads", "batch", "blend_on")
    return EngineSettings(**{name: options.pop(name) for name in names})


def open_input(path: str, options: dict[str, Any], memory: int | None) -> Source:
    """Take the input's options out of a verb's, and open the volume."""
    from neurodeploy_runtime import open_volume

    chosen = {name: options.pop(name) for name in INPUT_NAMES}
    # Planes are read in order, each once: the cache is for chunks on a cut.
    cache = min(64 * 2**20, (memory or 4 * 10**9) // 32)
    return open_volume(path, cache_bytes=cache, **chosen)


def default_output(path: str, source: Source, ending: str = "seg") -> Path:
    """Where a result goes when nobody says: beside the input, of its kind.

    Zarr, N5 and precomputed give OME-Zarr; v3draw gives v3draw; all else TIFF. The
    result of a volume that lies on a server goes into the working folder.
    """
    folder, stem, suffix = beside_input(path)
    kind = source.format.lower()
    if any(word in kind for word in ("zarr", "n5", "precomputed")):
        return folder / f"{stem}.{ending}.ome.zarr"
    if suffix == ".v3draw":
        return folder / f"{stem}.{ending}.v3draw"
    return folder / f"{stem}.{ending}.tif"


def beside_input(path: str) -> tuple[Path, str, str]:
    """The folder of a result, the name it begins with, and the suffix of the input.

    Never inside a store: the result of an array in one lies beside the whole of it,
    and is named after both.
    """
    if "://" in path:
        return Path(), *_split(path.rstrip("/").rpartition("/")[2])
    given = Path(path)
    # The name of "." or ".." is that of the folder it stands for.
    given = given if given.name not in ("", "..") else given.resolve()
    store, within = _around(given)
    stem, suffix = _split(store.name)
    return store.parent, ".".join((stem, *within)), suffix


def _around(given: Path) -> tuple[Path, tuple[str, ...]]:
    """The outermost store that holds a path, and the names from there to it."""
    from neurodeploy_runtime.volumes._open import GROUP_MARKS

    here = given.absolute()
    within: tuple[str, ...] = ()
    while here != here.parent and any(
        (here.parent / mark).is_file() for mark in GROUP_MARKS
    ):
        here, within = here.parent, (here.name, *within)
    return (here, within) if within else (given, ())


def _split(name: str) -> tuple[str, str]:
    """A name and its suffix; only one that names a format, as a date has points, too.

    >>> _split("brain.ome.tif"), _split("2024.03.01_brain")
    (('brain', '.tif'), ('2024.03.01_brain', ''))
    """
    from neurodeploy_runtime.volumes._open import INPUT_SUFFIXES

    stem, point, ending = name.rpartition(".")
    suffix = f"{point}{ending}".lower()
    if not stem or suffix not in INPUT_SUFFIXES:
        return name, ""
    if stem.lower().endswith(".ome") and len(stem) > 4:
        stem = stem[:-4]
    return stem, suffix


def segment_options(function: F) -> F:
    """What a segmentation is asked for: the words that `segment` and `plan` share."""
    function = engine_options(input_options(function))
    return _apply(
        function,
        [
            click.argument("input"),
            click.option(
                "-m", "--model", help="Bundle; without it, the one that ships."
            ),
            click.option("-o", "--output", help="Result; its suffix says the format."),
            click.option(
                "--output-kind",
                type=click.Choice(["mask", "probability", "both"]),
                default="mask",
                help="0/255, or 255 times the probability.",
            ),
            click.option("--memory", type=Size(), help="Cap on memory, such as 4GB."),
            click.option("--roi", type=Roi(), help="Segment this box only."),
            click.option(
                "--threshold", type=float, help="Probability that is foreground."
            ),
            click.option(
                "--overlap", type=float, help="Share that neighbouring tiles overlap."
            ),
            click.option(
                "--flips", is_flag=True, help="Average over flips: 4 times the work."
            ),
            click.option(
                "--seam-map",
                is_flag=True,
                help="Also write how much overlapping tiles disagreed.",
            ),
            click.option(
                "--tissue",
                type=click.Path(path_type=Path),
                help="Mask of tissue, at any resolution: outside it nothing is run.",
            ),
            click.option(
                "--skip-background",
                is_flag=True,
                help="Leave out background tiles, audited.",
            ),
            click.option(
                "--skip-sigma",
                type=float,
                default=4.0,
                show_default=True,
                help="Noise scales above background that make a voxel bright.",
            ),
        ],
    )


def refuse_without(needed: str, *names: str) -> None:
    """Refuse options that were given and do nothing without another one."""
    context = click.get_current_context()
    for name in names:
        given = context.get_parameter_source(name)
        if given is click.core.ParameterSource.COMMANDLINE:
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(
                f"{option} does nothing without {needed}: add it, or leave {option} out"
            )


def segment_settings(options: dict[str, Any]) -> SegmentSettings:
    """Take what is left of a verb's options as settings of a segmentation."""
    from neurodeploy_runtime import SegmentSettings, SkipSettings

    engine = engine_settings(options)
    skip, sigma = options.pop("skip_background"), options.pop("skip_sigma")
    if not skip:
        refuse_without("--skip-background", "skip_sigma")
    return SegmentSettings(
        engine=engine,
        memory_bytes=options.pop("memory"),
        skip=SkipSettings(limit_sigma=sigma) if skip else None,
        **options,
    )
