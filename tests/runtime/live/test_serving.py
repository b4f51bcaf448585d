"""A process apart: what a client may do, and that the server goes on."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import struct
import subprocess
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import neurodeploy_runtime.serving
from neurodeploy_runtime import (
    EngineError,
    Histogram,
    Normalisation,
    NumpyEngine,
    OverrunError,
    Segmenter,
    SegmentSettings,
    SettingsError,
    StreamError,
)
from neurodeploy_runtime.live import LiveSettings
from neurodeploy_runtime.serving import Hello, RigClient, RigServer, ServerSettings
from neurodeploy_runtime.serving._server import Session, address_option
from neurodeploy_runtime.serving._wire import Header, Kind, ProtocolError, Welcome

WAIT_S = 30.0
HEIGHT, WIDTH = 20, 24
HELLO = Hello(HEIGHT, WIDTH, "uint16", noise=65535.0)


@pytest.fixture
def bundle(make_identity_bundle):
    return make_identity_bundle(tile=(8, 16, 16))


@pytest.fixture
def server(bundle):
    with serving(bundle) as opened:
        yield opened


def serving(bundle, engine=None, **options):
    options = {"stall_s": 0.5, "unread_s": WAIT_S, "limit_bytes": 100_000} | options
    return RigServer(
        bundle,
        LiveSettings(),
        ServerSettings(**options),
        engine=engine or NumpyEngine(bundle),
    )


def stack_of(depth):
    rng = np.random.default_rng(depth)
    return rng.integers(0, 65535, (depth, HEIGHT, WIDTH)).astype(np.uint16)


def expected_of(bundle, stack):
    made = SegmentSettings(normalisation=Normalisation("unit", 0.0, 65535.0))
    with Segmenter(bundle, made, engines=[NumpyEngine(bundle)]) as segmenter:
        return segmenter.segment_array(stack)


def served(client, stack):
    """Push from a thread, and take what comes back."""

    def push():
        for plane in stack:
            client.push(plane)
        client.finish()

    pusher = threading.Thread(target=push)
    pusher.start()
    planes = list(client.planes())
    pusher.join()
    return np.stack([p.voxels for p in planes])


def check_it_goes_on(server, bundle):
    """Whatever happened before: the next client is served."""
    deadline = time.monotonic() + WAIT_S
    while server._session is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    stack = stack_of(12)
    with RigClient(HELLO, server.port) as client:
        np.testing.assert_array_equal(served(client, stack), expected_of(bundle, stack))


def raw(server):
    connection = socket.create_connection(("127.0.0.1", server.port), WAIT_S)
    connection.settimeout(WAIT_S)
    return connection


def answer(connection):
    data = b""
    while len(data) < 32:
        more = connection.recv(32 - len(data))
        if not more:
            return None, b""
        data += more
    header = Header.unpack(data, 10**6)
    payload = b""
    while len(payload) < header.length:
        payload += connection.recv(header.length - len(payload))
    return header, payload


def test_a_client_gets_what_segment_gives(server, bundle):
    stack = stack_of(40)
    with RigClient(HELLO, server.port) as client:
        assert client.welcome.model == "identity"
        assert (client.welcome.window, client.welcome.stride) == (8, 6)
        np.testing.assert_array_equal(served(client, stack), expected_of(bundle, stack))


def test_the_status_is_answered_while_planes_are_sent(server):
    with RigClient(HELLO, server.port) as client:
        for plane in stack_of(5):
            client.push(plane)
        status = client.status()
    assert status["pushed"] == 5
    assert status["state"] == "streaming"


def test_missing_and_mistaken_planes_are_said_to_be_so(server, bundle):
    stack = stack_of(20)
    with RigClient(HELLO, server.port) as client:
        with pytest.raises(SettingsError, match="does not belong to this stream"):
            client.push(stack[0].astype(np.uint8))
        for z in (*range(10), 3, *range(11, 20)):
            client.push(stack[z], z=z)
        client._send(Header(Kind.PLANE, 20, length=8), b"\0" * 8)
        client.finish()
        planes = list(client.planes())
        refused = client.refused
    assert len(planes) == 20
    # Plane 10 is missing: tiles 6:14 read it.
    assert [p.z for p in planes if not p.valid] == list(range(6, 14))
    assert "plane 3 comes after plane 9" in refused[0]
    assert "a plane of 8 bytes does not belong" in refused[1]


def test_another_client_is_told_to_wait(server, bundle):
    first = RigClient(HELLO, server.port)
    with pytest.raises(StreamError, match="another client is being served"):
        RigClient(HELLO, server.port)
    first.close()
    check_it_goes_on(server, bundle)


def test_a_client_that_goes_away_in_the_middle_is_forgotten(server, bundle):
    client = RigClient(HELLO, server.port)
    client.push(stack_of(3)[0])
    client._send(Header(Kind.PLANE, 1, length=HEIGHT * WIDTH * 2), b"half a plane")
    client.close()
    check_it_goes_on(server, bundle)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n", "begins with"),
        (struct.pack("<4sHHQIId", b"NDLV", 9, 1, 0, 0, 0, 0.0), "of version 9"),
        (Header(Kind.PLANE, length=4).pack() + b"abcd", "begins with a HELLO"),
        (Header(Kind.HELLO, length=2**32 - 1).pack(), "the limit is 100000"),
        (Header(Kind.HELLO, length=48).pack() + b"\xff" * 48, "unknown"),
        (Header(Kind.HELLO, length=7).pack() + b"\0" * 7, "48 bytes of payload"),
        (
            Header(Kind.HELLO, length=48).pack() + Hello(9999, 9999, "uint8").pack(),
            "larger than the limit",
        ),
        (Header(Kind.HELLO, length=48).pack() + b"short", "stopped after 5 of 48"),
        (b"NDLV", "stopped after 4 of 32"),
    ],
)
def test_garbage_is_answered_by_a_sentence_and_the_end(server, bundle, sent, said):
    with raw(server) as connection:
        connection.sendall(sent)
        header, payload = answer(connection)
        assert header.kind == Kind.FAILED
        assert said in payload.decode()
        assert connection.recv(1) in (b"",)


@settings(max_examples=15, deadline=None)
@given(st.binary(min_size=32, max_size=200))
def test_no_bytes_end_the_server(one_server, noise):
    server = one_server
    with raw(server) as connection:
        try:
            connection.sendall(noise)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
        except ConnectionError:
            pass
    deadline = time.monotonic() + WAIT_S
    while server._session is not None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert server._session is None
    assert server._thread.is_alive()


@pytest.fixture(scope="module")
def one_server(make_identity_bundle):
    with serving(make_identity_bundle(tile=(8, 16, 16))) as opened:
        yield opened


def send_for_ever(send):
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        send()


def test_a_client_that_never_reads_is_let_go(bundle):
    hello = Hello(200, 200, "uint8", noise=255.0)
    with serving(bundle, unread_s=0.3) as server, raw(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(Header(Kind.HELLO, length=48).pack() + hello.pack())
        plane = bytes(200 * 200)
        header = Header(Kind.PLANE, 2**64 - 1, 0, 40_000).pack()
        with pytest.raises(ConnectionError):
            send_for_ever(lambda: connection.sendall(header + plane))
        check_it_goes_on(server, bundle)


def test_a_client_may_close_its_side_and_still_read(server, bundle):
    stack = stack_of(9)
    with raw(server) as connection:
        connection.sendall(Header(Kind.HELLO, length=48).pack() + HELLO.pack())
        header, payload = answer(connection)
        assert header.kind == Kind.WELCOME
        assert Welcome.unpack(payload).limit_bytes == 100_000
        for z, plane in enumerate(stack):
            message = Header(Kind.PLANE, z, length=plane.nbytes).pack()
            connection.sendall(message + plane.tobytes())
        connection.sendall(Header(Kind.FINISH).pack())
        connection.shutdown(socket.SHUT_WR)
        masks = []
        while True:
            header, payload = answer(connection)
            if header.kind == Kind.DONE:
                break
            masks.append(np.frombuffer(payload, np.uint8).reshape(HEIGHT, WIDTH))
    assert header.index == 9
    np.testing.assert_array_equal(np.stack(masks), expected_of(bundle, stack))


def test_an_engine_that_fails_is_said_to_the_client(bundle):
    class Broken(NumpyEngine):
        def infer(self, batch, out):
            raise EngineError("the device is gone")

    with (
        serving(bundle, Broken(bundle)) as server,
        RigClient(HELLO, server.port) as client,
    ):
        for plane in stack_of(9):
            client.push(plane)
        with pytest.raises(StreamError, match="the device is gone"):
            list(client.planes())


def test_a_client_is_held_up_in_time_where_nobody_reads_its_results(bundle):
    hello = Hello(200, 200, "uint8", noise=255.0)
    with (
        serving(bundle) as server,
        RigClient(hello, server.port, timeout_s=0.3) as client,
    ):
        plane = np.zeros((200, 200), np.uint8)
        with pytest.raises(OverrunError, match="has not read the plane in time"):
            send_for_ever(lambda: client.push(plane))


def test_only_this_machine_is_served_unless_that_is_allowed():
    with pytest.raises(SettingsError, match=r"0\.0\.0\.0 can be reached by other"):
        ServerSettings(host="0.0.0.0")
    assert ServerSettings(host="0.0.0.0", allow_remote=True).port == 0
    assert ServerSettings(host="::1").port == 0


def test_a_server_that_is_not_there_is_said_to_be_so():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(StreamError, match="start `neurodeploy serve`"):
        RigClient(HELLO, port)


@given(st.binary(max_size=64))
def test_a_hello_of_any_bytes_is_read_or_refused(data):
    try:
        hello = Hello.unpack(data)
    except ProtocolError:
        return
    assert Hello.unpack(hello.pack()) == hello


def compiled(tmp_path):
    """The worked example, as a program."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc) on this machine")
    folder = neurodeploy_runtime.serving.__path__[0]
    program = tmp_path / "example_client"
    command = [compiler, "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror"]
    command += ["-O2", "-pthread", f"{folder}/example_client.c", "-o", str(program)]
    subprocess.run(command, check=True)
    return str(program)


def test_the_example_in_c_gets_what_segment_gives(bundle, server, tmp_path):
    stack = stack_of(30)
    shape = [str(server.port), str(HEIGHT), str(WIDTH), "30", "0", "65535"]
    done = subprocess.run(
        [compiled(tmp_path), *shape],
        input=stack.astype("<u2").tobytes(),
        capture_output=True,
        check=True,
        timeout=WAIT_S,
    )
    masks = np.frombuffer(done.stdout, np.uint8).reshape(stack.shape)
    np.testing.assert_array_equal(masks, expected_of(bundle, stack))
    assert b"30 planes, 0 not valid" in done.stderr


def test_the_example_in_c_says_what_the_server_failed_of(bundle, tmp_path):
    """And is not ended by a signal, because it was sending."""
    planes = 4000
    with serving(bundle, Broken(bundle)) as server:
        shape = [str(server.port), str(HEIGHT), str(WIDTH), str(planes), "0", "65535"]
        done = subprocess.run(
            [compiled(tmp_path), *shape],
            input=bytes(planes * HEIGHT * WIDTH * 2),
            capture_output=True,
            check=False,
            timeout=WAIT_S,
        )
    assert done.returncode == 1
    assert b"the device is gone" in done.stderr


def said_at_last(connection):
    header, payload = answer(connection)
    assert header.kind == Kind.FAILED
    return payload.decode()


def test_a_client_that_connects_and_says_nothing_is_let_go(server, bundle):
    with raw(server) as connection:
        assert "no HELLO came in 0.5 s" in said_at_last(connection)
    check_it_goes_on(server, bundle)


def test_a_message_that_comes_byte_by_byte_ends(server, bundle):
    message = Header(Kind.HELLO, length=48).pack() + HELLO.pack()
    with raw(server) as connection:
        for byte in message:
            try:
                connection.sendall(bytes([byte]))
            except ConnectionError:
                break
            time.sleep(0.05)
        # All of it, in 4 s, would be a HELLO.
        assert "stopped after" in said_at_last(connection)
    check_it_goes_on(server, bundle)


def test_a_client_may_be_silent_between_its_planes(bundle):
    stack = stack_of(9)
    with serving(bundle, stall_s=0.2) as server, RigClient(HELLO, server.port) as rig:
        rig.push(stack[0])
        time.sleep(0.6)
        np.testing.assert_array_equal(served(rig, stack[1:]).shape, stack.shape)


def test_closing_does_not_wait_for_a_client_in_the_middle_of_a_message(bundle):
    server = serving(bundle, stall_s=WAIT_S)
    with raw(server) as connection:
        connection.sendall(Header(Kind.HELLO, length=48).pack() + HELLO.pack())
        assert answer(connection)[0].kind == Kind.WELCOME
        connection.sendall(Header(Kind.PLANE, length=HEIGHT * WIDTH * 2).pack() + b"1")
        time.sleep(0.1)
        started = time.monotonic()
        server.close()
        assert time.monotonic() - started < 5.0


def test_another_stack_may_be_sent_right_after_one_is_finished(
    server, bundle, monkeypatch
):
    end_stream = Session._end_stream

    def slowly(session):
        time.sleep(0.3)
        end_stream(session)

    monkeypatch.setattr(Session, "_end_stream", slowly)
    stack = stack_of(9)
    for _ in range(2):
        with RigClient(HELLO, server.port) as client:
            found = served(client, stack)
        np.testing.assert_array_equal(found, expected_of(bundle, stack))


def test_a_tile_that_is_stuck_does_not_keep_the_server_busy(bundle, monkeypatch):
    from neurodeploy_runtime.live import _segmenter

    monkeypatch.setattr(_segmenter, "CLOSE_S", 0.1)

    class Stuck(NumpyEngine):
        gate, reached = threading.Event(), threading.Event()

        def infer(self, batch, out):
            self.reached.set()
            assert self.gate.wait(WAIT_S)
            super().infer(batch, out)

    engine = Stuck(bundle)
    with serving(bundle, engine) as server:
        client = RigClient(HELLO, server.port)
        for plane in stack_of(9):
            client.push(plane)
        assert engine.reached.wait(WAIT_S)
        client.close()
        deadline = time.monotonic() + 10.0
        while server.served == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.served == 1
        engine.gate.set()
        check_it_goes_on(server, bundle)


def deaf_server(said=b""):
    """A socket whose first client gets `said`, and is never read."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(1)
    clients = []

    def welcome():
        clients.append(listening.accept()[0])
        clients[0].sendall(said)

    threading.Thread(target=welcome, daemon=True).start()
    return listening, clients


WELCOME = Welcome(10**8, 16, 8, 8, 6, 3, 8, "deaf").pack()
WELCOME = Header(Kind.WELCOME, length=len(WELCOME)).pack() + WELCOME


def test_a_plane_that_nobody_reads_is_not_pushed_for_ever():
    """One that is larger than what lies between the two."""
    listening, clients = deaf_server(WELCOME)
    port = listening.getsockname()[1]
    plane = np.zeros((4000, 5000), np.uint16)
    try:
        with RigClient(Hello(4000, 5000, "uint16"), port, timeout_s=0.3) as client:
            started = time.monotonic()
            with pytest.raises(OverrunError, match="has not read the plane in time"):
                client.push(plane)
            assert time.monotonic() - started < 5.0
            with pytest.raises(OverrunError, match="has not read the plane in time"):
                client.finish()
        with pytest.raises(StreamError, match="has not read"):
            client.status()
    finally:
        for opened in (listening, *clients):
            opened.close()


def test_an_answer_that_does_not_come_is_not_waited_for_for_ever():
    for said, named in ((WELCOME, "how it stands"), (b"", "stopped after 0 of 32")):
        listening, clients = deaf_server(said)
        try:
            port = listening.getsockname()[1]
            with (
                pytest.raises(StreamError, match=named),
                RigClient(HELLO, port, timeout_s=0.2) as client,
            ):
                client.status()
        finally:
            for opened in (listening, *clients):
                opened.close()


def test_a_server_that_lets_no_plane_wait_is_refused():
    """Its client would keep none, and wait for ever at the first."""
    said = Welcome(10**8, 16, 0, 8, 6, 3, 8, "none").pack()
    header = Header(Kind.WELCOME, length=len(said)).pack()
    listening, clients = deaf_server(header + said)
    try:
        with pytest.raises(ProtocolError, match="no finished plane may wait"):
            RigClient(HELLO, listening.getsockname()[1], timeout_s=WAIT_S)
    finally:
        for opened in (listening, *clients):
            opened.close()


def test_an_answer_that_comes_too_late_is_not_that_to_the_next_question():
    listening, clients = deaf_server(WELCOME)

    def say(pushed):
        text = b'{"pushed": %d}' % pushed
        clients[0].sendall(Header(Kind.STATUS, length=len(text)).pack() + text)

    try:
        port = listening.getsockname()[1]
        with RigClient(HELLO, port, timeout_s=0.5) as client:
            with pytest.raises(StreamError, match="how it stands"):
                client.status()
            answers = [threading.Timer(0.1 * n, say, [n]) for n in (1, 2)]
            for one in answers:
                one.start()
            assert client.status() == {"pushed": 2}
            for one in answers:
                one.join()
    finally:
        for opened in (listening, *clients):
            opened.close()


def test_no_two_servers_have_one_port(server, bundle, monkeypatch):
    with pytest.raises(SettingsError, match="use another port"):
        serving(bundle, port=server.port)
    # As on Windows, where SO_REUSEADDR would let it.
    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", -5, raising=False)
    assert address_option() == -5


def test_a_hello_that_says_no_number_learns_as_the_server_does(make_identity_bundle):
    made = make_identity_bundle(tile=(8, 16, 16), normalisation="background-asinh")
    stack = stack_of(20)
    with (
        serving(made) as server,
        RigClient(Hello(HEIGHT, WIDTH, "uint16", learn_planes=0), server.port) as rig,
    ):
        assert len(served(rig, stack)) == 20
        learnt = server.live.status.normalisation
    histogram = Histogram(np.uint16)
    histogram.add(stack[: LiveSettings.learn_planes])
    assert learnt == histogram.freeze("background-asinh")


def test_a_client_that_cannot_be_served_does_not_end_the_server(
    server, bundle, monkeypatch
):
    """As where no descriptor is left for it, or it has gone already."""
    start = Session.start

    def fail(session, ended):
        raise OSError(24, "too many open files")

    monkeypatch.setattr(Session, "start", fail)
    with raw(server) as connection:
        assert connection.recv(1) == b""
    monkeypatch.setattr(Session, "start", start)
    check_it_goes_on(server, bundle)


class Broken(NumpyEngine):
    """Answers so many batches, and fails then, once its gate is open."""

    def __init__(self, bundle, whole=0):
        super().__init__(bundle)
        self.whole = whole
        self.gate = threading.Event()
        self.gate.set()

    def infer(self, batch, out):
        if self.whole == 0:
            assert self.gate.wait(WAIT_S)
            raise EngineError("the device is gone")
        self.whole -= 1
        super().infer(batch, out)


def test_what_came_before_a_failure_is_not_lost_and_the_next_push_hears_of_it(bundle):
    # A layer of 20 × 24 pixels is 4 tiles of 16; the second one takes 15 planes.
    stack = stack_of(15)
    found = []
    engine = Broken(bundle, 4)
    engine.gate.clear()
    with (
        serving(bundle, engine) as server,
        RigClient(HELLO, server.port) as client,
    ):

        def take():
            for plane in client.planes():
                found.append(plane.z)

        for plane in stack:
            client.push(plane)
        deadline = time.monotonic() + WAIT_S
        while client._planes.passed < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        engine.gate.set()
        client._thread.join(WAIT_S)
        for call in (lambda: client.push(stack[0]), client.finish, take):
            with pytest.raises(StreamError, match="the device is gone"):
                call()
    assert found == list(range(6))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", "float64"),
        ("when_full", "x"),
        ("output_kind", "both"),
        ("height", -1),
        ("width", 2**32),
        ("learn_planes", 1.5),
    ],
)
def test_a_hello_that_no_message_can_carry_is_refused(field, value):
    with pytest.raises(SettingsError, match=f"{field} {value!r} is"):
        dataclasses.replace(HELLO, **{field: value})


def test_a_hello_takes_the_numbers_of_numpy():
    ours = dataclasses.replace(HELLO, height=np.int64(HEIGHT), width=np.uint16(WIDTH))
    assert Hello.unpack(ours.pack()) == HELLO


@pytest.mark.parametrize("z", [-1, 2**64 - 1, 2**64])
def test_an_index_that_is_none_is_not_sent(server, z):
    with RigClient(HELLO, server.port) as client:
        with pytest.raises(StreamError, match=f"plane {z} is no index"):
            client.push(np.zeros((HEIGHT, WIDTH), np.uint16), z)
        client.push(np.zeros((HEIGHT, WIDTH), np.uint16), np.int64(0))
