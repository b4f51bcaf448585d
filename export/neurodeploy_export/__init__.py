"""From a trained network to a bundle that is proven to say the same."""

from neurodeploy_export._build import BuildSettings, Built, build_engine
from neurodeploy_export._errors import (
    BuildError,
    ExportError,
    ExportRequestError,
    ParityError,
    PrecisionError,
    TensorRtMissingError,
)
from neurodeploy_export._export import export_bundle
from neurodeploy_export._parity import Parity, compare
from neurodeploy_export._settings import ExportSettings, ParityLimits

__all__ = [
    "BuildError",
    "BuildSettings",
    "Built",
    "ExportError",
    "ExportRequestError",
    "ExportSettings",
    "Parity",
    "ParityError",
    "ParityLimits",
    "PrecisionError",
    "TensorRtMissingError",
    "build_engine",
    "compare",
    "export_bundle",
]
