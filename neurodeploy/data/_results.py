"""Which volumes are this tool's own answers, and no ground truth."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from neurodeploy_runtime import InputError
from neurodeploy_runtime._provenance import read_report

#: What stands before the provenance in a TIFF's header, and how far in it may end.
_MARK = "neurodeploy: "
_HEADER_BYTES = 256 * 1024

#: Of a model's answer, and of no simulated or converted volume.
_OF_A_MODEL = '"model"'


def is_result(path: Path) -> bool:
    """Whether a volume is a segmentation that this tool wrote.

    It is where our report lies beside it, or where its name says `seg` and our
    provenance is inside: a copy under an annotation's name is its owner's word.
    """
    try:
        if "model" in read_report(path)["provenance"]:
            return True
    except (InputError, OSError):
        pass  # it may lie elsewhere
    return ".seg." in path.name.lower() and _OF_A_MODEL in _provenance(path)


def _provenance(path: Path) -> str:
    """The provenance inside a volume, as JSON text; empty where there is none."""
    try:
        if path.is_dir():
            values = json.loads((path / "zarr.json").read_bytes())
            return json.dumps(values["attributes"]["neurodeploy"])
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    order = "le" if sys.byteorder == "little" else "be"
    for encoding in (f"utf-16-{order}", "utf-8"):
        at = header.find(_MARK.encode(encoding))
        if at >= 0:
            return header[at:].decode(encoding, errors="ignore")
    return ""
