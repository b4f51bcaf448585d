"""Segmentation beside pymmcore-plus (extra `rig`); see :class:`MdaSegmenter`."""

from neurodeploy_runtime.rigs._lane import StackResult
from neurodeploy_runtime.rigs._mda import MdaSegmenter

__all__ = ["MdaSegmenter", "StackResult"]
