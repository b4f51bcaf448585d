"""neurodeploy: neuron segmentation networks, from training to the microscope.

The command line and the training side; `neurodeploy_export` turns a checkpoint into a
bundle, `neurodeploy_runtime` runs it.
"""

from importlib.metadata import version

__version__ = version("neurodeploy")

__all__ = ["__version__"]
