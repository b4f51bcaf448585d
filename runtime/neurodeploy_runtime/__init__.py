"""Segment volumes that fit no memory, with the networks that neurodeploy exports.

What may be relied on is listed here; all else may change. No PyTorch is needed.

    from neurodeploy_runtime import Segmenter, open_volume

    with open_volume("brain.tif") as volume, Segmenter() as segmenter:
        report = segmenter.segment(volume, "brain.seg.tif")
"""

from neurodeploy_runtime._begun import as_begun
from neurodeploy_runtime._bundle import (
    Bundle,
    BundleWriter,
    default_bundle_path,
    load_bundle,
)
from neurodeploy_runtime._errors import (
    BundleError,
    CancelledError,
    DeviceError,
    EngineError,
    InputError,
    MemoryCapError,
    NeurodeployError,
    OutputError,
    OverrunError,
    ReadError,
    RequestError,
    ResumeError,
    RunError,
    SettingsError,
    StreamError,
    WriteError,
)
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._golden import Golden
from neurodeploy_runtime._ingest import IngestReport, ingest
from neurodeploy_runtime._normalise import Histogram, Normalisation
from neurodeploy_runtime._plan import Axis, TilePlan
from neurodeploy_runtime._progress import Progress
from neurodeploy_runtime._report import Report
from neurodeploy_runtime._reproduce import Reproduction, reproduce
from neurodeploy_runtime._segmenter import Segmenter
from neurodeploy_runtime._settings import SegmentSettings
from neurodeploy_runtime._skip import SkipSettings
from neurodeploy_runtime._spec import ModelSpec
from neurodeploy_runtime.engines import (
    Engine,
    EngineSettings,
    NumpyEngine,
    choose_engine,
    open_engine,
)
from neurodeploy_runtime.live import LiveSegmenter, LiveSettings
from neurodeploy_runtime.volumes import (
    ArraySource,
    Sink,
    Source,
    create_sink,
    open_volume,
)

__all__ = [
    "ArraySource",
    "Axis",
    "Box",
    "Bundle",
    "BundleError",
    "BundleWriter",
    "CancelledError",
    "DeviceError",
    "Engine",
    "EngineError",
    "EngineSettings",
    "Golden",
    "Histogram",
    "IngestReport",
    "InputError",
    "LiveSegmenter",
    "LiveSettings",
    "MemoryCapError",
    "ModelSpec",
    "NeurodeployError",
    "Normalisation",
    "NumpyEngine",
    "OutputError",
    "OverrunError",
    "Progress",
    "ReadError",
    "Report",
    "Reproduction",
    "RequestError",
    "ResumeError",
    "RunError",
    "SegmentSettings",
    "Segmenter",
    "SettingsError",
    "Shape",
    "Sink",
    "SkipSettings",
    "Source",
    "StreamError",
    "TilePlan",
    "WriteError",
    "as_begun",
    "choose_engine",
    "create_sink",
    "default_bundle_path",
    "ingest",
    "load_bundle",
    "open_engine",
    "open_volume",
    "reproduce",
]
