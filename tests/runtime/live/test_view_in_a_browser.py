"""The live page in a real browser: what its script makes of what is served."""

from __future__ import annotations

import shutil
import subprocess

import imagecodecs
import numpy as np
import pytest

from neurodeploy_runtime import Normalisation, NumpyEngine
from neurodeploy_runtime.live import LiveSegmenter, LiveSettings, LiveView

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser here: none of {', '.join(BROWSERS)}"
)


def browse(address: str, profile: object, *what: str) -> str:
    """Load a page, let its script run for a while, and do one thing with it."""
    command = [
        *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu"),
        *(f"--user-data-dir={profile}", "--window-size=900,500"),
        *("--virtual-time-budget=3000", *what, address),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def test_a_browser_shows_what_arrives(make_identity_bundle, tmp_path):
    bundle = make_identity_bundle(tile=(8, 16, 16))
    settings = LiveSettings(
        normalisation=Normalisation("unit", 0.0, 255.0), outlet_planes=100
    )
    stack = np.zeros((9, 40, 60), np.uint8)
    stack[:, 10:20, 30:40] = 255
    with (
        LiveSegmenter(
            bundle, (40, 60), "uint8", settings, engines=[NumpyEngine(bundle)]
        ) as live,
        LiveView(live) as view,
    ):
        page = browse(view.address, tmp_path / "profile", "--dump-dom")
        assert '<p id="status">streaming: 0 planes in, 0 finished' in page
        live.push(stack)
        live.finish()
        live.flush(30)
        page = browse(view.address, tmp_path / "profile", "--dump-dom")
        assert '<p id="status">done: 9 planes in, 9 finished, 0 queued' in page
        assert f'<img id="picture" alt="" src="blob:{view.address}' in page
        shot = tmp_path / "shot.png"
        browse(view.address, tmp_path / "profile", f"--screenshot={shot}")
    pixels = imagecodecs.png_decode(shot.read_bytes())[..., :3].astype(int)
    orange = pixels[..., 0] - pixels[..., 2] > 100
    # 10 × 10 segmented voxels in two of the panels, which are 60 voxels wide.
    assert orange.sum() == pytest.approx(200, rel=0.2)
    columns = np.flatnonzero(orange.any(0))
    assert np.ptp(columns) == pytest.approx(2 * 64 + 10, abs=3)
