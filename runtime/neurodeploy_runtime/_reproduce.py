"""Running a region of a result again, from what the result says of itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from neurodeploy_runtime._bundle import Bundle
from neurodeploy_runtime._errors import InputError, SettingsError, said_by
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._identity import versions_of
from neurodeploy_runtime._normalise import Normalisation
from neurodeploy_runtime._plan import TilePlan
from neurodeploy_runtime._provenance import is_second, open_result, read_report
from neurodeploy_runtime._segmenter import Segmenter
from neurodeploy_runtime._settings import SegmentSettings
from neurodeploy_runtime.arrays import PlaneKind
from neurodeploy_runtime.engines import EngineSettings, PlaceName, same_engine
from neurodeploy_runtime.volumes import ReadOptions, open_volume


@dataclass(frozen=True)
class Reproduction:
    """How a region that was run again compares with the stored result.

    `dice` is of the voxels at or above half of 255 in both; 1 where neither has any.
    `other_versions` names what is installed in another version than then, with both.
    """

    region: Box
    voxels: int
    differing: int
    dice: float
    same_engine: bool
    other_versions: tuple[str, ...] = ()


def reproduce(
    output: Path,
    bundle: Bundle,
    roi: Box | None,
    *,
    engine: EngineSettings | None = None,
    source_path: str | None = None,
) -> Reproduction:
    """Segment `roi` (volume coordinates) again as `output` was made, and compare.

    Input, channel, constants, threshold, overlap and flips are those that the report
    beside `output` names; `source_path` says where the input lies now.

    Raises
    ------
    InputError
        There is no report, or the input is another one now.
    SettingsError
        The bundle is not the one that made the result, or the roi is outside it.
    """
    provenance = read_report(output)["provenance"]
    try:
        model = provenance["model"]["name"]
        digest = str(provenance["model"]["digest"])
        if digest != bundle.digest:
            raise SettingsError(
                f"{output} was made by the model {model!r} ({digest[:12]}…), and "
                f"{bundle.path} is {bundle.spec.name!r} ({bundle.digest[:12]}…): name "
                "that bundle with -m"
            )
        made = provenance["engine"]
        tiles = provenance["tiles"]
        whole = _box(provenance["output"]["roi"])
        opened = dict(provenance["notes"].get("opened_with", {}))
        ReadOptions(**opened)
        path = source_path or str(provenance["input_file"]["path"])
        fingerprint = provenance["input"]["fingerprint"]
        # Where tiles are blended changes no bit: it names no other engine.
        place: PlaceName = "auto" if engine is None else engine.blend_on
        settings = SegmentSettings(
            engine=EngineSettings(
                engine=made["engine"],
                device=made["device"],
                precision=made["precision"],
                batch=made["batch"],
                blend_on=place,
            )
            if engine is None or replace(engine, blend_on="auto") == EngineSettings()
            else engine,
            threshold=provenance["threshold"],
            overlap=_overlap(tiles, bundle),
            output_kind=_kind_of(output, provenance["output"]["kind"]),
            normalisation=Normalisation(**provenance["normalisation"]),
            flips=tiles["flips"],
        )
    except KeyError as error:
        raise InputError(
            f"the report beside {output} lacks {error}: it is of another version"
        ) from None
    except (TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"the report beside {output} is damaged ({said_by(error)}): run `segment` "
            "again instead"
        ) from error
    for name, option in (("skip", "--skip-background"), ("tissue", "--tissue")):
        if provenance.get(name) is not None:
            raise SettingsError(
                f"{output} was made with {option}: the tiles that were left out are "
                "not known to `reproduce`, run `segment` again instead"
            )
    region = roi or _middle(whole)
    if not whole.contains(region):
        raise SettingsError(f"roi {region} is not inside the result, which is {whole}")
    with (
        open_volume(path, **opened) as source,
        open_result(output, provenance) as stored,
    ):
        if source.fingerprint() != fingerprint:
            raise InputError(
                f"{path} is not the input that {output} was made of (its fingerprint "
                "differs): name that input with --input"
            )
        with Segmenter(bundle, replace(settings, roi=region)) as segmenter:
            differing, both, sizes = 0, 0, 0
            for box, part in segmenter.stream(source):
                back: Shape = tuple(-a for a in whole.start)  # type: ignore[assignment]
                old = stored.read(box.shift(back))
                differing += int(np.count_nonzero(old != part))
                one, two = old >= 128, part >= 128
                both += int(np.count_nonzero(one & two))
                sizes += int(np.count_nonzero(one)) + int(np.count_nonzero(two))
            now = same_engine(segmenter.engines)
            other_versions = _other_versions(
                provenance.get("versions"), versions_of(segmenter.engines)
            )
    return Reproduction(
        region,
        region.voxels,
        differing,
        2 * both / sizes if sizes else 1.0,
        now == made,
        other_versions,
    )


def _kind_of(output: Path, kind: str) -> PlaneKind:
    """What a file holds of a run that wrote this kind."""
    second = kind == "probability" or (kind == "both" and is_second(output))
    return "probability" if second else "mask"


def _other_versions(then: Any, now: dict[str, str]) -> tuple[str, ...]:
    if not isinstance(then, dict):
        return ()
    return tuple(
        f"{name} {then[name]} then, {version} now"
        for name, version in now.items()
        if name in then and then[name] != version
    )


def _box(text: str) -> Box:
    spans = [tuple(map(int, span.split(":"))) for span in text.split(",")]
    (z0, z1), (y0, y1), (x0, x1) = spans
    return Box((z0, y0, x0), (z1, y1, x1))


def _middle(whole: Box) -> Box:
    """At most 64 × 256 × 256 voxels from the middle."""
    starts, stops = [], []
    for a, b, most in zip(whole.start, whole.stop, (64, 256, 256), strict=True):
        size = min(b - a, most)
        starts.append(a + (b - a - size) // 2)
        stops.append(starts[-1] + size)
    return Box(tuple(starts), tuple(stops))  # type: ignore[arg-type]


def _overlap(tiles: dict[str, Any], bundle: Bundle) -> float | None:
    """The overlap setting that gives these voxels of overlap, on every axis.

    Raises
    ------
    ValueError
        None does.
    """
    spec, stored = bundle.spec, list(tiles["overlap"])

    def voxels(share: float | None) -> list[int]:
        return [axis.overlap for axis in TilePlan.of(spec, spec.window, share).axes]

    if voxels(None) == stored:
        return None
    # Each axis was rounded by itself: what all of them were rounded from is between.
    low, high = 0.0, 0.5
    for window, own, overlap in zip(spec.window, spec.overlap, stored, strict=True):
        if own:
            low = max(low, (overlap - 0.5) / window)
        if own and overlap < window // 2:
            high = min(high, (overlap + 0.5) / window)
    for share in ((low + high) / 2, low, high):
        if 0 <= share <= 0.5 and voxels(share) == stored:
            return share
    raise ValueError(f"no overlap of its model is {stored} voxels")
