"""From a trained network to a bundle that is proven to say the same."""

from neurodeploy_export._bioimageio import write_bioimageio
from neurodeploy_export._build import BuildSettings, Built, build_engine
from neurodeploy_export._doctor import (
    Environment,
    Finding,
    about_engine,
    diagnose,
    look,
)
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
from neurodeploy_export._tiles import tiles_from_volume
from neurodeploy_export._triton import write_triton
from neurodeploy_export._verify import Verdict, verify_bundle

__all__ = [
    "BuildError",
    "BuildSettings",
    "Built",
    "Environment",
    "ExportError",
    "ExportRequestError",
    "ExportSettings",
    "Finding",
    "Parity",
    "ParityError",
    "ParityLimits",
    "PrecisionError",
    "TensorRtMissingError",
    "Verdict",
    "about_engine",
    "build_engine",
    "compare",
    "diagnose",
    "export_bundle",
    "look",
    "tiles_from_volume",
    "verify_bundle",
    "write_bioimageio",
    "write_triton",
]
