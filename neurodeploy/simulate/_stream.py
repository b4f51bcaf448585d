"""A simulated volume of any size, written block by block."""

from __future__ import annotations

import os
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy.morphology import Morphology
from neurodeploy.simulate._appearance import SHOWCASE, Appearance, Look
from neurodeploy.simulate._camera import camera_noise
from neurodeploy.simulate._chance import Stream, generator
from neurodeploy.simulate._given import placed
from neurodeploy.simulate._points import Points
from neurodeploy.simulate._render import render
from neurodeploy_runtime import Box, OutputError, SettingsError, Shape
from neurodeploy_runtime.volumes import Sink, create_sink, sink_kind


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return min(4, len(os.sched_getaffinity(0)))
    return min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class SampleSettings:
    """What `neurodeploy sample` makes.

    `voxel_size_um` (z, y, x) is written into the file, and its ratio of z to y, x is
    how the volume is stretched. `block` is what one thread makes at a time: it decides
    memory (about 60 bytes per voxel of it and thread), never what comes out.
    """

    shape: Shape = (256, 1024, 1024)
    seed: int = 0
    appearance: Appearance = SHOWCASE
    voxel_size_um: tuple[float, float, float] = (2.0, 1.6, 1.6)
    block: Shape = (48, 384, 384)
    threads: int = field(default_factory=_cores)

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise SettingsError(
                f"a volume of shape {self.shape} cannot be made: give three extents "
                "z, y, x of at least 1"
            )
        if not all(np.isfinite(s) and s > 0 for s in self.voxel_size_um):
            raise SettingsError(
                f"a voxel size of {self.voxel_size_um} µm (z, y, x) makes no sense: "
                "give three positive numbers"
            )
        ratio = self.anisotropy
        if not 0.2 <= ratio <= 10:
            raise SettingsError(
                f"a z step {ratio:.3g} times the y, x step is out of range: "
                "keep it between 0.2 and 10"
            )
        if self.seed < 0:
            raise SettingsError(f"seed {self.seed} is negative: count from 0")

    @property
    def anisotropy(self) -> float:
        """The z step over the y, x step."""
        z, y, x = self.voxel_size_um
        return 2 * z / (y + x)

    def look(self) -> Look:
        """The appearance that the seed gives."""
        drawn = self.appearance.draw(generator(self.seed, Stream.LOOK))
        return replace(drawn, anisotropy=self.anisotropy)


def sample_block(
    settings: SampleSettings, box: Box, neurites: Sequence[Morphology] = ()
) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Image and truth (0 or 255) of a box of the volume, the same however it is cut.

    `neurites` are tracings in voxels that take the place of simulated ones.
    """
    look, extra = _staged(settings, neurites)
    return _block(look, settings.seed, box, extra)


def write_sample(
    path: Path,
    settings: SampleSettings,
    *,
    truth: Path | None = None,
    neurites: Sequence[Morphology] = (),
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Look:
    """Write the volume to `path`, and its mask (0 or 255) to `truth`; give its look.

    The suffix decides the format (`.tif` opens in ImageJ). Both lie under names of
    their own until they are whole. `progress` is told how many voxels were made.

    Raises
    ------
    OutputError
        A path exists and `overwrite` is false, its folder is missing, the two are
        the same, or the disk has no room.
    """
    outputs = [path] if truth is None else [path, truth]
    for out in outputs:
        if sink_kind(out) != "tiff":
            raise OutputError(f"{out} is no TIFF: end the name in .tif")
        if out.exists() and not overwrite:
            raise OutputError(
                f"{out} is already there: choose another name, or ask to overwrite it"
            )
    if len({out.absolute() for out in outputs}) < len(outputs):
        raise OutputError(f"{path} cannot be the image and its truth: name two files")
    look, extra = _staged(settings, neurites)
    dtypes = (np.dtype(look.pixel_type), np.dtype(np.uint8))
    with ExitStack() as leftovers:
        parts = [
            out.with_name(f"{out.name}.{secrets.token_hex(4)}.partial")
            for out in outputs
        ]
        with ExitStack() as files:
            sinks: list[Sink] = []
            for part, dtype in zip(parts, dtypes, strict=False):
                leftovers.callback(part.unlink, missing_ok=True)
                sink = create_sink(
                    part,
                    "tiff",
                    settings.shape,
                    dtype,
                    settings.voxel_size_um,
                    grain=settings.block,
                )
                sinks.append(files.enter_context(sink))
                for file in sink.scratch:
                    leftovers.callback(file.unlink, missing_ok=True)
            _fill(sinks, look, settings, extra, progress)
            for sink in sinks:
                sink.finish({"made_by": "neurodeploy sample", "seed": settings.seed})
        for part, out in zip(parts, outputs, strict=True):
            part.replace(out)
    return look


def _fill(
    sinks: Sequence[Sink],
    look: Look,
    settings: SampleSettings,
    extra: Points,
    progress: Callable[[int], None] | None,
) -> None:
    """Make every block and write it; a thread's exception is raised here."""
    running: deque[tuple[Box, Future[Any]]] = deque()
    pool = ThreadPoolExecutor(settings.threads, "sample")
    try:
        for unit in sinks[0].units():
            if len(running) > settings.threads:
                _land(running, sinks, progress)
            made = pool.submit(_block, look, settings.seed, unit, extra)
            running.append((unit, made))
        while running:
            _land(running, sinks, progress)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _land(
    running: deque[tuple[Box, Future[Any]]],
    sinks: Sequence[Sink],
    progress: Callable[[int], None] | None,
) -> None:
    unit, made = running.popleft()
    for sink, voxels in zip(sinks, made.result(), strict=False):
        sink.write(unit, voxels)
    if progress is not None:
        progress(unit.voxels)


def _staged(
    settings: SampleSettings, neurites: Sequence[Morphology]
) -> tuple[Look, Points]:
    look = settings.look()
    if not neurites:
        return look, Points.none()
    extra = placed(neurites, look, settings.seed, settings.shape)
    return replace(look, neurite_share=0.0, neurons=0.0), extra


def _block(
    look: Look, seed: int, box: Box, extra: Points
) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    light = render(look, seed, box, extra)
    image = look.camera.expose(light.signal + light.background, camera_noise(seed, box))
    return image, light.truth * np.uint8(255)
