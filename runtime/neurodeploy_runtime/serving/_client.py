"""The Python side of PROTOCOL.md."""

from __future__ import annotations

import contextlib
import json
import math
import operator
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import (
    CancelledError,
    OverrunError,
    SettingsError,
    StreamError,
)
from neurodeploy_runtime._waiting import wait_for
from neurodeploy_runtime.live import LivePlane
from neurodeploy_runtime.live._outlet import Outlet
from neurodeploy_runtime.serving._wire import (
    HEADER,
    LIMIT_BYTES,
    NEXT,
    TEXT_BYTES,
    VALID,
    Header,
    Hello,
    Kind,
    ProtocolError,
    Welcome,
    plane_bytes,
    receive_into,
    receive_payload,
)

#: Refusals that are kept; of those before them nothing is.
KEPT_REFUSALS = 256


class RigClient:
    """Sends planes to a `neurodeploy serve` and gets them back segmented.

    One thread may push while another iterates :meth:`planes`. Whoever does not read
    is held up, as :class:`LiveSegmenter` does. Of a plane the server tells the latency
    and not the lag: `lag_planes` is 0.

    Parameters
    ----------
    hello
        What is asked for: the plane's shape and dtype, the policy.
    timeout_s
        How long connecting, a push, and an answer of the server may take.

    Raises
    ------
    StreamError
        There is no server, it is busy, it does not speak this protocol, or it refuses
        such planes.
    """

    def __init__(
        self,
        hello: Hello,
        port: int,
        host: str = "127.0.0.1",
        *,
        timeout_s: float = 30.0,
    ) -> None:
        self.hello = hello
        self._timeout_s = timeout_s
        self._plane_bytes = hello.height * hello.width * np.dtype(hello.dtype).itemsize
        try:
            self._socket = socket.create_connection((host, port), timeout_s)
        except OSError as error:
            raise StreamError(
                f"no server answers at {host}:{port} ({error}): start "
                "`neurodeploy serve`"
            ) from None
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Both have a timeout: without one the socket that they share would block, and
        # a push on it, too.
        self._reader = self._socket.dup()
        self._reader.settimeout(timeout_s)
        self._error: StreamError | None = None
        self._sending = threading.Lock()
        #: What the server refused last, while the stream lived on.
        self.refused: deque[str] = deque(maxlen=KEPT_REFUSALS)
        self._asking = threading.Lock()
        self._answered = threading.Condition()
        #: Of the last answer. They come in the order of the questions, each has one.
        self._status: dict[str, Any] = {}
        self._asked = self._answers = 0
        self._ended: BaseException | None = None
        try:
            payload = hello.pack()
            # A server that refuses may have hung up already; its answer is there.
            with contextlib.suppress(ConnectionError):
                self._send(Header(Kind.HELLO, length=len(payload)), payload)
            header, answer = self._receive(time.monotonic() + timeout_s)
            if header.kind != Kind.WELCOME:
                raise ProtocolError(f"a HELLO was answered by kind {header.kind}")
            self.welcome = Welcome.unpack(answer)
        except BaseException as error:
            self._socket.close()
            self._reader.close()
            if isinstance(error, OSError):
                raise StreamError(
                    f"what listens at {host}:{port} has hung up ({error}): look "
                    "whether it is `neurodeploy serve`"
                ) from None
            raise
        self._planes = Outlet(self.welcome.outlet_planes)
        self._thread = threading.Thread(target=self._read, name="results", daemon=True)
        self._thread.start()

    def push(self, plane: NDArray[Any], z: int | None = None) -> None:
        """Send a plane (y, x); it is on its way when this returns.

        Raises
        ------
        SettingsError
            It is of another shape or dtype: it was not sent.
        OverrunError
            The server did not read it within `timeout_s`; the connection is closed,
            because half a plane may be on its way.
        StreamError
            What the stream failed of, in the server or between.
        """
        shape = (self.hello.height, self.hello.width)
        if plane.shape != shape or plane.dtype.name != self.hello.dtype:
            raise SettingsError(
                f"a plane of {plane.shape} {plane.dtype.name} does not belong to this "
                f"stream of {shape} {self.hello.dtype}: it was not sent"
            )
        index = NEXT if z is None else operator.index(z)
        if not (z is None or 0 <= index < NEXT):
            raise StreamError(f"plane {z} is no index: it was not sent")
        header = Header(Kind.PLANE, index, length=self._plane_bytes)
        self._tell(header, plane_bytes(plane))

    def finish(self) -> None:
        """Say that the stack is complete; raises as :meth:`push` does."""
        self._tell(Header(Kind.FINISH))

    def status(self) -> dict[str, Any]:
        """How the stream stands in the server.

        Raises
        ------
        StreamError
            The stream has ended, or no answer came within `timeout_s`.
        """
        with self._asking:
            # An answer that nobody waited for any more is not that to this question.
            self._asked += 1
            mine = self._asked
            self._tell(Header(Kind.ASK_STATUS))
            with self._answered:
                wait_for(
                    self._answered,
                    lambda: self._answers >= mine or self._ended is not None,
                    self._timeout_s,
                )
                if self._answers >= mine:
                    return self._status
                if self._ended is not None:
                    raise self._ended.with_traceback(None)
                raise StreamError(
                    f"the server has not said in {self._timeout_s:g} s how it stands: "
                    "read planes() in another thread, its answer may lie behind them"
                )

    def planes(self) -> Iterator[LivePlane]:
        """The finished planes, in order, until the last one after :meth:`finish`.

        Raises, after those that had come before it, what the stream failed of.
        """
        while (plane := self._planes.get()) is not None:
            yield plane

    def close(self) -> None:
        """Close the connection; the server stops what it has not finished."""
        self._error = self._error or StreamError("the client was closed")
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._end(CancelledError("the client was closed"))
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._socket.close()
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _tell(self, header: Header, payload: bytes | memoryview = b"") -> None:
        """Send, or say what became of the connection."""
        self._raise_error()
        try:
            self._send(header, payload)
        except TimeoutError:
            self._error = self._error or OverrunError(
                "the server has not read the plane in time: read planes() in another "
                "thread, or push more slowly"
            )
            self._end(self._error)
            self.close()
            raise self._error from None
        except OSError:
            # What the server said last says more than that the pipe is broken.
            self._thread.join(1.0)
            raise self._error or StreamError("the connection is lost") from None

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error.with_traceback(None)

    def _end(self, error: BaseException) -> None:
        """Whoever waits for something that is to come gets this error."""
        self._planes.fail(error)
        with self._answered:
            self._ended = self._ended or error
            self._answered.notify_all()

    def _send(self, header: Header, payload: bytes | memoryview = b"") -> None:
        with self._sending:
            self._socket.sendall(header.pack())
            if payload:
                self._socket.sendall(payload)

    def _receive(self, deadline: float | None = None) -> tuple[Header, bytes]:
        data = bytearray(HEADER.size)
        if not receive_into(self._reader, memoryview(data), deadline):
            raise StreamError("the server has closed the connection")
        pixels = self.hello.height * self.hello.width
        header = Header.unpack(data, max(LIMIT_BYTES, pixels))
        limit = pixels if header.kind == Kind.RESULT else TEXT_BYTES + 4096
        if header.length > limit:
            raise ProtocolError(
                f"the server announces {header.length} bytes of kind {header.kind}"
            )
        payload = bytes(receive_payload(self._reader, header.length, deadline))
        if header.kind == Kind.FAILED:
            raise StreamError(f"the server says: {payload.decode(errors='replace')}")
        return header, payload

    def _read(self) -> None:
        try:
            while True:
                header, payload = self._receive()
                if header.kind == Kind.RESULT:
                    self._planes.put(self._plane(header, payload))
                elif header.kind == Kind.STATUS:
                    with self._answered:
                        self._status = json.loads(payload)
                        self._answers += 1
                        self._answered.notify_all()
                elif header.kind == Kind.REFUSED:
                    self.refused.append(payload.decode(errors="replace"))
                elif header.kind == Kind.DONE:
                    self._planes.end()
                    with self._answered:
                        self._ended = StreamError("the stream has ended")
                        self._answered.notify_all()
                    return
        except BaseException as error:
            if not isinstance(error, StreamError | CancelledError):
                error = StreamError(f"the connection is lost ({error})")
            if isinstance(error, StreamError):
                self._error = self._error or error
            self._end(error)

    def _plane(self, header: Header, payload: bytes) -> LivePlane:
        shape = (self.hello.height, self.hello.width)
        valid = bool(header.flags & VALID)
        if valid and len(payload) != shape[0] * shape[1]:
            raise ProtocolError(f"a result of {len(payload)} bytes is no plane")
        voxels = (
            np.frombuffer(payload, np.uint8).reshape(shape)
            if valid
            else np.zeros(shape, np.uint8)
        )
        return LivePlane(header.index, voxels, valid, header.value or math.nan, 0)
