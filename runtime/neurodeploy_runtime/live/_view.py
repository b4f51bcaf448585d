"""A page on this machine that shows image and segmentation as they arrive."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import SettingsError
from neurodeploy_runtime._picture import OVERLAY, _stretch, encode_png
from neurodeploy_runtime.live._segmenter import LiveSegmenter

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler

#: The longest side of a panel, pixels.
LONGEST = 512
#: A picture is drawn at most this often, however many look.
EVERY_S = 0.2

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>neurodeploy live</title>
<style>
body { font: 15px system-ui, sans-serif; margin: 1.5rem; background: #111; color: #ddd }
img { max-width: 100%; image-rendering: pixelated }
figure { margin: 0 } figcaption, #status { color: #aaa; margin: .5rem 0 }
</style>
<h1>neurodeploy live</h1>
<p id="status">nothing has arrived yet</p>
<figure><img id="picture" alt="">
<figcaption>From the left: the latest plane, the latest finished plane's segmentation,
the maximum of the planes looked at, the maximum of all planes finished since.
</figcaption>
</figure>
<script>
const picture = document.getElementById("picture");
const status = document.getElementById("status");
async function look() {
  try {
    const s = await (await fetch("status.json")).json();
    status.textContent = s.state === "none" ? "nothing is being segmented" :
      `${s.state}: ${s.pushed} planes in, ${s.done} finished, ${s.queued} queued, ` +
      `${s.dropped} dropped, ${s.missing} missing; ` +
      `${s.mvoxel_per_s.toFixed(2)} Mvoxel/s, ` +
      `delay ${s.latency_p50_s === null ? "–" : s.latency_p50_s.toFixed(2) + " s"} ` +
      `(${s.lag_planes} planes)`;
    const image = await fetch("picture.png");
    if (image.ok) {
      const old = picture.src;
      picture.src = URL.createObjectURL(await image.blob());
      if (old) URL.revokeObjectURL(old);
    }
  } catch (error) { status.textContent = "the server has gone"; }
  setTimeout(look, 400);
}
look();
</script></html>
"""


class LiveView:
    """Serves a page with pictures of a live segmentation; a context manager.

    It only looks: planes are sampled where they lie, and a slow browser holds up
    nobody. The maximum of the image is that of the planes that were looked at, at most
    five a second; that of the segmentation is of all that are finished from here on.

    Parameters
    ----------
    live
        What to show, or a function that says what now; None: nothing yet.
    port
        0 takes a free one. It listens on this machine only.
    """

    def __init__(
        self,
        live: LiveSegmenter | Callable[[], LiveSegmenter | None],
        port: int = 0,
    ) -> None:
        # Here, because it takes as long to import as the rest of this package.
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

        given = live
        self._live: Callable[[], LiveSegmenter | None] = (
            (lambda: given) if isinstance(given, LiveSegmenter) else given
        )
        self._lock = threading.Lock()
        self._drawn = b""
        self._drawn_at = -math.inf
        self._shown: LiveSegmenter | None = None
        self._stack = 0
        self._highest: NDArray[Any] | None = None
        self._image: NDArray[Any] = np.zeros((0, 0), np.uint8)
        view = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                view._answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing: a request every 400 ms is no news."""

        class Server(ThreadingHTTPServer):
            # On Windows this would let a second program take the port, too.
            allow_reuse_address = sys.platform != "win32"

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A page that is closed while it is sent is no news either."""
                if not isinstance(sys.exception(), ConnectionError | TimeoutError):
                    super().handle_error(request, client_address)

        try:
            self._server = Server(("127.0.0.1", port), Handler)
        except OSError as error:
            raise SettingsError(
                f"port {port} cannot be used ({error}): use another, or 0"
            ) from None
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="view", daemon=True
        )
        self._now()
        self._thread.start()

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://127.0.0.1:{self.port}/"

    def picture(self) -> bytes:
        """A PNG of what there is now; empty where there is nothing yet."""
        with self._lock:
            now = time.monotonic()
            if now - self._drawn_at >= EVERY_S:
                self._drawn = self._draw()
                self._drawn_at = now
            return self._drawn

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        # A page of another site must not read it through a name of its own.
        host = (request.headers.get("Host") or "").partition(":")[0]
        if host not in ("127.0.0.1", "localhost"):
            request.send_error(403)
            return
        path = request.path.partition("?")[0]
        if path == "/":
            body, kind = PAGE.encode(), "text/html; charset=utf-8"
        elif path == "/status.json":
            body, kind = json.dumps(self._status()).encode(), "application/json"
        elif path == "/picture.png" and (body := self.picture()):
            kind = "image/png"
        else:
            request.send_error(404)
            return
        request.send_response(200)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Cache-Control", "no-store")
        request.end_headers()
        request.wfile.write(body)

    def _status(self) -> dict[str, Any]:
        live = self._live()
        if live is None:
            return {"state": "none"}
        values = live.status.to_json()
        values["gaps"] = [str(gap) for gap in live.status.gaps[-8:]]
        return {
            name: None if isinstance(v, float) and not math.isfinite(v) else v
            for name, v in values.items()
        }

    def _now(self) -> LiveSegmenter | None:
        """What is being segmented; its maximum is kept from the first call on."""
        live = self._live()
        stack = 0 if live is None else live.stacks
        if live is not self._shown or stack != self._stack:
            if live is not None:
                live.preview_projection(LONGEST)
            self._shown, self._stack, self._highest = live, stack, None
        return live

    def _draw(self) -> bytes:
        live = self._now()
        if live is None:
            return b""
        newest = live.preview_image(LONGEST)
        if newest is not None:
            self._image = newest[1]
            if self._highest is None:
                self._highest = self._image.copy()
            np.maximum(self._highest, self._image, out=self._highest)
        if self._highest is None:
            return b""
        image = self._image
        step = max(1, -(-max(live.plane_shape) // LONGEST))
        latest = live.preview()
        shape = image.shape
        mask = np.zeros(shape, np.uint8)
        if latest is not None:
            mask = latest.voxels[::step, ::step]
        panels = [
            _gray(image),
            _over(image, mask),
            _gray(self._highest),
            _over(self._highest, live.preview_projection(LONGEST)),
        ]
        gap = np.full((shape[0], 4, 3), 17, np.uint8)
        row = [part for panel in panels for part in (panel, gap)][:-1]
        return encode_png(np.concatenate(row, axis=1))


def _gray(image: NDArray[Any]) -> NDArray[np.uint8]:
    grays = np.rint(_stretch(image)).astype(np.uint8)
    return np.repeat(grays[..., None], 3, axis=2)


def _over(image: NDArray[Any], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    share = (mask.astype(np.float32) / 255)[..., None] * np.float32(0.75)
    laid = _gray(image) * (1 - share) + OVERLAY * share
    return np.rint(laid).astype(np.uint8)
