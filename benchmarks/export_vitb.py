"""Export of a ViT-B/16 of random weights: FP32, FP16, a TensorRT engine, and memory.

    python benchmarks/export_vitb.py [--size Ti|S|B|L] [--tile 96]

Prints, and writes to results/export_vit<size>.json: the parity figures of each step,
seconds and peak memory of each phase over what the process held before there was a
network, as multiples of the weights. It fails where the peak of any phase is
above three times the weights, where the gate refuses, or where the engine's arithmetic
is not in half. The weights are random, so the image is added to the logits: labels then
mean something, and counting those that change does too.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import save, stamp
from numpy.typing import NDArray
from torch import nn

from neurodeploy.networks import Network, NetworkConfig, cost
from neurodeploy.simulate import SimulationSettings, simulate_volume
from neurodeploy_export import (
    BuildSettings,
    ExportSettings,
    export_bundle,
    tiles_from_volume,
    verify_bundle,
)
from neurodeploy_runtime import ArraySource, ModelSpec

#: Width, depth, heads.
SIZES = {
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
}
LIMIT = 3.0


class WithImage(nn.Module):
    """A network of random weights whose answers still follow the image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.network(x) + 2 * (x - 2.5))


class Phases:
    """Seconds and peak memory of each phase that the export announces."""

    def __init__(self, held: int, weights: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self._held, self._weights = held, weights
        self._name, self._began = "", time.perf_counter()

    def __call__(self, text: str, share: float | None) -> None:
        name = text.partition(":")[0]
        if name == self._name:
            return
        self.end()
        self._name, self._began = name, time.perf_counter()
        print(f"  {name} ...", file=sys.stderr, flush=True)
        # From here on the kernel's high-water mark is this phase's.
        Path("/proc/self/clear_refs").write_text("5")

    def end(self) -> None:
        if self._name:
            peak = memory("VmHWM") - self._held
            self.rows.append(
                {
                    "phase": self._name,
                    "seconds": round(time.perf_counter() - self._began, 2),
                    "peak_bytes": peak,
                    "times_weights": round(peak / self._weights, 2),
                }
            )
        self._name = ""


def memory(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the kernel gives no {name}")


def make_tiles(spec: ModelSpec, count: int) -> NDArray[np.float32]:
    z, y, x = spec.tile
    volume = simulate_volume(SimulationSettings(shape=(z + 8, y + 32, x + 32)), seed=4)
    return tiles_from_volume(ArraySource(volume.image), spec, count=count)


def make_spec(config: NetworkConfig, name: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        mode=config.mode,
        tile=config.tile,
        window=config.window,
        overlap=(0.25, 0.25, 0.25),
        threshold=0.5,
        max_batch=8,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="B")
    parser.add_argument("--tile", type=int, default=96)
    parser.add_argument("--tiles", type=int, default=2)
    asked = parser.parse_args()
    started = stamp()
    settings = ExportSettings(precision="fp16")
    with tempfile.TemporaryDirectory() as folder:
        # Libraries load their code at the first export; that is not the network's.
        small = NetworkConfig(tile=(8, 32, 32), width=24, depth=1, heads=2, taps=(1,))
        spec = make_spec(small, "small")
        export_bundle(
            WithImage(Network(small)).eval(),
            spec,
            make_tiles(spec, 1),
            settings,
            Path(folder) / "small",
        )
        width, depth, heads = SIZES[asked.size]
        config = NetworkConfig(
            tile=(asked.tile,) * 3,
            patch=(16, 16, 16),
            width=width,
            depth=depth,
            heads=heads,
            taps=tuple(depth * i // 4 for i in range(1, 5)),
        )
        spec = make_spec(config, f"ViT-{asked.size}/16")
        tiles = make_tiles(spec, asked.tiles)
        gc.collect()
        held = memory("VmRSS")
        torch.manual_seed(0)
        network = WithImage(Network(config)).eval()
        weights = sum(p.numel() * 4 for p in network.parameters())
        phases = Phases(held, weights)
        bundle = export_bundle(
            network,
            spec,
            tiles,
            settings,
            Path(folder) / "vit",
            engine=BuildSettings(library="tensorrt_rtx"),
            progress=phases,
        )
        phases.end()
        left = sorted(p.name for p in Path(folder).rglob("*") if p.is_file())
        verdicts = list(verify_bundle(bundle.path, "cpu"))
        found = {
            "network": {
                "parameters": weights // 4,
                "weights_bytes": weights,
                "flop_per_tile": cost(Network(config), config).flop_per_tile,
                "tile": config.tile,
            },
            "parity": bundle.spec.parity,
            "phases": phases.rows,
            "files": left,
            "verify": [
                {
                    "engine": f"{v.engine} {v.precision}",
                    "agrees": v.agrees,
                    "parity": v.parity.to_json() if v.parity else None,
                    "reason": v.reason,
                }
                for v in verdicts
            ],
        }
    path = save(f"export_vit{asked.size.lower()}", found, started)
    for row in phases.rows:
        print(
            f"{row['phase']:42s} {row['seconds']:8.1f} s  "
            f"{row['times_weights']:5.2f} x weights"
        )
    for name, step in bundle.spec.parity["steps"].items():
        print(name, step)
    print(bundle.spec.parity["engine"])
    print(path)
    highest = max(row["times_weights"] for row in phases.rows)
    engine = bundle.spec.parity["engine"]
    agree = all(v.agrees is not False for v in verdicts)
    if highest > LIMIT or engine["network_half_share"] < 0.9 or not agree:
        print(f"FAILED: {highest} x weights, agree: {agree}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
