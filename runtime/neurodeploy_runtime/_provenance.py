"""What a result says of how it was made, and whether it is still that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neurodeploy_runtime._errors import InputError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._journal import Record, checksum
from neurodeploy_runtime.volumes import Source, open_volume

#: Stands before the provenance in a TIFF's header.
MARK = "neurodeploy="
MAX_REPORT_BYTES = 64_000_000
#: Before the suffix of the probabilities that are written beside a mask.
SECOND = ".probability"
#: How the verdict on voxels begins that are not what was written.
ALTERED = "ALTERED"


def content_digest(records: Mapping[Shape, Record], output: int) -> str:
    """SHA-256 over the checksums of all units of one of a run's outputs."""
    lines = [
        f"{z} {y} {x} {record.checksums[output]}"
        for (z, y, x), record in sorted(records.items())
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def verify_content(source: Source, grain: Shape, digest: str) -> bool:
    """Whether the voxels of a result are those that were written; reads them all."""
    records = {
        unit.start: Record(unit.start, (checksum(source.read(unit)),))
        for unit in Box.whole(source.shape).grid(grain)
    }
    return content_digest(records, 0) == digest


def report_path(output: Path) -> Path:
    """Where the report of a result lies."""
    return output.with_name(f"{output.name.removesuffix(output.suffix)}.json")


def is_second(output: Path) -> bool:
    """Whether a result is the probabilities beside a mask, with one report of both."""
    return not report_path(output).is_file() and _report_of_both(output) is not None


def _report_of_both(output: Path) -> Path | None:
    stem = output.name.removesuffix(output.suffix)
    if not stem.endswith(SECOND):
        return None
    return report_path(output.with_name(f"{stem.removesuffix(SECOND)}{output.suffix}"))


def read_report(output: Path) -> dict[str, Any]:
    """The report beside a result.

    Raises
    ------
    InputError
        There is none, or it is not one of ours.
    """
    path = report_path(output)
    if not path.is_file():
        path = _report_of_both(output) or path
    if not path.is_file():
        raise InputError(
            f"{output} has no report {path.name} beside it: it is not a result of "
            "`neurodeploy segment`, or was moved without its report"
        )
    if path.stat().st_size > MAX_REPORT_BYTES:
        raise InputError(f"{path} is too large to be a report")
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error})") from None
    if not isinstance(values, dict) or not isinstance(values.get("provenance"), dict):
        raise InputError(f"{path} is not a report of `neurodeploy segment`")
    return values


def read_provenance(output: Path) -> dict[str, Any]:
    """How a result was made, from its report, with the verdict on its voxels."""
    report = read_report(output)
    every = report["provenance"].get("content", {})
    content = every.get(output.name) if isinstance(every, dict) else None
    verdict = "the report holds no digest of the voxels"
    if content is not None:
        grain, digest = _content_of(content, output)
        with open_result(output, report["provenance"]) as source:
            same = verify_content(source, grain, digest)
        verdict = (
            "the voxels are those that were written"
            if same
            else f"{ALTERED}: the voxels are not those that were written"
        )
    return {"verified": verdict, **report}


def open_result(output: Path, provenance: Mapping[str, Any]) -> Source:
    """Open a result for what it is: a TIFF of one plane does not say that it is z."""
    made = provenance.get("output")
    is_tiff = isinstance(made, dict) and made.get("format") == "tiff"
    return open_volume(output, axes="zyx" if is_tiff else None)


def _content_of(content: Any, output: Path) -> tuple[Shape, str]:
    """The unit and the digest that a report names, which anybody may have written."""
    grain = content.get("grain") if isinstance(content, dict) else None
    if (
        not isinstance(grain, list)
        or len(grain) != 3
        or not all(isinstance(n, int) and n > 0 for n in grain)
        or not isinstance(content.get("digest"), str)
    ):
        raise InputError(f"the report beside {output} is damaged: it names no units")
    z, y, x = grain
    return (z, y, x), content["digest"]
