"""Segmentation beside a camera: planes in, finished planes out, memory fixed."""

from neurodeploy_runtime.live._segmenter import LiveSegmenter
from neurodeploy_runtime.live._settings import LiveSettings
from neurodeploy_runtime.live._values import Gap, LivePlane, LiveStatus

__all__ = ["Gap", "LivePlane", "LiveSegmenter", "LiveSettings", "LiveStatus"]
