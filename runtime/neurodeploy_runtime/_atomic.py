"""A small file that is seen whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def partial_name(path: Path) -> Path:
    """A name beside `path` that no other process uses, on this machine or another."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a small file so that it is seen whole or not at all."""
    data = content if isinstance(content, bytes) else content.encode()
    partial = partial_name(path)
    try:
        with partial.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(path)
    finally:
        # The disk that refused the bytes may refuse this, too: that error is told.
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
