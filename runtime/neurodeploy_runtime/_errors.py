"""What can go wrong in the runtime, as one tree.

NeurodeployError            exit_code 1
├── RequestError            exit_code 2: it cannot be done; nothing was written
│   ├── InputError          an input file or array cannot be used
│   ├── OutputError         an output cannot be written there
│   ├── BundleError         a bundle is damaged, altered, incomplete or too new
│   ├── SettingsError       settings contradict each other, the volume or the model
│   ├── MemoryCapError      the cap is too small; says the smallest that would do
│   ├── DeviceError         the engine or device that was asked for is not possible here
│   └── ResumeError         the unfinished output here belongs to another run
└── RunError                exit_code 1: the work began and failed
    ├── ReadError           the input could not be read in the middle of a run
    ├── WriteError          the output could not be made durable
    ├── EngineError         the network could not be run
    │   └── GpuMemoryError  a batch does not fit into what is free of the GPU's memory
    ├── CancelledError      the caller asked to stop
    └── StreamError         a live stream was used wrongly or has failed
        └── OverrunError    planes come faster than they are segmented
"""

from typing import ClassVar


def said_by(error: BaseException, most: int = 200) -> str:
    r"""What another library's error says, as part of one of our sentences.

    One line of at most `most` characters, cut between words; without a full stop, and
    never empty.

    >>> said_by(ValueError("too few bytes.\n  (3 of 8)"))
    'too few bytes. (3 of 8)'
    >>> said_by(EOFError())
    'EOFError'
    >>> said_by(ValueError("one two three"), 9)
    'one two …'
    """
    text = " ".join(str(error).split())
    if len(text) > most:
        text = text[:most].rpartition(" ")[0] or text[:most]
        return f"{text} …"
    return text.rstrip(".") or type(error).__name__


class NeurodeployError(Exception):
    """An error that neurodeploy raises on purpose: one sentence for a user."""

    exit_code: ClassVar[int] = 1


class RequestError(NeurodeployError):
    """What was asked for cannot be done; nothing was written."""

    exit_code = 2


class InputError(RequestError):
    """An input file or array cannot be used."""


class OutputError(RequestError):
    """An output cannot be written there."""


class BundleError(RequestError):
    """A bundle is damaged, altered, incomplete or of a newer schema."""


class SettingsError(RequestError):
    """Settings contradict each other, the volume or the model."""


class MemoryCapError(RequestError):
    """The memory cap is too small; the text names the smallest that would do."""


class DeviceError(RequestError):
    """The engine or device that was asked for is not possible on this machine."""


class ResumeError(RequestError):
    """The unfinished output found here belongs to another input, model or setting."""


class RunError(NeurodeployError):
    """The work began and failed."""


class ReadError(RunError):
    """The input could not be read in the middle of a run."""


class WriteError(RunError):
    """The output could not be made durable."""


class EngineError(RunError):
    """The network could not be run."""


class GpuMemoryError(EngineError):
    """What is free of the GPU's memory does not hold a batch of `batch` tiles.

    0 where that is not known.
    """

    def __init__(self, text: str, batch: int) -> None:
        super().__init__(text)
        self.batch = batch


class CancelledError(RunError):
    """The caller asked to stop."""


class StreamError(RunError):
    """A live stream was used wrongly or has failed."""


class OverrunError(StreamError):
    """Planes come faster than they are segmented; of a push, `accepted` were taken."""

    accepted: int = 0
