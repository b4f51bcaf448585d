"""The way in: a network, loaded, that segments volumes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._bundle import Bundle, load_bundle
from neurodeploy_runtime._errors import SettingsError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._progress import ProgressCallback
from neurodeploy_runtime._report import Report
from neurodeploy_runtime._run import SegmentRun
from neurodeploy_runtime._settings import SegmentSettings
from neurodeploy_runtime._slabs import Slabs
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
        self._closed = False
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
        self._check_open()
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

        Raises
        ------
        SettingsError, MemoryCapError
            As for :meth:`stream`.
        """
        source = ArraySource(array, voxel_size_um)
        region = self.settings.region_of(source.shape)
        out = np.empty(region.shape, np.uint8)
        out.fill(0)  # its pages count against the cap
        back: Shape = tuple(-a for a in region.start)  # type: ignore[assignment]
        for box, part in self.stream(source):
            out[box.shift(back).slices] = part
        return out

    def stream(
        self, source: Source, *, planes: int = 16
    ) -> Iterator[tuple[Box, NDArray[np.uint8]]]:
        """Segment a volume and get finished slabs, in z order.

        Yields the slab's box in the volume and its voxels, uint8 (n, y, x) with n at
        most `planes`; the array is the caller's. Stopping early stops the work. A mask
        where the settings ask for a mask, 255 times the probability where they ask for
        that.

        Raises
        ------
        SettingsError
            The roi is not inside the volume, or the settings ask for what only a file
            has a place for: both kinds, a seam map, skipped background, a worker's
            share.
        MemoryCapError
            Whole planes take more than the cap; without one, nothing is refused.
        """
        self._check_open()
        made = Slabs(self.bundle, self.engines, self.settings, source, planes)
        # A report of a later run says it, too: the engine stays as it is now.
        said = self.choice["passed_over"]
        said += [note for note in made.notes if note not in said]
        return iter(made)

    def close(self) -> None:
        """Close the engines that it opened; may be called twice."""
        self._closed = True
        for engine in self._owned:
            engine.close()
        self._owned = []

    def _check_open(self) -> None:
        if self._closed:
            raise SettingsError("the segmenter is closed: open another")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
