"""One formula, whatever way it is computed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurodeploy_runtime import Normalisation
from neurodeploy_runtime._normalise import Histogram


@given(st.sampled_from(["uint8", "uint16", "int16"]), st.floats(0.5, 70000))
def test_leaving_out_a_background_of_zero_keeps_every_bit(
    dtype: str, noise: float
) -> None:
    info = np.iinfo(dtype)
    voxels = np.linspace(info.min, info.max, 4099).astype(dtype)
    plain = (voxels - np.float32(0)) * np.float32(1 / noise)
    assert (Normalisation("unit", 0.0, noise).apply(voxels) == plain).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_a_table_is_made_only_where_it_saves_a_logarithm(dtype: str) -> None:
    every = np.dtype(dtype)
    assert Normalisation("unit", 0.0, 255.0).table(every) is None
    assert Normalisation("background-asinh", 0.0, 255.0).table(every) is not None


def darkening(shape: tuple[int, int, int] = (24, 40, 50)) -> np.ndarray:
    """Noise of 5 around a background that falls from 800 to 100 along z."""
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 5, shape)
    return (np.linspace(800, 100, shape[0])[:, None, None] + noise).astype(np.uint16)


def test_a_volume_of_floats_is_normalised_as_one_of_integers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Histogram, "max_kept", 4000)
    voxels = darkening()
    floats, integers = Histogram("float32"), Histogram("uint16")
    for plane in voxels:
        integers.add(plane)
        floats.add(plane.astype(np.float32))
    wanted, got = integers.freeze("background-asinh"), floats.freeze("background-asinh")
    assert got.background == pytest.approx(wanted.background, rel=0.03)
    assert got.noise == pytest.approx(wanted.noise, rel=0.03)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.integers(1, 500))
def test_the_values_that_are_kept_are_spread_evenly(
    sizes: list[int], most: int
) -> None:
    histogram = Histogram("float32")
    histogram.max_kept = most
    everything = np.arange(sum(sizes), dtype=np.float32)
    for part in np.split(everything, np.cumsum(sizes)[:-1]):
        histogram.add(part)
    kept, _ = histogram._values()
    stride = 1
    while len(everything[::stride]) > most:
        stride *= 3
    assert np.array_equal(kept, everything[::stride])
