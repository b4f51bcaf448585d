"""How large a voxel is, as the metadata of a TIFF says it."""

from __future__ import annotations

import math
from typing import Any
from xml.etree import ElementTree

VoxelSize = tuple[float, float, float]

#: Micrometres per unit, by its sign and by its name in the singular: UDUNITS spells
#: it out for OME-Zarr, and ImageJ takes what is typed.
_UM = {
    "um": 1.0,
    "µm": 1.0,
    "μm": 1.0,
    "micron": 1.0,
    "micrometer": 1.0,
    "pm": 1e-6,
    "picometer": 1e-6,
    "å": 1e-4,
    "angstrom": 1e-4,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "mm": 1e3,
    "millimeter": 1e3,
    "cm": 1e4,
    "centimeter": 1e4,
    "m": 1e6,
    "meter": 1e6,
    "in": 25400.0,
    "inch": 25400.0,
}

#: How ImageJ writes either letter of micro.
_ESCAPES = {"\\u00b5": "µ", "\\u03bc": "μ"}


def micrometres(value: float, unit: str | None) -> float | None:
    """A length in µm; None for a unit that is no length, as `pixel`, or no size."""
    name = (unit or "").strip().lower()
    for written, letter in _ESCAPES.items():
        name = name.replace(written, letter)
    name = name.replace("metre", "meter").replace("inches", "inch")
    if len(name) > 4:  # a word, and no sign: ms are milliseconds
        name = name.removesuffix("s")
    factor = _UM.get(name)
    if factor is None or not (math.isfinite(value) and value > 0):
        return None
    return value * factor


def imagej_voxel_size(
    metadata: dict[str, Any], resolution: tuple[Any, Any]
) -> VoxelSize | None:
    """From ImageJ's `spacing` and `unit`, and the TIFF's pixels per unit on x, y."""
    unit = metadata.get("unit")
    try:
        z = micrometres(float(metadata["spacing"]), metadata.get("zunit", unit))
        x, y = (
            micrometres(float(pixels[1]) / float(pixels[0]), unit_of_axis)
            for pixels, unit_of_axis in zip(
                resolution, (unit, metadata.get("yunit", unit)), strict=True
            )
        )
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError):
        return None
    return None if z is None or y is None or x is None else (z, y, x)


def ome_voxel_size(xml: str, series: int) -> VoxelSize | None:
    """From `PhysicalSizeZ` and its like of an image of an OME-XML."""
    try:
        root = ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError):
        return None
    pixels = [node for node in root.iter() if node.tag.rpartition("}")[2] == "Pixels"]
    if series >= len(pixels):
        return None
    attributes = pixels[series].attrib
    sizes = []
    for axis in "ZYX":
        try:
            value = float(attributes[f"PhysicalSize{axis}"])
        except (KeyError, ValueError):
            return None
        # The schema's default unit is µm.
        size = micrometres(value, attributes.get(f"PhysicalSize{axis}Unit", "µm"))
        if size is None:
            return None
        sizes.append(size)
    z, y, x = sizes
    return z, y, x
