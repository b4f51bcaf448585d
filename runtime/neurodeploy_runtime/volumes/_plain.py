"""Volumes of which nobody can say more than their name."""

from __future__ import annotations

from pathlib import Path

from neurodeploy_runtime._errors import InputError
from neurodeploy_runtime.volumes._base import Source
from neurodeploy_runtime.volumes._open import open_volume

#: What is advised of a file in which there is something to be chosen.
_CHOICES = ("--channel", "--time", "--dataset", "axes")


def open_plain(path: str | Path) -> Source:
    """Open a volume where no option chooses a channel, a time or axes of it.

    Raises
    ------
    InputError
        It cannot be read, or there is something to be chosen: the text says how to
        save it, and advises no option.
    """
    try:
        return open_volume(path)
    except InputError as error:
        problem, _, advice = str(error).rpartition(": ")
        if not problem or not any(choice in advice for choice in _CHOICES):
            raise
        raise InputError(
            f"{problem}: save what is meant as a stack (z, y, x) of one channel, "
            "nothing can be chosen of it here"
        ) from error
