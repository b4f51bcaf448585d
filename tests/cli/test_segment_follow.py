"""`neurodeploy segment --follow`, as a user meets it."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import tifffile

from neurodeploy.cli import main


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return end.value.code, capsys.readouterr().err


@pytest.fixture
def bundle(make_identity_bundle):
    return make_identity_bundle(tile=(8, 16, 16), normalisation="background-asinh")


def test_a_folder_is_followed_and_equals_what_segment_makes(bundle, tmp_path, capsys):
    rng = np.random.default_rng(0)
    stack = rng.integers(90, 120, (16, 20, 24)).astype(np.uint16)
    folder = tmp_path / "planes"
    folder.mkdir()

    def write():
        for z, plane in enumerate(stack):
            tifffile.imwrite(folder / f"z{z:03}.tif", plane)
            time.sleep(0.01)

    writer = threading.Thread(target=write)
    writer.start()
    common = ["-m", bundle.path, "--engine", "onnxruntime", "--device", "cpu"]
    code, err = run(
        capsys, "segment", folder, *common, "--follow", "--follow-planes", 16
    )
    writer.join()
    assert code == 0, err
    assert "16 × 20 × 24 voxels" in err
    # Both learn from all 16 planes.
    whole = tmp_path / "whole.tif"
    assert run(capsys, "segment", folder, *common, "-o", whole)[0] == 0
    followed = tifffile.imread(tmp_path / "planes.seg.tif")
    np.testing.assert_array_equal(followed, tifffile.imread(whole))
    assert 0 < np.count_nonzero(followed) < followed.size
    # What was followed can be run again, as what was segmented can.
    made = ["reproduce", tmp_path / "planes.seg.tif", "-m", bundle.path]
    code, err = run(capsys, *made)
    assert code == 0, err


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (["--roi", "0:1,0:1,0:1"], "--roi needs a finished volume"),
        (["--worker", "1/2"], "--worker needs a finished volume"),
        (["--skip-background"], "--skip-background needs a finished volume"),
        (["--output-kind", "both"], "choose mask or probability"),
    ],
)
def test_what_needs_the_whole_volume_is_refused(
    bundle, tmp_path, capsys, option, named
):
    asked = ["segment", tmp_path, "-m", bundle.path, "--follow", *option]
    code, err = run(capsys, *asked)
    assert code == 2
    assert named in err
