"""What can go wrong on the training side; branches of the runtime's tree.

RequestError                exit_code 2
├── ConfigError             a configuration has an unknown field or value
├── CheckpointError         a checkpoint is damaged or of another configuration
├── DonorError              weights that cannot be transferred into a 3D network
└── DataError               an image and its annotation cannot be trained on
RunError                    exit_code 1
└── TrainingError           the training began and failed
"""

from neurodeploy_runtime._errors import InputError, RunError, SettingsError


class ConfigError(SettingsError):
    """A configuration has an unknown field or a value that cannot be."""


class CheckpointError(InputError):
    """A checkpoint is damaged, incomplete or of another configuration."""


class DonorError(InputError):
    """Weights that cannot be transferred into a 3D network."""


class DataError(InputError):
    """An image and its annotation cannot be trained on."""


class TrainingError(RunError):
    """The training began and failed."""
