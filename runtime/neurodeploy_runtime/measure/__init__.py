"""What this machine can do, measured: peaks, forecasts, engines side by side."""

from neurodeploy_runtime.engines import tile_seconds
from neurodeploy_runtime.measure._compare import (
    STAGES,
    Candidate,
    Comparison,
    Measured,
    agreement,
    candidates,
    compare_engines,
    middle,
)
from neurodeploy_runtime.measure._forecast import Calibration, Forecast, forecast
from neurodeploy_runtime.measure._peaks import Peaks, measure_peaks
from neurodeploy_runtime.measure._sweep import Trial, sweep

__all__ = [
    "STAGES",
    "Calibration",
    "Candidate",
    "Comparison",
    "Forecast",
    "Measured",
    "Peaks",
    "Trial",
    "agreement",
    "candidates",
    "compare_engines",
    "forecast",
    "measure_peaks",
    "middle",
    "sweep",
    "tile_seconds",
]
