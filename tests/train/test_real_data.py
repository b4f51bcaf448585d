"""Real cubes through every command, at toy size: each takes what the last one left."""

import json
from pathlib import Path

import numpy as np
import tifffile

from neurodeploy.training import read_log

#: Enough to go downhill; nothing of use is learned.
TOY = """
steps = 8
batch = 2
warmup = 2
learning_rate = 5e-3
ema = 0.5
log_every = 1
device = "cpu"
precision = "fp32"

[network]
tile = [16, 32, 32]
width = 24
depth = 1
taps = [1]
half_channels = 4
quarter_channels = 8
"""


def test_train_evaluate_export_and_segment_are_one_line(
    run, shared_data: Path, tmp_path: Path
) -> None:
    data, out, bundle = tmp_path / "cubes", tmp_path / "run", tmp_path / "toy.bundle"
    for kind in ("volume", "label"):
        (data / f"{kind}s").mkdir(parents=True)
        for number in (0, 3):
            name = f"{kind}s/{kind}-{number}.tiff"
            cube = tifffile.imread(shared_data / "trailmap" / "train" / name)
            tifffile.imwrite(data / name, cube[:, :40, :40])
    (tmp_path / "toy.toml").write_text(TOY)

    ended = run("train", tmp_path / "toy.toml", "--data", data, "--out", out)
    assert ended.code == 0, ended.err
    assert "2 read as labelled slices" in ended.err
    losses = [row.loss for row in read_log(out / "log.csv")]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < np.mean(losses[:3])

    ended = run("evaluate", out / "best", "--data", data, "--json")
    assert ended.code == 0, ended.err
    measured = json.loads(ended.out)
    parts = sorted(image["part"] for image in measured["images"])
    assert parts == ["training", "validation"]
    assert measured["pooled"]["voxels"]["voxels"] > 5_000

    image = data / "volumes" / "volume-0.tiff"
    ended = run("export", out / "best", "-o", bundle, "--tiles", image)
    assert ended.code == 0, ended.err
    result = tmp_path / "result.tif"
    words = ("-m", bundle, "-o", result, "--output-kind", "probability")
    ended = run("segment", image, *words, "--engine", "onnxruntime", "--quiet")
    assert ended.code == 0, ended.err
    probability = tifffile.imread(result)
    assert probability.shape == (64, 40, 40)
    assert probability.min() < probability.max()
    # The bundle knows, as its checkpoint does, what it was trained on.
    words = ("--data", data, "--json", "--engine", "onnxruntime")
    again = json.loads(run("evaluate", bundle, *words).out)
    assert [i["part"] for i in again["images"]] == [
        i["part"] for i in measured["images"]
    ]
