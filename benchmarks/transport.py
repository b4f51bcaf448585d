"""From a rig's process to ours: what a plane costs over TCP and over shared memory.

    python benchmarks/transport.py

A child process sends planes of uint16, one at a time, and waits for an answer of one
byte: over loopback TCP as `neurodeploy serve` reads them, and through a ring in shared
memory with the byte sent over a socket. In both the receiver copies the plane into its
own touched memory, as a live segmenter does, and the last plane is checked. CPU
seconds, of both processes, are the column that a busy machine changes least.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _results import save, spread, stamp, table

SIDES = (512, 1024, 2048)


def shared(path: str, side: int) -> np.ndarray:
    """A ring of four planes in memory that both processes map."""
    return np.memmap(path, np.uint16, "r+", shape=(4, side, side))


def planes_of(side: int) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 65535, (4, side, side), np.uint16)


def child(kind: str, port: int, side: int, planes: int, name: str) -> None:
    stack = planes_of(side)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ring = shared(name, side)
        times = []
        cpu = time.process_time()
        for n in range(planes):
            plane = stack[n % 4]
            start = time.perf_counter()
            if kind == "tcp":
                connection.sendall(plane.reshape(-1).view(np.uint8).data)
            else:
                np.copyto(ring[n % 4], plane)
                connection.sendall(b"n")
            assert connection.recv(1) == b"k"
            times.append(time.perf_counter() - start)
        cpu = time.process_time() - cpu
        print(" ".join(f"{t:.7f}" for t in [*times, cpu]))


def measure(kind: str, side: int, planes: int) -> dict[str, Any]:
    stack = planes_of(side)
    taken = np.zeros((4, side, side), np.uint16)
    arrived = np.zeros((side, side), np.uint16)
    folder = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with (
        tempfile.NamedTemporaryFile(dir=folder) as memory,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        memory.truncate(stack.nbytes)
        ring = shared(memory.name, side)
        ring[:] = 0
        command = [sys.executable, __file__, "--child", kind]
        command += [str(server.getsockname()[1]), str(side), str(planes), memory.name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            connection, _ = server.accept()
            with connection:
                cpu = time.process_time()
                receive(connection, kind, ring, arrived, taken, planes)
            *times, child_cpu = map(float, process.stdout.read().split())
    cpu = time.process_time() - cpu + child_cpu
    last = (planes - 1) % 4
    assert np.array_equal(taken[last], stack[last])
    # The first planes touch what is touched for the first time.
    steady = np.array(times[8:])
    return {
        "kind": kind,
        "side": side,
        "plane_bytes": side * side * 2,
        "seconds": spread(steady.tolist()),
        "p99_s": float(np.quantile(steady, 0.99)),
        "cpu_s_per_gb": cpu / (planes * side * side * 2) * 1e9,
        "gb_per_s": side * side * 2 / float(np.median(steady)) / 1e9,
    }


def receive(
    connection: socket.socket,
    kind: str,
    ring: np.ndarray,
    arrived: np.ndarray,
    taken: np.ndarray,
    planes: int,
) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    view = arrived.reshape(-1).view(np.uint8).data
    for n in range(planes):
        if kind == "tcp":
            filled = 0
            while filled < len(view):
                filled += connection.recv_into(view[filled:])
            np.copyto(taken[n % 4], arrived)
        else:
            assert connection.recv(1) == b"n"
            np.copyto(taken[n % 4], ring[n % 4])
        connection.sendall(b"k")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--planes", type=int, default=200)
    parser.add_argument("--child", nargs=5)
    options = parser.parse_args()
    if options.child:
        kind, port, side, planes, name = options.child
        child(kind, int(port), int(side), int(planes), name)
        return
    started = stamp()
    rows = [
        measure(kind, side, options.planes)
        for side in SIDES
        for kind in ("tcp", "shared")
    ]
    save("transport", {"transports": rows}, started)
    head = ["plane", "over", "median ms", "p99 ms", "GB/s", "CPU-s/GB"]
    cells = [
        (
            r["side"],
            r["kind"],
            f"{r['seconds']['median'] * 1e3:.2f}",
            f"{r['p99_s'] * 1e3:.2f}",
            f"{r['gb_per_s']:.2f}",
            f"{r['cpu_s_per_gb']:.2f}",
        )
        for r in rows
    ]
    print(table(head, cells))


if __name__ == "__main__":
    main()
