"""Volumes of any size: `open_volume` to read one, `create_sink` to write one."""

from neurodeploy_runtime.volumes._array import ArraySource
from neurodeploy_runtime.volumes._base import ReadOptions, Source
from neurodeploy_runtime.volumes._open import open_volume
from neurodeploy_runtime.volumes._open_sink import (
    attach_sink,
    create_sink,
    default_grain,
    open_sink,
    required_bytes,
    sink_kind,
)
from neurodeploy_runtime.volumes._read_plan import (
    ReadPlan,
    decoding_mb_s,
    plan_reading,
)
from neurodeploy_runtime.volumes._scratch import ScratchSource
from neurodeploy_runtime.volumes._sink import Sink, SinkKind

__all__ = [
    "ArraySource",
    "ReadOptions",
    "ReadPlan",
    "ScratchSource",
    "Sink",
    "SinkKind",
    "Source",
    "attach_sink",
    "create_sink",
    "decoding_mb_s",
    "default_grain",
    "open_sink",
    "open_volume",
    "plan_reading",
    "required_bytes",
    "sink_kind",
]
