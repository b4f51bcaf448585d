"""A process that segments the planes that others send."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import math
import socket
import threading
import time
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._bundle import Bundle, load_bundle
from neurodeploy_runtime._errors import (
    CancelledError,
    NeurodeployError,
    OverrunError,
    RequestError,
    SettingsError,
    StreamError,
)
from neurodeploy_runtime._normalise import Normalisation
from neurodeploy_runtime.engines import Engine, open_engine
from neurodeploy_runtime.live import LivePlane, LiveSegmenter, LiveSettings
from neurodeploy_runtime.live._buffers import check_stream
from neurodeploy_runtime.serving._wire import (
    HEADER,
    HELLO,
    LIMIT_BYTES,
    NEXT,
    TEXT_BYTES,
    VALID,
    Header,
    Hello,
    Kind,
    ProtocolError,
    Welcome,
    part_kindly,
    receive_into,
    receive_payload,
)

log = logging.getLogger(__name__)

#: How often a thread that waits for a client looks whether it should stop.
TICK_S = 0.5
#: How long a new client waits for one that is just going, and has begun to.
GOING_S = 0.2
GONE_S = 5.0


@dataclass(frozen=True)
class ServerSettings:
    """What a server allows its clients.

    Attributes
    ----------
    host, port
        Where it listens; port 0 takes a free one. An address that other machines
        reach needs `allow_remote`: there is no password, and no encryption.
    limit_bytes
        The largest payload: a message that announces more ends its connection before
        anything is allocated.
    stall_s
        How long a message may take from its first byte to its last, and a client until
        its HELLO; between messages it may be silent.
    unread_s
        How long a client may leave a result unread before it is let go.
    """

    host: str = "127.0.0.1"
    port: int = 0
    allow_remote: bool = False
    limit_bytes: int = LIMIT_BYTES
    stall_s: float = 30.0
    unread_s: float = 30.0

    def __post_init__(self) -> None:
        if not HELLO.size <= self.limit_bytes < 2**32:
            raise SettingsError(
                f"messages of at most {self.limit_bytes} bytes are not possible: use "
                f"{HELLO.size} to {2**32 - 1}"
            )
        if not (self.stall_s > 0 and self.unread_s > 0):
            raise SettingsError("stall_s and unread_s must be positive")
        if not self.allow_remote and not _is_loopback(self.host):
            raise SettingsError(
                f"{self.host} can be reached by other machines, and clients are not "
                "asked who they are: use 127.0.0.1, or allow it with --allow-remote"
            )


class RigServer:
    """Listens for the protocol of PROTOCOL.md; a context manager.

    The engine is built and warm when the constructor returns. One client at a time is
    served; another one is told so. A client may do what it wants: its connection ends,
    the server goes on.

    Parameters
    ----------
    live
        For every stream; a client's HELLO replaces its own fields. Its `timeout_s`
        cannot be set: a client is held up by not being read.
    engine
        To use instead of opening one; it is the caller's to close.
    """

    def __init__(
        self,
        bundle: Bundle | None = None,
        live: LiveSettings | None = None,
        settings: ServerSettings | None = None,
        *,
        engine: Engine | None = None,
    ) -> None:
        self.bundle = bundle or load_bundle()
        self.live_settings = live or LiveSettings()
        self.settings = settings or ServerSettings()
        if self.live_settings.timeout_s != LiveSettings.timeout_s:
            raise SettingsError(
                f"a push of {self.live_settings.timeout_s:g} s makes no sense for a "
                "server, whose clients are held up by not being read: leave it out"
            )
        check_stream(self.bundle.spec, self.live_settings)
        family = socket.AF_INET6 if ":" in self.settings.host else socket.AF_INET
        self._socket = socket.socket(family)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, address_option(), 1)
            self._socket.bind((self.settings.host, self.settings.port))
            self._socket.listen(4)
        except OSError as error:
            self._socket.close()
            raise SettingsError(
                f"cannot listen at {self.settings.host}:{self.settings.port} "
                f"({error}): use another port"
            ) from None
        self.port: int = self._socket.getsockname()[1]
        self._owned = engine is None
        try:
            self.engine = engine or open_engine(self.bundle, self.live_settings.engine)
        except BaseException:
            self._socket.close()
            raise
        self._stop = threading.Event()
        self._session: Session | None = None
        self._served = 0
        self._socket.settimeout(TICK_S)
        self._thread = threading.Thread(target=self._listen, name="serve", daemon=True)
        self._thread.start()

    @property
    def live(self) -> LiveSegmenter | None:
        """The stream of the client that is served now."""
        session = self._session
        return None if session is None else session.live

    @property
    def served(self) -> int:
        """Clients whose connection has ended."""
        return self._served

    def wait(self) -> None:
        """Wait until the server is closed; Ctrl-C gets through."""
        while not self._stop.wait(TICK_S):
            pass

    def close(self) -> None:
        """End the connection of a client, and stop listening."""
        self._stop.set()
        self._thread.join()
        self._socket.close()
        session = self._session
        if session is not None:
            session.close()
        if self._owned:
            self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                connection, peer = self._socket.accept()
            except TimeoutError:
                continue
            except OSError as error:
                if not self._stop.wait(TICK_S):
                    log.error("cannot accept a client: %s", error)
                continue
            if self._is_busy():
                _refuse(connection, "another client is being served: try again later")
                continue
            log.info("client %s", peer)
            try:
                self._session = Session(self, connection)
                self._session.start(self._ended)
            except (OSError, RuntimeError) as error:
                # No descriptor, or no thread, is left; or the client has gone already.
                log.error("cannot serve a client: %s", error)
                if self._session is not None:
                    self._session.let_go()
                self._session = None
                connection.close()

    def _is_busy(self) -> bool:
        """Whether a client is being served, and is not just going."""
        session = self._session
        if session is None:
            return False
        if session.going.wait(GOING_S):
            deadline = time.monotonic() + GONE_S
            while self._session is not None and time.monotonic() < deadline:
                if self._stop.is_set():
                    break
                session.join(TICK_S / 10)
        return self._session is not None

    def _ended(self, session: Session) -> None:
        self._served += 1
        self._session = None


class Session:
    """One client: a thread that reads what it sends, one that sends what is finished.

    They share a socket of which each has its own handle, because their patience
    differs.
    """

    def __init__(self, server: RigServer, connection: socket.socket) -> None:
        self._server = server
        self._settings = server.settings
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A machine that is switched off says no goodbye.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._reader = connection
        self._writer = connection.dup()
        self._reader.settimeout(TICK_S)
        self._writer.settimeout(self._settings.unread_s)
        self._sending = threading.Lock()
        self._stop = threading.Event()
        #: The client has gone, or is let go.
        self.going = threading.Event()
        self.live: LiveSegmenter | None = None
        self._sender: threading.Thread | None = None
        self._plane: NDArray[Any] = np.empty(0, np.uint8)
        self._header = bytearray(HEADER.size)
        #: Until when what is being received must be there.
        self._deadline = time.monotonic() + self._settings.stall_s

    def start(self, ended: Any) -> None:
        """Serve the client, from a thread of its own; `ended` is called after it."""
        self._thread = threading.Thread(
            target=self._run, args=(ended,), name="client", daemon=True
        )
        self._thread.start()

    def let_go(self) -> None:
        """Close the connection of one that was not started."""
        self._writer.close()
        self._reader.close()

    def close(self) -> None:
        """End the connection."""
        self._hang_up()
        self._thread.join()

    def join(self, timeout_s: float) -> None:
        """Wait for its end."""
        self._thread.join(timeout_s)

    def _run(self, ended: Any) -> None:
        try:
            self._serve()
        except CancelledError:
            pass
        except NeurodeployError as error:
            log.warning("client let go: %s", error)
            self._say(Kind.FAILED, str(error))
        except OSError as error:
            log.warning("client let go: %s", error)
        except Exception as error:
            log.exception("client let go")
            self._say(Kind.FAILED, f"{type(error).__name__}: {error}")
        finally:
            self.going.set()
            try:
                self._end_stream()
            except NeurodeployError as error:
                log.error("a client's stream did not end: %s", error)
            finally:
                self._writer.close()
                part_kindly(self._reader)
                ended(self)

    # -- what the client says --------------------------------------------------

    def _serve(self) -> None:
        while (header := self._next_header()) is not None:
            if header.kind == Kind.HELLO:
                self._hello(header)
            elif self.live is None:
                raise ProtocolError("a stream begins with a HELLO")
            elif header.kind == Kind.PLANE:
                self._take_plane(self.live, header)
            elif header.kind == Kind.FINISH and header.length == 0:
                self.live.finish()
            elif header.kind == Kind.ASK_STATUS and header.length == 0:
                self._say(Kind.STATUS, _status_text(self.live))
            else:
                raise ProtocolError(
                    f"a message of kind {header.kind} with {header.length} bytes has "
                    "no meaning here"
                )
        # A client may close its side after FINISH and still read what is to come.
        if self.live is not None and self.live.state in ("finishing", "done"):
            while self._sender is not None and self._sender.is_alive():
                if self._stop.wait(TICK_S / 10):
                    break

    def _next_header(self) -> Header | None:
        """Wait for the next message; None where the client has gone."""
        while not self._stop.is_set():
            if self.live is None and time.monotonic() > self._deadline:
                raise ProtocolError(f"no HELLO came in {self._settings.stall_s:g} s")
            self._reader.settimeout(TICK_S)
            try:
                # Peeking keeps a header whole that comes in pieces.
                if not self._reader.recv(1, socket.MSG_PEEK):
                    return None
            except TimeoutError:
                continue
            except ConnectionError:
                return None
            self._deadline = time.monotonic() + self._settings.stall_s
            receive_into(self._reader, memoryview(self._header), self._deadline)
            return Header.unpack(self._header, self._settings.limit_bytes)
        return None

    def _hello(self, header: Header) -> None:
        if header.length != HELLO.size:
            raise ProtocolError(
                f"a HELLO has {HELLO.size} bytes of payload, not {header.length}"
            )
        payload = receive_payload(self._reader, header.length, self._deadline)
        hello = Hello.unpack(bytes(payload))
        pixels = hello.height * hello.width
        if pixels * np.dtype(hello.dtype).itemsize > self._settings.limit_bytes:
            raise SettingsError(
                f"planes of {hello.height} × {hello.width} {hello.dtype} are larger "
                f"than the limit of {self._settings.limit_bytes} bytes"
            )
        if self.live is not None and self.live.state != "done":
            raise StreamError("a HELLO came before the stack before it was done")
        self._end_stream()
        self.live = live = self._open(hello)
        self._plane = np.zeros(live.plane_shape, live.dtype)
        self._send(
            Kind.WELCOME,
            payload=Welcome(
                self._settings.limit_bytes,
                live.ring_planes,
                live.outlet_planes,
                live.plan.axes[0].window,
                live.plan.axes[0].stride,
                *live.lag_planes,
                self._server.bundle.spec.name,
            ).pack(),
        )
        self._sender = threading.Thread(
            target=self._send_results, args=(live,), name="results", daemon=True
        )
        self._sender.start()

    def _open(self, hello: Hello) -> LiveSegmenter:
        spec = self._server.bundle.spec
        normalisation = None
        if hello.noise > 0:
            normalisation = Normalisation(
                spec.normalisation, hello.background, hello.noise
            )
        settings = replace(
            self._server.live_settings,
            when_full=hello.when_full,
            output_kind=hello.output_kind,
            learn_planes=hello.learn_planes or self._server.live_settings.learn_planes,
            normalisation=normalisation,
            ring_planes=hello.ring_planes or self._server.live_settings.ring_planes,
        )
        return LiveSegmenter(
            self._server.bundle,
            (hello.height, hello.width),
            hello.dtype,
            settings,
            engines=[self._server.engine],
        )

    def _take_plane(self, live: LiveSegmenter, header: Header) -> None:
        if header.length != self._plane.nbytes:
            self._skip(header.length)
            self._say(
                Kind.REFUSED,
                f"a plane of {header.length} bytes does not belong to this stream of "
                f"{self._plane.nbytes}: it was not taken",
                header.index,
            )
            return
        view = self._plane.reshape(-1).view(np.uint8).data
        if not receive_into(self._reader, view, self._deadline):
            raise ProtocolError("the connection ended before a plane")
        plane = self._plane
        if np.dtype("=u2") != np.dtype("<u2"):  # a big-endian machine
            plane = plane.byteswap()
        z = None if header.index == NEXT else header.index
        # A client is held up by not being read: it cannot be told to push again.
        while not self._stop.is_set():
            try:
                live.push(plane, z=z, timeout_s=TICK_S)
                return
            except OverrunError:
                if live.state == "failed":
                    raise
            except (RequestError, StreamError) as error:
                if live.state in ("failed", "closed"):
                    raise
                self._say(Kind.REFUSED, str(error), header.index)
                return

    def _skip(self, length: int) -> None:
        piece = bytearray(min(length, 1 << 20))
        while length:
            n = min(length, len(piece))
            part = memoryview(piece)[:n]
            if not receive_into(self._reader, part, self._deadline):
                raise ProtocolError("the connection ended before a plane")
            length -= n

    # -- what the server says --------------------------------------------------

    def _send_results(self, live: LiveSegmenter) -> None:
        try:
            for plane in live.planes():
                self._send_plane(plane)
            self._send(Kind.DONE, index=live.status.pushed)
        except CancelledError:
            pass
        except TimeoutError:
            log.warning(
                "client let go: it left a result unread for %g s",
                self._settings.unread_s,
            )
            self._hang_up()
        except NeurodeployError as error:
            self._say(Kind.FAILED, str(error))
            self._hang_up()
        except OSError:
            self._hang_up()

    def _send_plane(self, plane: LivePlane) -> None:
        latency = 0.0 if math.isnan(plane.latency_s) else plane.latency_s
        if plane.valid:
            self._send(
                Kind.RESULT,
                index=plane.z,
                flags=VALID,
                value=latency,
                payload=plane.voxels.reshape(-1).data,
            )
        else:
            self._send(Kind.RESULT, index=plane.z, value=latency)

    def _send(
        self,
        kind: Kind,
        *,
        index: int = 0,
        flags: int = 0,
        value: float = 0.0,
        payload: bytes | memoryview = b"",
    ) -> None:
        header = Header(kind, index, flags, len(payload), value).pack()
        with self._sending:
            self._writer.sendall(header)
            if payload:
                self._writer.sendall(payload)

    def _say(self, kind: Kind, text: str, index: int = 0) -> None:
        with contextlib.suppress(OSError):
            self._send(kind, index=index, payload=text.encode()[:TEXT_BYTES])

    def _hang_up(self) -> None:
        self._stop.set()
        with contextlib.suppress(OSError):
            self._writer.shutdown(socket.SHUT_RDWR)

    def _end_stream(self) -> None:
        try:
            if self.live is not None:
                self.live.close()
        finally:
            if self._sender is not None:
                if self._stop.is_set():
                    self._hang_up()
                self._sender.join(self._settings.unread_s + TICK_S)
            self.live, self._sender = None, None


def address_option() -> int:
    """What lets a server have its port again at once, and no two have the same one.

    On Windows SO_REUSEADDR lets a second server take the port of the first.
    """
    exclusive: int | None = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)
    return socket.SO_REUSEADDR if exclusive is None else exclusive


def _status_text(live: LiveSegmenter) -> str:
    values = live.status.to_json()
    values["gaps"] = values["gaps"][-32:]
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            values[name] = None
    return json.dumps(values)


def _refuse(connection: socket.socket, text: str) -> None:
    payload = text.encode()
    with contextlib.suppress(OSError):
        connection.settimeout(TICK_S)
        connection.sendall(Header(Kind.FAILED, length=len(payload)).pack() + payload)
    part_kindly(connection, TICK_S)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
