"""Writing again what a disk refused for a moment.

Network file systems have moments. A unit is tried again after a pause; one that still
fails is set aside, so that hours of other units are not held up by it.
"""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Callable, Sequence

from neurodeploy_runtime._errors import WriteError

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
