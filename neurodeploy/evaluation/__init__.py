"""How good a segmentation is: voxels, centre lines, and what needs no network."""

from neurodeploy.evaluation._baselines import (
    BASELINES,
    BaselineFigures,
    baseline_figures,
    figures_of_filter,
)
from neurodeploy.evaluation._evaluate import (
    Annotated,
    Evaluation,
    Figures,
    Predictor,
    evaluate,
)
from neurodeploy.evaluation._models import Model, open_model
from neurodeploy.evaluation._overlay import overlay_png
from neurodeploy.evaluation._skeletons import (
    SkeletonFigures,
    SkeletonTally,
    draw_line,
    skeleton,
)
from neurodeploy.evaluation._voxels import Tally, VoxelFigures

__all__ = [
    "BASELINES",
    "Annotated",
    "BaselineFigures",
    "Evaluation",
    "Figures",
    "Model",
    "Predictor",
    "SkeletonFigures",
    "SkeletonTally",
    "Tally",
    "VoxelFigures",
    "baseline_figures",
    "draw_line",
    "evaluate",
    "figures_of_filter",
    "open_model",
    "overlay_png",
    "skeleton",
]
