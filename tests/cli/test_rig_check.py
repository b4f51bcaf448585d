"""`neurodeploy rig-check` and `neurodeploy serve`, as a user meets them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from neurodeploy_runtime import Normalisation, Segmenter, SegmentSettings
from neurodeploy_runtime.serving import Hello, RigClient


@pytest.fixture
def bundle(make_identity_bundle):
    return make_identity_bundle(tile=(8, 16, 16))


def test_it_says_what_is_sustained(run, bundle):
    asked = ["--plane", "40x48", "--rate", "2", "--seconds", "0.3", "--device", "cpu"]
    asked += ["--engine", "onnxruntime"]
    code, out, _ = run("rig-check", bundle.path, *asked)
    assert code == 0
    words = ("verdict", "sustained", "ms a tile", "delay", "3 to 8 planes", "push")
    for word in words:
        assert word in out
    code, out, _ = run("rig-check", bundle.path, *asked, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["plane_shape"] == [40, 48]
    assert report["sustains"] is True
    assert report["engine"]["engine"] == "onnxruntime"


def test_buffers_that_may_not_be_as_large_are_refused_as_a_stream_would(run, bundle):
    asked = ("--plane", "400x400", "--rate", "2", "--device", "cpu", "--seconds", "0.1")
    code, out, err = run("rig-check", bundle.path, *asked, "--memory", "1MB")
    assert (code, out) == (2, "")
    assert "and may take 0.00" in err


@pytest.mark.parametrize("plane", ["2048", "0x3", "ax4"])
def test_a_plane_that_is_none_is_named(run, bundle, plane):
    asked = ("rig-check", bundle.path, "--plane", plane, "--rate", "2")
    code, _, err = run(*asked)
    assert code == 2
    assert "write 2048x2048" in err


def test_other_machines_are_not_let_in_unasked(run, bundle):
    code, _, err = run("serve", bundle.path, "--host", "0.0.0.0")
    assert code == 2
    assert "--allow-remote" in err


def test_a_server_serves_until_it_is_stopped(bundle):
    command = [sys.executable, "-m", "neurodeploy", "serve", bundle.path]
    command += ["--port", "0", "--device", "cpu", "--view-port", "0"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            line = process.stdout.readline()
            port = int(re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)\n", line)[1])
            assert process.stdout.readline().startswith("see http://127.0.0.1:")
            stack = np.random.default_rng(0).integers(0, 255, (9, 20, 24), np.uint8)
            with RigClient(Hello(20, 24, "uint8", noise=255.0), port) as client:
                for plane in stack:
                    client.push(plane)
                client.finish()
                masks = np.stack([p.voxels for p in client.planes()])
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    made = SegmentSettings(normalisation=Normalisation("unit", 0.0, 255.0))
    with Segmenter(bundle, made) as segmenter:
        np.testing.assert_array_equal(masks, segmenter.segment_array(stack))
