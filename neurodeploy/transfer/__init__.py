"""3D encoders that start from 2D Vision Transformers."""

from neurodeploy.transfer._donor import (
    Donor,
    donor_from_tensors,
    donor_from_timm,
    load_donor,
    read_tensors,
)
from neurodeploy.transfer._surgery import (
    Inflation,
    fold_colour,
    inflate,
    resample_positions,
)
from neurodeploy.transfer._transfer import (
    GRAY_RANGE,
    TransferRow,
    config_for,
    config_like,
    transfer,
)

__all__ = [
    "GRAY_RANGE",
    "Donor",
    "Inflation",
    "TransferRow",
    "config_for",
    "config_like",
    "donor_from_tensors",
    "donor_from_timm",
    "fold_colour",
    "inflate",
    "load_donor",
    "read_tensors",
    "resample_positions",
    "transfer",
]
