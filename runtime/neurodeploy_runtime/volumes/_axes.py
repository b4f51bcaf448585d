"""Which stored axis is z, y and x, and which index the others are held at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from neurodeploy_runtime._errors import InputError, SettingsError
from neurodeploy_runtime._geometry import Shape
from neurodeploy_runtime.volumes._base import ReadOptions, checked_shape

_NAMES = {"T": "time", "C": "channel"}


@dataclass(frozen=True)
class Layout:
    """A volume inside a stored array of any number of axes."""

    #: Extents of the stored array.
    stored: tuple[int, ...]
    #: Which stored axes are z, y, x.
    zyx: tuple[int, int, int]
    #: Index on every other axis; 0 for z, y and x.
    index: tuple[int, ...]

    @property
    def shape(self) -> Shape:
        """Extents of the volume."""
        z, y, x = (self.stored[axis] for axis in self.zyx)
        return z, y, x


def layout_of(
    axes: str, stored: Sequence[int], options: ReadOptions, where: str
) -> Layout:
    """Find the volume in an array whose file names its axes by the letters `axes`.

    What the caller says (`options.axes`) goes before what the file says. A letter that
    says nothing (I, Q) counts as z when it leads an array of three axes: what else
    would a stack be. Nothing is ever guessed from extents.
    """
    stored = tuple(int(n) for n in stored)
    said = options.axes.upper() if options.axes is not None else None
    if said is not None:
        if sorted(set(said)) != sorted(said) or not set("YX") <= set(said) <= set(
            "TCZYX"
        ):
            raise SettingsError(
                f"axes {options.axes!r} are not possible: use each of z, y, x and, "
                "where the file has them, t and c once, in stored order"
            )
        if len(said) == len(stored) + 1 and said[0] == "Z":
            stored = (1, *stored)  # a stack of one plane
        if len(said) != len(stored):
            raise InputError(
                f"{where} has {len(stored)} axes of {stored} voxels: axes "
                f"{options.axes!r} name {len(said)}"
            )
        axes = said
    elif axes.upper() in ("IYX", "QYX"):
        axes = "ZYX"
    axes = axes.upper()
    if "S" in axes and stored[axes.index("S")] > 1:
        raise InputError(
            f"{where} is a colour image ({stored[axes.index('S')]} samples a voxel): "
            "save one channel of it as a grey stack"
        )
    if axes == "YX":
        raise InputError(
            f"{where} is one plane of {stored} voxels and no volume: give a stack, or "
            "say axes zyx where it is a stack of one plane"
        )
    named = f"axes {axes.lower()} of {stored} voxels"
    if not set("ZYX") <= set(axes):
        raise InputError(
            f"{where} has {named} and none that is said to be z: say what they are, "
            'for example axes "zyx"'
        )
    index = [0] * len(stored)
    for position, (letter, extent) in enumerate(zip(axes, stored, strict=True)):
        if letter in "ZYX":
            continue
        name = _NAMES.get(letter)
        if name is None:
            if extent > 1:
                raise InputError(
                    f"{where} has {named}, and {letter.lower()} is neither channel "
                    "nor time: say what they are by axes, or save one 3D stack"
                )
            continue
        index[position] = pick(name, extent, options, where)
    if "C" not in axes:
        pick("channel", 1, options, where)
    if "T" not in axes:
        pick("time", 1, options, where)
    if prod(stored) == 0:
        raise InputError(f"{where} is empty: it has {named}")
    zyx = (axes.index("Z"), axes.index("Y"), axes.index("X"))
    layout = Layout(stored, zyx, tuple(index))
    checked_shape(layout.shape, where)
    return layout


def pick(name: str, extent: int, options: ReadOptions, where: str) -> int:
    """The channel, time or level that was asked for, of `extent` that there are."""
    asked: int | None = getattr(options, name)
    if asked is None:
        if extent > 1:
            raise InputError(
                f"{where} has {extent} {name}s: choose one with "
                f"--{name} 0 to {extent - 1}"
            )
        return 0
    if asked >= extent:
        raise InputError(
            f"{where} has no {name} {asked}: "
            + ("it has only 0" if extent == 1 else f"choose 0 to {extent - 1}")
        )
    return asked
