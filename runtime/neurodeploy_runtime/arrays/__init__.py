"""Arrays: where tiles lie between their stages. One module for each kind of memory."""

from neurodeploy_runtime.arrays._base import Arrays, Normaliser, PlaneKind
from neurodeploy_runtime.arrays._host import HostArrays

__all__ = ["Arrays", "HostArrays", "Normaliser", "PlaneKind"]
