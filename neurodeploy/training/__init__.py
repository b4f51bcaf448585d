"""Training: settings, the loop, checkpoints."""

from neurodeploy.training._checkpoint import (
    Checkpoint,
    is_checkpoint,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from neurodeploy.training._log import Row, draw_curves, read_log
from neurodeploy.training._loop import TrainResult, train
from neurodeploy.training._losses import LossSettings, segmentation_loss
from neurodeploy.training._predict import predict
from neurodeploy.training._settings import TrainSettings, read_toml
from neurodeploy.training._split import split
from neurodeploy.training._validate import Score, pooled_score, validate

__all__ = [
    "Checkpoint",
    "LossSettings",
    "Row",
    "Score",
    "TrainResult",
    "TrainSettings",
    "draw_curves",
    "is_checkpoint",
    "load_checkpoint",
    "pooled_score",
    "predict",
    "read_checkpoint",
    "read_log",
    "read_toml",
    "save_checkpoint",
    "segmentation_loss",
    "split",
    "train",
    "validate",
]
