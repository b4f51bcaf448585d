"""What Zarr, N5 and precomputed stores say of themselves: pure functions of their JSON.

Sources: OME-NGFF 0.1 to 0.5 (https://ngff.openmicroscopy.org), the N5 specification and
the attributes that n5-viewer and BigStitcher write, Neuroglancer's `info`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neurodeploy_runtime._errors import InputError
from neurodeploy_runtime.volumes._voxel_size import VoxelSize, micrometres

Json = Mapping[str, Any]

_AXIS_OF_TYPE = {"time": "T", "channel": "C"}


@dataclass(frozen=True)
class ArrayPlace:
    """Where an array lies in a store and what its axes are."""

    #: Folder of the array, from the store's root; "" for the root.
    path: str
    #: A letter per stored axis; Q for one that nothing is said of.
    axes: str
    voxel_size_um: VoxelSize | None


def ome_levels(multiscales: Any, where: str) -> list[ArrayPlace]:
    """The levels of an OME-Zarr image, the finest first.

    Raises
    ------
    InputError
        The metadata is not that of one image.
    """
    try:
        image = multiscales[0]
        axes = image.get("axes") or list("tczyx")
        letters = "".join(_letter(axis) for axis in axes)
        units = [axis.get("unit") if isinstance(axis, dict) else None for axis in axes]
        common = _scale(image.get("coordinateTransformations"), len(axes))
        places = []
        for dataset in image["datasets"]:
            own = _scale(dataset.get("coordinateTransformations"), len(axes))
            sizes = [a * b for a, b in zip(common, own, strict=True)]
            places.append(
                ArrayPlace(
                    dataset["path"].strip("/"), letters, _sizes(letters, sizes, units)
                )
            )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{where} has OME-Zarr metadata that cannot be understood "
            f"({type(error).__name__}: {error}): name the array with --dataset"
        ) from error
    if not places:
        raise InputError(f"{where} is an OME-Zarr image without any level")
    return places


def _letter(axis: Any) -> str:
    """Of an axis of 0.4 and later (an object), or of 0.3 (its name)."""
    name = str(axis["name"] if isinstance(axis, dict) else axis).upper()
    if isinstance(axis, dict) and axis.get("type") in _AXIS_OF_TYPE:
        return _AXIS_OF_TYPE[axis["type"]]
    return name if name in set("TCZYX") else "Q"


def _scale(transforms: Any, axes: int) -> list[float]:
    for transform in transforms or ():
        if transform.get("type") == "scale":
            scale = [float(s) for s in transform["scale"]]
            if len(scale) == axes:
                return scale
    return [1.0] * axes


def _sizes(
    letters: str, sizes: Sequence[float], units: Sequence[str | None]
) -> VoxelSize | None:
    found = {
        letter: micrometres(size, unit)
        for letter, size, unit in zip(letters, sizes, units, strict=True)
    }
    z, y, x = (found.get(letter) for letter in "ZYX")
    return None if z is None or y is None or x is None else (z, y, x)


def named_axes(names: Any, count: int) -> str:
    """Letters of an array's own dimension names; Q where they say nothing.

    >>> named_axes(["z", "y", "x"], 3), named_axes(None, 3)
    ('ZYX', 'QYX')
    """
    listed = names if isinstance(names, list) else []
    letters = [str(name).upper() for name in listed]
    if len(letters) == count and set(letters) <= set("TCZYX"):
        return "".join(letters)
    return "Q" * (count - 2) + "YX"


def n5_place(attributes: Json, parents: Sequence[Json], path: str) -> ArrayPlace:
    """An N5 array; N5 stores x first.

    `parents` are the attributes of the groups around it, the nearest first.
    """
    count = len(attributes["dimensions"])
    names = attributes.get("axes")
    axes = "XYZ" if count == 3 and not names else named_axes(names, count)
    return ArrayPlace(path, axes, _n5_size(attributes, parents))


def _n5_size(attributes: Json, parents: Sequence[Json]) -> VoxelSize | None:
    """From `pixelResolution`, or `resolution` and `units`; x, y, z.

    What stands beside the array itself holds for it; what stands on a group holds for
    the finest level, and `downsamplingFactors` says how much coarser this one is.
    """
    for number, described in enumerate((attributes, *parents)):
        size: Any = described.get("pixelResolution")
        units: Any = None
        if isinstance(size, Mapping):
            units = size.get("unit")
            size = size.get("dimensions")
        size = size or described.get("resolution")
        units = described.get("units") or units
        if not isinstance(size, Sequence) or len(size) < 3:
            continue
        names = [units] * 3 if isinstance(units, str) else units
        if not isinstance(names, list) or len(names) < 3:
            return None
        factors = attributes.get("downsamplingFactors") if number else None
        factors = factors if isinstance(factors, list) else [1, 1, 1]
        try:
            x, y, z = (
                micrometres(float(s) * float(f), u)
                for s, f, u in zip(size[:3], factors[:3], names[:3], strict=True)
            )
        except (AttributeError, TypeError, ValueError):  # anybody may have written it
            return None
        return None if z is None or y is None or x is None else (z, y, x)
    return None


def precomputed_sizes(info: Json) -> list[VoxelSize | None]:
    """Voxel sizes of the scales of a precomputed volume, the finest first."""
    sizes: list[VoxelSize | None] = []
    for scale in info["scales"]:
        x, y, z = (micrometres(float(nm) / 1000, "um") for nm in scale["resolution"])
        sizes.append(None if z is None or y is None or x is None else (z, y, x))
    return sizes
