"""What can go wrong at export, under the runtime's tree.

RequestError                exit_code 2
├── ExportRequestError      the network, the tiles or the settings cannot be exported
└── TensorRtMissingError    no TensorRT here that could build an engine
RunError                    exit_code 1
└── ExportError             the export began and failed; nothing has the final name
    ├── ParityError         an answer changed on the way by more than the limits
    ├── PrecisionError      something is not in the precision that was asked for
    └── BuildError          TensorRT could not build the engine, or died doing it
"""

from neurodeploy_runtime._errors import DeviceError, RequestError, RunError


class ExportRequestError(RequestError):
    """The network, the tiles or the settings cannot be exported."""


class TensorRtMissingError(DeviceError):
    """There is no TensorRT here that could build an engine."""


class ExportError(RunError):
    """The export began and failed; nothing has the final name."""


class ParityError(ExportError):
    """An answer changed on the way by more than the limits allow."""


class PrecisionError(ExportError):
    """A graph or an engine is not in the precision that was asked for."""


class BuildError(ExportError):
    """TensorRT could not build the engine, or its process died."""
