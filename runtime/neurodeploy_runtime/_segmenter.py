"""The way in: a network, loaded, that segments volumes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._blend import BlendRing
from neurodeploy_runtime._bundle import Bundle, load_bundle
from neurodeploy_runtime._channel import Channel
from neurodeploy_runtime._errors import CancelledError
from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime._memory import ring_depth
from neurodeploy_runtime._plan import TilePlan
from neurodeploy_runtime._planes import PlaneRing
from neurodeploy_runtime._progress import ProgressCallback
from neurodeploy_runtime._reader import PlaneReader
from neurodeploy_runtime._report import Report
from neurodeploy_runtime._run import SegmentRun
from neurodeploy_runtime._settings import SegmentSettings
from neurodeploy_runtime._stream import RegionStream
from neurodeploy_runtime._survey import survey
from neurodeploy_runtime.engines import Engine, choose_engines, open_engines
from neurodeploy_runtime.volumes import ArraySource, Source


class Segmenter:
    """Segments volumes with one bundle; a context manager that owns the engines.

    Parameters
    ----------
    bundle
        As :func:`load_bundle` gives it; None: the one that ships.
    settings
        What is asked for.
    engines
        Engines to use instead of opening one (they are the caller's to close).

    Raises
    ------
    DeviceError
        The engine or device that was asked for is not possible here.

    Examples
    --------
    >>> import numpy as np
    >>> from neurodeploy_runtime import Segmenter
    >>> noise = np.random.default_rng(0).integers(90, 110, (16, 48, 48), np.uint16)
    >>> with Segmenter() as segmenter:  # doctest: +SKIP
    ...     mask = segmenter.segment_array(noise)
    >>> mask.shape  # doctest: +SKIP
    (16, 48, 48)
    """

    def __init__(
        self,
        bundle: Bundle | None = None,
        settings: SegmentSettings | None = None,
        *,
        engines: list[Engine] | None = None,
    ) -> None:
        self.bundle = bundle or load_bundle()
        self.settings = settings or SegmentSettings()
        self._owned: list[Engine] = []
        self.choice: dict[str, Any] = {"passed_over": []}
        if engines is None:
            choices = choose_engines(self.bundle, self.settings.engine)
            self._owned = open_engines(self.bundle, choices)
            self.choice = {
                "passed_over": [*choices[0].passed_over, *self._owned[0].notes]
            }
            engines = self._owned
        self.engines = engines

    def segment(
        self,
        source: Source,
        output: str | Path,
        *,
        overwrite: bool = False,
        progress: ProgressCallback | None = None,
        cancel: threading.Event | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Report | None:
        """Segment a volume into a file, in bounded memory.

        The format follows from the suffix of `output`. What is found unfinished there
        is continued where input, model and settings are the same, and refused where
        they differ. None where other workers still have shares to do. `notes` are
        plain values that the report keeps.

        Raises
        ------
        RequestError
            The request cannot be done; nothing was written.
        RunError
            The work failed on the way; the same call continues it.
        """
        return SegmentRun(
            self.bundle,
            self.engines,
            source,
            Path(output),
            self.settings,
            overwrite=overwrite,
            progress=progress,
            cancel=cancel,
            notes={**self.choice, **(notes or {})},
        ).execute()

    def segment_array(
        self,
        array: NDArray[Any],
        *,
        voxel_size_um: tuple[float, float, float] | None = None,
    ) -> NDArray[np.uint8]:
        """Segment an array (z, y, x) of uint8, uint16, int16 or float32.

        Returns uint8 of the same shape (of the roi's, where the settings have one):
        0 and 255 for a mask, 255 times the probability for `probability`.
        """
        source = ArraySource(array, voxel_size_um)
        region = self.settings.roi or Box.whole(source.shape)
        out = np.zeros(region.shape, np.uint8)
        for box, part in self.stream(source):
            out[box.shift(tuple(-a for a in region.start)).slices] = part  # type: ignore[arg-type]
        return out

    def stream(
        self, source: Source, *, planes: int = 16
    ) -> Iterator[tuple[Box, NDArray[np.uint8]]]:
        """Segment a volume and get finished slabs, in z order.

        Yields the slab's box in the volume and its voxels, uint8 (n, y, x) with n at
        most `planes`; the array is the caller's. Stopping early stops the work. A mask
        where the settings ask for a mask, else 255 times the probability.
        """
        region = self.settings.roi or Box.whole(source.shape)
        plan = TilePlan.of(self.bundle.spec, source.shape, self.settings.overlap)
        normalisation = self.settings.normalisation
        if normalisation is None:
            normalisation = survey(source).freeze(self.bundle.spec.normalisation)
        threshold = self.settings.threshold or self.bundle.spec.threshold
        kind = "mask" if self.settings.output_kind == "mask" else "probability"
        finished: Channel[tuple[int, NDArray[np.uint8]]] = Channel(2)
        gathered: list[NDArray[np.uint8]] = []

        def emit(z: int, blend: BlendRing) -> None:
            at = (z - region.start[0]) % planes
            if at == 0:
                deep = min(planes, region.stop[0] - z)
                gathered.append(np.empty((deep, *region.shape[1:]), np.uint8))
            slab = gathered[-1]
            blend.quantise(z, kind, threshold, slab[at])  # type: ignore[arg-type]
            if at + 1 == len(slab):
                finished.put((z - at, gathered.pop()))

        (y0, y1), (x0, x1) = plan.layer(region).reads
        ring = PlaneRing(
            ring_depth(plan, region),
            (y1 - y0, x1 - x0),
            source.dtype,
            _first_plane(plan, region),
        )
        stream = RegionStream(
            plan,
            region,
            ring,
            self.engines,
            normalisation,
            emit,
            dtype=source.dtype,
            depth=source.shape[0],
            flips=self.settings.flips,
        )
        reader = PlaneReader(
            source,
            plan,
            region,
            ring,
            projections=None,
            clock=stream.clock,
            on_error=stream.stop,
        )

        def work() -> None:
            try:
                stream.run()
                finished.end()
            except BaseException as error:
                finished.fail(error)

        worker = threading.Thread(target=work, name="segment", daemon=True)
        try:
            reader.start()
            worker.start()
            while (item := finished.get()) is not None:
                z, part = item
                yield (
                    Box((z, *region.start[1:]), (z + len(part), *region.stop[1:])),
                    part,
                )
        finally:
            stop = CancelledError("the reader of the stream has gone")
            finished.fail(stop)
            stream.stop(stop)
            if worker.ident is not None:  # Ctrl-C may fall before it is started
                worker.join()
            reader.join()

    def close(self) -> None:
        """Close the engines that it opened; may be called twice."""
        for engine in self._owned:
            engine.close()
        self._owned = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _first_plane(plan: TilePlan, region: Box) -> int:
    axis = plan.axes[0]
    layers = axis.meeting(region.start[0], region.stop[0], plan.shape[0])
    return axis.reads(layers[0], plan.shape[0])[0]
