"""Volumes of any size: `open_volume` to read one, `create_sink` to write one."""

from neurodeploy_runtime.volumes._base import ReadOptions, Source
from neurodeploy_runtime.volumes._open import open_volume

__all__ = ["ReadOptions", "Source", "open_volume"]
