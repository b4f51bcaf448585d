"""What makes two runs the same run: one bit of any of it changes the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neurodeploy_runtime._bundle import Bundle
from neurodeploy_runtime._errors import ReadError
from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime._journal import Journal
from neurodeploy_runtime._normalise import Normalisation
from neurodeploy_runtime._plan import TilePlan
from neurodeploy_runtime._report import versions
from neurodeploy_runtime._settings import SegmentSettings
from neurodeploy_runtime.engines import Engine, same_engine
from neurodeploy_runtime.volumes import SinkKind, Source

#: Packages that an engine's answers come from, by its name.
_LIBRARIES = {
    "numpy": ("numpy",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-rtx"),
}


def versions_of(engines: Sequence[Engine]) -> dict[str, str]:
    """Of neurodeploy and of what runs the network: others may give other voxels."""
    names = {"neurodeploy"}.union(*(_LIBRARIES.get(e.name, ()) for e in engines))
    return {name: version for name, version in versions().items() if name in names}


def run_identity(
    bundle: Bundle,
    engines: Sequence[Engine],
    source: Source,
    settings: SegmentSettings,
    plan: TilePlan,
    normalisation: Normalisation,
    *,
    roi: Box,
    kind: SinkKind,
    threshold: float,
    tissue: str | None,
) -> dict[str, Any]:
    """As plain values: what a journal is bound to and a result carries.

    `tissue` is the fingerprint of the mask, `threshold` the one that is applied.
    """
    size = source.voxel_size_um
    return {
        "input": {
            "fingerprint": source.fingerprint(),
            "shape": list(source.shape),
            "dtype": source.dtype.name,
        },
        "model": {"name": bundle.spec.name, "digest": bundle.digest},
        "engine": _kind_of(engines),
        "versions": versions_of(engines),
        "tiles": {
            "tile": list(plan.tile),
            "window": list(plan.window),
            "overlap": [axis.overlap for axis in plan.axes],
            "flips": settings.flips,
        },
        "normalisation": normalisation.to_json(),
        "threshold": threshold,
        "skip": None if settings.skip is None else vars(settings.skip).copy(),
        "output": {
            "format": kind,
            "kind": settings.output_kind,
            "roi": str(roi),
            "voxel_size_um": None if size is None else list(size),
        },
        "seam_map": settings.seam_map,
        "tissue": tissue,
        "workers": settings.worker[1],
    }


def refuse_changed(
    source: Source, journal: Journal, identity: Mapping[str, Any]
) -> None:
    """Refuse to end a run whose input is not what it was at the beginning.

    Raises
    ------
    ReadError
        A file was written to since it was opened, or the input's `identity`, as it is
        now, is not that of the plan; what is done is kept.
    """
    file = source.changed()
    different = [str(file)]
    if file is None:
        every = journal.differences(identity)
        different = [one for one in every if one.startswith("input.")]
    if different:
        raise ReadError(
            f"{source.path} changed while it was read: {'; '.join(different[:4])}; the "
            f"result stays in {journal.folder} without its name: run again with "
            "--overwrite when nothing writes to the input any more"
        )


def _kind_of(engines: Sequence[Engine]) -> dict[str, Any]:
    """Which of several like devices it is changes no bit: workers may each have one."""
    told = same_engine(engines)
    kind, *_ = told["device"].replace(",", ":").split(":")
    return {**told, "device": kind}
