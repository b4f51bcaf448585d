"""Segmentation beside a camera: planes in, finished planes out, memory fixed."""

from neurodeploy_runtime.live._capacity import RigReport, measure_rig
from neurodeploy_runtime.live._follow import FollowSettings, follow
from neurodeploy_runtime.live._napari import LiveLayers
from neurodeploy_runtime.live._segmenter import LiveSegmenter
from neurodeploy_runtime.live._settings import LiveSettings
from neurodeploy_runtime.live._values import Gap, LivePlane, LiveStatus
from neurodeploy_runtime.live._view import LiveView

__all__ = [
    "FollowSettings",
    "Gap",
    "LiveLayers",
    "LivePlane",
    "LiveSegmenter",
    "LiveSettings",
    "LiveStatus",
    "LiveView",
    "RigReport",
    "follow",
    "measure_rig",
]
