"""Reading and writing again what a disk refused for a moment.

Network file systems have moments. A unit is tried again after a pause; one that still
fails is set aside, so that hours of other units are not held up by it. A read that
still fails ends the run: what comes behind it needs it.
"""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from neurodeploy_runtime._errors import ReadError, WriteError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from neurodeploy_runtime._geometry import Box
    from neurodeploy_runtime.volumes import Source

#: What may be over in a while. No room, no right and a read-only disk are not.
PASSING = frozenset(
    {
        errno.EIO,
        errno.EAGAIN,
        errno.EBUSY,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
    }
)

#: Seconds before the second, third and last try.
PAUSES_S = (0.2, 1.0, 4.0)
#: Likewise of a read, which everything waits for.
READ_PAUSES_S = (0.2, 0.4)

#: How TensorStore names the number that the system gave.
_NUMBER = re.compile(r"\[OS error (\d+)")


def is_passing(error: BaseException) -> bool:
    """Whether a failed write may succeed when it is tried again."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause.errno in PASSING
        found = _NUMBER.search(str(cause))
        if found:
            return int(found[1]) in PASSING
        cause = cause.__cause__
    return False


def patiently(
    write: Callable[[], None],
    stop: threading.Event,
    pauses_s: Sequence[float] = PAUSES_S,
) -> None:
    """Write; where that fails for a reason that may pass, try again after pauses.

    Raises
    ------
    WriteError
        That of the last try, or the first one that cannot pass, or when `stop` is set.
    """
    for pause_s in pauses_s:
        try:
            write()
            return
        except WriteError as error:
            if not is_passing(error) or stop.wait(pause_s):
                raise
    write()


def read_patiently(
    source: Source, box: Box, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Read a box as `Source.read` does; where that fails, try again after pauses.

    Whatever failed: a moment of a network drive shows as a file that is cut short or
    does not decode as often as by a number.

    Raises
    ------
    ReadError
        That of the last try; an error of the system is made one.
    """
    for pause_s in READ_PAUSES_S:
        try:
            return source.read(box, out)
        except (ReadError, OSError):
            time.sleep(pause_s)
    try:
        return source.read(box, out)
    except OSError as error:
        raise ReadError(
            f"planes {box.start[0]} to {box.stop[0] - 1} of {source.path} cannot be "
            f"read: {error}"
        ) from error
