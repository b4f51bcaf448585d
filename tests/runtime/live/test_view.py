"""A page that shows what arrives, and holds up nobody."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import imagecodecs
import numpy as np
import pytest

from neurodeploy_runtime import Normalisation, NumpyEngine, SettingsError
from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime._projections import Projections
from neurodeploy_runtime.live import LiveLayers, LiveSegmenter, LiveSettings, LiveView
from neurodeploy_runtime.live._projection import GrowingProjections


@pytest.fixture
def live(make_identity_bundle):
    bundle = make_identity_bundle(tile=(8, 16, 16))
    settings = LiveSettings(
        normalisation=Normalisation("unit", 0.0, 255.0), outlet_planes=100
    )
    opened = LiveSegmenter(
        bundle, (40, 60), "uint8", settings, engines=[NumpyEngine(bundle)]
    )
    with opened:
        yield opened


def fetch(view, path, **headers):
    request = urllib.request.Request(view.address + path, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.headers["Content-Type"], answer.read()


def test_the_page_shows_image_and_segmentation_as_they_arrive(live):
    with LiveView(live) as view:
        kind, page = fetch(view, "")
        assert kind.startswith("text/html")
        assert b"picture.png" in page
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(view, "picture.png")
        stack = np.zeros((9, 40, 60), np.uint8)
        stack[:, 10:20, 30:40] = 255
        live.push(stack)
        live.finish()
        live.flush(30)
        view._drawn_at = -1e9
        kind, png = fetch(view, "picture.png?1")
        assert kind == "image/png"
        picture = imagecodecs.png_decode(png)
        assert picture.shape == (40, 4 * 60 + 3 * 4, 3)
        # The latest plane has left the ring; what is segmented is orange on both.
        for left in (64, 3 * 64):
            red, _, blue = picture[15, left + 35].astype(int)
            assert red - blue > 100
            assert np.ptp(picture[5, left + 5].astype(int)) == 0
        status = json.loads(fetch(view, "status.json")[1])
        assert (status["state"], status["done"]) == ("done", 9)


def test_the_maximum_holds_what_was_finished_before_anybody_looked(live):
    stack = np.zeros((9, 40, 60), np.uint8)
    stack[:, 10:20, 30:40] = 255
    with LiveView(live) as view:
        live.push(stack)
        live.finish()
        live.flush(30)
        picture = imagecodecs.png_decode(fetch(view, "picture.png")[1])
    red, _, blue = picture[15, 3 * 64 + 35].astype(int)
    assert red - blue > 100


def test_another_stack_has_maxima_of_its_own(live):
    """Of all its planes, also where nobody looked between the two."""

    def stack_with_a_square_at(x: int) -> bytes:
        stack = np.zeros((9, 40, 60), np.uint8)
        stack[:, 10:20, x : x + 10] = 255
        live.push(stack[:4])
        view._drawn_at = -1e9
        before = fetch(view, "picture.png")[1] if live.stacks == 1 else b""
        live.push(stack[4:])
        live.finish()
        list(live.planes())
        view._drawn_at = -1e9
        return before + fetch(view, "picture.png")[1]

    with LiveView(live) as view:
        stack_with_a_square_at(30)
        live.again()
        picture = imagecodecs.png_decode(stack_with_a_square_at(5))
    assert live.stacks == 2
    image, over = picture[15, 128:188], picture[15, 192:]
    for panel in (image, over):
        # Nothing of the stack before, in image and in segmentation.
        assert np.ptp(panel[35].astype(int)) == 0
        assert panel[35].max() < 100
    red, _, blue = over[8].astype(int)
    assert red - blue > 100


def test_another_site_cannot_read_the_page_through_a_name_of_its_own(live):
    with (
        LiveView(live) as view,
        pytest.raises(urllib.error.HTTPError, match="403"),
    ):
        fetch(view, "", Host="evil.example:80")


def test_a_view_of_nothing_says_so_and_a_taken_port_is_named():
    with LiveView(lambda: None) as view:
        assert json.loads(fetch(view, "status.json")[1]) == {"state": "none"}
        with pytest.raises(SettingsError, match=f"port {view.port} cannot be used"):
            LiveView(lambda: None, port=view.port)


def test_growing_projections_are_those_of_the_finished_stack():
    rng = np.random.default_rng(0)
    stack = rng.integers(0, 65535, (10, 33, 47)).astype(np.uint16)
    growing = GrowingProjections((33, 47), stack.dtype, longest=16)
    for plane in stack:
        growing.add(plane)
    made = growing.projections((33, 47))
    f = growing.factor
    assert f == 3
    for name, axis in (("along_z", 0), ("along_y", 1), ("along_x", 2)):
        flat = stack.max(axis=axis)
        h, w = (-(-n // f) for n in flat.shape)
        expected = np.array(
            [
                [flat[r * f : r * f + f, c * f : c * f + f].max() for c in range(w)]
                for r in range(h)
            ]
        )
        np.testing.assert_array_equal(getattr(made, name), expected)
    whole = Projections(Box.whole(stack.shape), stack.dtype)
    assert set(whole.arrays("")) == set(made.arrays(""))


def test_layers_show_the_latest_plane_and_segmentation(live):
    class Layer:
        def __init__(self, data, name, scale):
            self.data, self.name, self.scale = data, name, scale

    class Viewer:
        """What a napari.Viewer is asked for here."""

        add_image = add_labels = staticmethod(Layer)

    layers = LiveLayers(Viewer(), live)
    assert layers.image.data.shape == layers.labels.data.shape == (40, 60)
    layers.update()
    assert not layers.labels.data.any()
    stack = np.zeros((9, 40, 60), np.uint8)
    stack[8, 5] = 255
    live.push(stack)
    layers.update()
    np.testing.assert_array_equal(layers.image.data, stack[8])
    live.finish()
    live.flush(30)
    layers.update()
    np.testing.assert_array_equal(layers.labels.data, stack[8] // 255)


def test_what_is_looked_at_does_not_grow_with_the_stack(live):
    live.preview_projection()
    kept = live._projection
    for _ in range(20):
        live.push(np.zeros((40, 60), np.uint8), timeout_s=30)
    live.finish()
    live.flush(30)
    assert kept.planes == 20
    assert kept._along_y == kept._along_x == []


def test_a_page_lets_go_of_what_is_not_segmented_any_more(live):
    shown = [live]
    with LiveView(lambda: shown[0] if shown else None) as view:
        assert view._shown is live
        shown.clear()
        assert view.picture() == b""
        assert view._shown is None


def test_layers_go_on_with_the_next_stack(live):
    """Whose indices begin with 0 again."""

    class Layer:
        def __init__(self, data, name, scale):
            self.data = data

    class Viewer:
        add_image = add_labels = staticmethod(Layer)

    layers = LiveLayers(Viewer(), live)
    for value, depth in ((255, 20), (0, 9)):
        live.push(np.full((depth, 40, 60), value, np.uint8))
        live.finish()
        live.flush(30)
        assert len(list(live.planes())) == depth
        layers.update()
        assert (layers.labels.data == (value > 0)).all()
        live.again()


def test_a_page_that_is_closed_while_it_is_sent_is_no_news(live, capfd, monkeypatch):
    with LiveView(live) as view:

        def gone(request):
            raise ConnectionResetError(104, "Connection reset by peer")

        monkeypatch.setattr(view, "_answer", gone)
        with pytest.raises(OSError, match="closed connection"):
            fetch(view, "")
        monkeypatch.setattr(view, "_answer", lambda request: 1 / 0)
        with pytest.raises(OSError, match="closed connection"):
            fetch(view, "")
    said = capfd.readouterr().err
    assert "Connection reset by peer" not in said
    assert "ZeroDivisionError" in said


def test_a_port_that_need_not_be_said_is_no_other_site(live):
    with LiveView(live) as view:
        assert fetch(view, "status.json", Host="127.0.0.1")[0] == "application/json"
