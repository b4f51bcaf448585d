"""One formula, whatever way it is computed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurodeploy_runtime import Normalisation


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
