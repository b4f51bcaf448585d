"""What a network of another cost takes: in torch, and in the engines that a CPU has.

One slow path of one library says little of a network: each is timed in three, with
random weights, and with nothing else running.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from _bundles import network_bundle
from _unetr import Probability
from torch import nn

from neurodeploy_runtime import EngineSettings, open_engine
from neurodeploy_runtime.measure import tile_seconds

Shape = tuple[int, int, int]
#: Column of the table, and the engine.
ENGINES: dict[str, Literal["onnxruntime", "openvino"]] = {
    "ONNX Runtime fp32": "onnxruntime",
    "OpenVINO fp32": "openvino",
}
TORCH = "torch fp32"
_ROUNDS = 8


def seconds_per_voxel(
    networks: Mapping[str, tuple[nn.Module, Shape]],
) -> dict[str, dict[str, float]]:
    """Of each network in each library; networks take turns, libraries do not.

    What disturbs one network disturbs the others: only their ratios mean something.
    """
    found = {name: {TORCH: s} for name, s in _in_torch(networks).items()}
    with tempfile.TemporaryDirectory() as folder:
        bundles = {
            name: network_bundle(
                Path(folder) / str(number),
                Probability(network).eval(),
                name=name,
                tile=tile,
                overlap=0.25,
                flop_per_tile=1.0,
            )
            for number, (name, (network, tile)) in enumerate(networks.items())
        }
        for column, engine in ENGINES.items():
            asked = EngineSettings(engine, "cpu", "fp32")
            with ExitStack() as stack:
                engines = {
                    name: stack.enter_context(open_engine(bundle, asked))
                    for name, bundle in bundles.items()
                }
                times: dict[str, list[float]] = {name: [] for name in engines}
                for _ in range(_ROUNDS):
                    for name, opened in engines.items():
                        times[name] += tile_seconds(opened, 3)
            for name, (_, tile) in networks.items():
                found[name][column] = float(np.median(times[name])) / prod(tile)
    return found


def _in_torch(networks: Mapping[str, tuple[nn.Module, Shape]]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        # The first round is not counted.
        for turn in range(1 + 3 * _ROUNDS):
            for name, (network, tile) in networks.items():
                voxels = torch.rand(1, 1, *tile)
                start = time.perf_counter()
                network.eval()(voxels)
                if turn:
                    times[name].append((time.perf_counter() - start) / prod(tile))
    return {name: float(np.median(t)) for name, t in times.items()}
