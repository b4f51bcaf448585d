"""Two layers in napari that show what arrives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from neurodeploy_runtime.live._segmenter import LiveSegmenter
from neurodeploy_runtime.live._values import LivePlane

#: The longest side of what is shown; napari takes long to change large layers.
LONGEST = 1024


class LiveLayers:
    """Adds the latest plane and the latest segmentation to a `napari.Viewer`.

    Call :meth:`update` from the viewer's own thread, ten times a second at most::

        layers = LiveLayers(viewer, live)
        timer = QTimer()
        timer.timeout.connect(layers.update)
        timer.start(100)

    It only looks, as :meth:`LiveSegmenter.preview` does: what comes between two calls
    is not shown. Nothing of napari is imported here: the viewer is asked for
    `add_image` and `add_labels`.
    """

    def __init__(self, viewer: Any, live: LiveSegmenter) -> None:
        self._live = live
        self._step = max(1, math.ceil(max(live.plane_shape) / LONGEST))
        y, x = (-(-n // self._step) for n in live.plane_shape)
        scale = (self._step, self._step)
        self.image = viewer.add_image(
            np.zeros((y, x), live.dtype), name="camera", scale=scale
        )
        self.labels = viewer.add_labels(
            np.zeros((y, x), np.uint8), name="segmentation", scale=scale
        )
        self._shown: LivePlane | None = None

    def update(self) -> None:
        """Show what is latest now; does nothing where that is shown already."""
        newest = self._live.preview_image(LONGEST)
        if newest is not None:
            self.image.data = newest[1]
        plane = self._live.preview()
        # Not by its index: another stack begins with 0 again.
        if plane is not None and plane is not self._shown:
            self._shown = plane
            step = self._step
            self.labels.data = (plane.voxels[::step, ::step] >= 128).astype(np.uint8)
