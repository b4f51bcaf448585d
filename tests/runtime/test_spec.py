"""What a model.json says is believed only where it can be."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundles import identity_spec, write_identity_bundle

from neurodeploy_runtime import BundleError, ModelSpec

GOOD: dict[str, Any] = {
    "name": "a",
    "mode": "volume",
    "tile": [8, 16, 16],
    "window": [8, 16, 16],
    "overlap": [0.25, 0.25, 0],
    "threshold": 0.5,
    "schema": 1,
}


def test_what_an_export_writes_is_read() -> None:
    for more in ({}, {"flop_per_tile": 3, "max_batch": 4}, {"flop_per_tile": None}):
        assert ModelSpec.from_json({**GOOD, **more}, "here").overlap == (0.25, 0.25, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("overlap", [10**400, 0, 0]),
        ("voxel_size_um", [float("inf"), 1, 1]),
        ("tile", [8.0, 16, 16]),
        ("tile", [True, 16, 16]),
        ("threshold", 10**400),
        ("threshold", True),
        ("threshold", None),
        ("flop_per_tile", "many"),
        ("flop_per_tile", float("nan")),
        ("flop_per_tile", -1),
        ("max_batch", 0),
        ("max_batch", True),
        ("max_batch", 1.0),
        ("max_batch", None),
    ],
)
def test_a_field_that_cannot_be_is_named(name: str, value: object) -> None:
    with pytest.raises(BundleError, match=name):
        ModelSpec.from_json({**GOOD, name: value}, "here")


def test_whole_numbers_are_sealed_as_they_are_read(tmp_path: Path) -> None:
    spec = replace(identity_spec(overlap=(0, 0, 0)), voxel_size_um=(2, 1, 1))
    assert write_identity_bundle(tmp_path / "bundle", spec).spec == spec
