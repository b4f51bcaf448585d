"""How long work tells what it is doing."""

from __future__ import annotations

from collections.abc import Callable

#: Called with what is being done, and the share done where that is known.
Progress = Callable[[str, float | None], None]
