"""`neurodeploy segment --follow`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurodeploy.cli._options import (
    INPUT_NAMES,
    beside_input,
    engine_settings,
    refuse_without,
)
from neurodeploy.cli._progress import voxel_progress

if TYPE_CHECKING:
    from neurodeploy_runtime import Normalisation, Report

#: Options that need the whole volume, or a volume of known depth, and what they are
#: when nobody gave them.
_WHOLE = {
    "roi": None,
    "seam_map": False,
    "tissue": None,
    "skip_background": False,
    "worker": (1, 1),
}


def segment_followed(options: dict[str, Any]) -> Report:
    """Segment a stack while it is being written."""
    from neurodeploy_runtime import LiveSettings, SettingsError, load_bundle
    from neurodeploy_runtime.live import FollowSettings, follow
    from neurodeploy_runtime.volumes import ReadOptions

    for name, default in _WHOLE.items():
        if options.get(name, default) != default:
            raise SettingsError(
                f"--{name.replace('_', '-')} needs a finished volume: leave it out "
                "with --follow"
            )
    if options["output_kind"] == "both":
        raise SettingsError(
            "--output-kind both is not written with --follow: choose mask or "
            "probability"
        )
    refuse_without("--skip-background", "skip_sigma")
    path: str = options["input"]
    output = Path(options["output"] or _beside(path))
    bundle = load_bundle(options["model"])
    report: str | None = options["normalisation_from"]
    constants = None
    if report is not None:
        constants = _normalisation_of(Path(report))
        if constants.kind != bundle.spec.normalisation:
            raise SettingsError(
                f"{report} has constants for {constants.kind}, the model "
                f"{bundle.spec.name} is normalised by {bundle.spec.normalisation}: "
                "take a report of the same model"
            )
    settings = FollowSettings(
        live=LiveSettings(
            engine=engine_settings(dict(options)),
            normalisation=constants,
            output_kind=options["output_kind"],
            threshold=options["threshold"],
            overlap=options["overlap"],
            flips=options["flips"],
            memory_bytes=options["memory"],
        ),
        read=ReadOptions(**{name: options[name] for name in INPUT_NAMES}),
        timeout_s=options["follow_timeout"],
        planes=options["follow_planes"],
    )
    with voxel_progress("follow", options["quiet"]) as progress:
        return follow(
            path,
            output,
            bundle,
            settings,
            overwrite=options["overwrite"],
            progress=progress,
        )


def _beside(path: str) -> Path:
    """Where a result goes when nobody says; the stack need not be there yet."""
    from neurodeploy_runtime.live._growing import is_store

    folder, stem, suffix = beside_input(path)
    zarr = suffix == ".zarr" or is_store(Path(path))
    return folder / f"{stem}.seg{'.ome.zarr' if zarr else '.tif'}"


def _normalisation_of(path: Path) -> Normalisation:
    """The constants that a report of `segment` or `segment --follow` holds."""
    from neurodeploy_runtime import InputError, Normalisation, SettingsError

    try:
        report = json.loads(path.read_text("utf-8"))
        return Normalisation(**report["provenance"]["normalisation"])
    except SettingsError as error:
        raise InputError(f"{path}: {error}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} holds no constants to normalise by ({type(error).__name__}: "
            f"{error}): give the report (.json) that lies beside a segmentation"
        ) from None
