"""The messages of PROTOCOL.md, as bytes."""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import SettingsError, StreamError

MAGIC = b"NDLV"
VERSION = 1
HEADER = struct.Struct("<4sHHQIId")
HELLO = struct.Struct("<6I2d2I")
WELCOME = struct.Struct("<8I")
#: In the place of an index: the plane after the last one.
NEXT = 2**64 - 1
#: Flag of a RESULT whose voxels mean something.
VALID = 1
#: The most that a text of a server may take.
TEXT_BYTES = 65_536
#: The most that a payload may take where the server is not told otherwise.
LIMIT_BYTES = 256 * 2**20

DTYPES = {1: "uint8", 2: "uint16", 3: "int16", 4: "float32"}
POLICIES: dict[int, Literal["block", "drop", "fail"]] = {
    0: "block",
    1: "drop",
    2: "fail",
}
OUTPUTS: dict[int, Literal["mask", "probability"]] = {0: "mask", 1: "probability"}


class Kind(IntEnum):
    """What a message is; a client's are below 128."""

    HELLO = 1
    PLANE = 2
    FINISH = 3
    ASK_STATUS = 4
    WELCOME = 129
    RESULT = 130
    DONE = 131
    STATUS = 132
    REFUSED = 133
    FAILED = 134


class ProtocolError(StreamError):
    """What came is no message of this protocol: the connection is closed."""


@dataclass(frozen=True)
class Header:
    """What stands before every payload."""

    kind: int
    index: int = 0
    flags: int = 0
    length: int = 0
    value: float = 0.0

    def pack(self) -> bytes:
        """As 32 bytes."""
        return HEADER.pack(
            MAGIC,
            VERSION,
            self.kind,
            self.index,
            self.flags,
            self.length,
            self.value,
        )

    @classmethod
    def unpack(cls, data: bytes | bytearray, limit: int) -> Header:
        """Read one; raises ProtocolError where it is none, or its payload too long."""
        magic, version, kind, index, flags, length, value = HEADER.unpack(data)
        if magic != MAGIC:
            raise ProtocolError(
                f"a message begins with {magic!r} and not with {MAGIC!r}: this is the "
                "live protocol of neurodeploy, see PROTOCOL.md"
            )
        if version != VERSION:
            raise ProtocolError(
                f"a message is of version {version} of the protocol, this side speaks "
                f"{VERSION}: use the same version of neurodeploy on both"
            )
        if length > limit:
            raise ProtocolError(
                f"a message announces {length} bytes, the limit is {limit}"
            )
        return cls(kind, index, flags, length, value)


@dataclass(frozen=True)
class Hello:
    """What a client asks for; see PROTOCOL.md. `noise` 0 learns the normalisation.

    Raises
    ------
    SettingsError
        A field that no message can carry; names it.
    """

    height: int
    width: int
    dtype: str
    when_full: Literal["block", "drop", "fail"] = "block"
    output_kind: Literal["mask", "probability"] = "mask"
    learn_planes: int = 16
    background: float = 0.0
    noise: float = 0.0
    ring_planes: int = 0

    def __post_init__(self) -> None:
        for name, table in (
            ("dtype", DTYPES),
            ("when_full", POLICIES),
            ("output_kind", OUTPUTS),
        ):
            if (value := getattr(self, name)) not in table.values():
                raise SettingsError(
                    f"{name} {value!r} is unknown: use {', '.join(table.values())}"
                )
        for name in ("height", "width", "learn_planes", "ring_planes"):
            value = getattr(self, name)
            # A camera's own numbers are often NumPy's.
            if not hasattr(value, "__index__") or not 0 <= value < 2**32:
                raise SettingsError(
                    f"{name} {value!r} is no whole number from 0 to {2**32 - 1}"
                )

    def pack(self) -> bytes:
        """As the payload of a HELLO."""
        codes: list[dict[int, Any]] = [DTYPES, POLICIES, OUTPUTS]
        names = (self.dtype, self.when_full, self.output_kind)
        numbers = [
            next(code for code, known in table.items() if known == name)
            for table, name in zip(codes, names, strict=True)
        ]
        return HELLO.pack(
            self.height,
            self.width,
            *numbers,
            self.learn_planes,
            self.background,
            self.noise,
            self.ring_planes,
            0,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Hello:
        """Read one; raises ProtocolError naming the field that makes no sense."""
        if len(data) != HELLO.size:
            raise ProtocolError(
                f"a HELLO has {HELLO.size} bytes of payload, this one {len(data)}"
            )
        fields = HELLO.unpack(data)
        height, width, dtype, policy, output, learn, background, noise = fields[:8]
        for name, value, allowed in (
            ("dtype", dtype, DTYPES),
            ("when_full", policy, POLICIES),
            ("output", output, OUTPUTS),
        ):
            if value not in allowed:
                raise ProtocolError(f"{name} {value} of a HELLO is unknown")
        if not (math.isfinite(background) and math.isfinite(noise) and noise >= 0):
            raise ProtocolError(
                f"background {background} and noise {noise} of a HELLO are no "
                "constants to normalise by"
            )
        return cls(
            height,
            width,
            DTYPES[dtype],
            POLICIES[policy],
            OUTPUTS[output],
            learn,
            background,
            noise,
            fields[8],
        )


@dataclass(frozen=True)
class Welcome:
    """What a server answers to a HELLO."""

    limit_bytes: int
    ring_planes: int
    outlet_planes: int
    window: int
    stride: int
    lag_least: int
    lag_most: int
    model: str

    def pack(self) -> bytes:
        """As the payload of a WELCOME."""
        name = self.model.encode()[:TEXT_BYTES]
        numbers = (
            self.limit_bytes,
            self.ring_planes,
            self.outlet_planes,
            self.window,
            self.stride,
            self.lag_least,
            self.lag_most,
        )
        return WELCOME.pack(*numbers, len(name)) + name

    @classmethod
    def unpack(cls, data: bytes) -> Welcome:
        """Read one."""
        if len(data) < WELCOME.size:
            raise ProtocolError(f"a WELCOME of {len(data)} bytes is too short")
        fields = WELCOME.unpack_from(data)
        length = fields[7]
        name = data[WELCOME.size :]
        if len(name) != length:
            raise ProtocolError("a WELCOME has another length than it says")
        limit, ring, outlet, window, stride, least, most = fields[:7]
        if outlet == 0:
            # A client keeps as many itself: with none it would wait for ever.
            raise ProtocolError(
                "a WELCOME says that no finished plane may wait: look whether it is "
                "`neurodeploy serve` that answers"
            )
        text = name.decode(errors="replace")
        return cls(limit, ring, outlet, window, stride, least, most, text)


def receive_into(
    connection: socket.socket, buffer: memoryview, deadline: float | None = None
) -> bool:
    """Fill the buffer; False where the peer closed before its first byte.

    The connection has a timeout, or `deadline` (of ``time.monotonic``) sets it; None
    waits for ever.

    Raises
    ------
    ProtocolError
        The peer closed in the middle, or the deadline passed.
    """
    filled = 0
    while filled < len(buffer):
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise ProtocolError(
                    f"a message stopped after {filled} of {len(buffer)} bytes"
                )
            connection.settimeout(left)
        try:
            n = connection.recv_into(buffer[filled:])
        except TimeoutError:
            continue
        if n == 0:
            if filled == 0:
                return False
            raise ProtocolError(
                f"the connection ended after {filled} of {len(buffer)} bytes of a "
                "message"
            )
        filled += n
    return True


def receive_payload(
    connection: socket.socket, length: int, deadline: float | None = None
) -> bytearray:
    """A payload whose length has been found to be within its limit."""
    payload = bytearray(length)
    if length and not receive_into(connection, memoryview(payload), deadline):
        raise ProtocolError(f"the payload of {length} bytes did not come")
    return payload


def plane_bytes(plane: NDArray[Any]) -> memoryview:
    """A plane as little-endian bytes, row by row."""
    little = plane.dtype.newbyteorder("<")
    return np.ascontiguousarray(plane, little).reshape(-1).view(np.uint8).data


def part_kindly(connection: socket.socket, patience_s: float = 1.0) -> None:
    """Close so that what was said last arrives.

    A socket closed with bytes unread resets the connection, and what was on its way
    to the peer is thrown away.
    """
    deadline = time.monotonic() + patience_s
    with connection, contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(1 << 16):
                return
