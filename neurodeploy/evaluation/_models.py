"""From a bundle or a checkpoint to a function of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy.data._volumes import Part, part_of, read_listed
from neurodeploy.evaluation._evaluate import Predictor
from neurodeploy_runtime import (
    DeviceError,
    EngineSettings,
    InputError,
    Segmenter,
    SegmentSettings,
    SettingsError,
    load_bundle,
)
from neurodeploy_runtime.engines._choose import require_device


@dataclass(frozen=True)
class Model:
    """A network to be measured: its name, its own threshold, and what it says.

    `part_of` tells what it has done with an image: None where it does not know.
    """

    name: str
    threshold: float
    predict: Predictor
    part_of: Callable[[NDArray[Any]], Part | None]


@contextmanager
def open_model(path: Path | None, engine: EngineSettings) -> Iterator[Model]:
    """Open a bundle, a checkpoint, or (None) the bundle that ships.

    Both are driven by the runtime's plan of tiles. A bundle's probabilities come in
    steps of 1/255, as it writes them.

    Raises
    ------
    InputError
        Where the folder is neither a bundle nor a checkpoint.
    """
    if path is None or (path / "model.json").exists():
        bundle = load_bundle(path)
        settings = SegmentSettings(output_kind="probability", engine=engine)
        with Segmenter(bundle, settings) as segmenter:

            def through_the_bundle(image: NDArray[Any]) -> NDArray[np.float32]:
                return np.asarray(segmenter.segment_array(image) / np.float32(255))

            yield Model(
                f"{bundle.spec.name} ({bundle.path})",
                bundle.spec.threshold,
                through_the_bundle,
                _part_of(bundle.spec.training.get("volumes")),
            )
        return
    from neurodeploy.training import is_checkpoint, load_checkpoint, predict

    if not is_checkpoint(path):
        raise InputError(
            f"{path} is neither a bundle (it has no model.json) nor a checkpoint"
        )
    if replace(engine, device="auto") != EngineSettings():
        raise SettingsError(
            f"{path} is a checkpoint, which PyTorch runs in fp32: of the engine only "
            "--device can be chosen; export it to measure another engine"
        )
    require_device(engine.device)
    import torch

    index = int(engine.device.partition(":")[2] or 0)
    if engine.device.startswith("cuda") and index >= torch.cuda.device_count():
        raise DeviceError(
            f"device {engine.device} is not possible here: PyTorch sees no GPU {index}"
        )
    network, checkpoint = load_checkpoint(path)
    if engine.device.startswith("cuda"):
        network = network.to(torch.device(engine.device))

    def through_torch(image: NDArray[Any]) -> NDArray[np.float32]:
        return predict(
            network, checkpoint.network, image, overlap=checkpoint.overlap[1]
        )

    yield Model(
        f"{checkpoint.name} ({path})",
        checkpoint.threshold,
        through_torch,
        _part_of(checkpoint.volumes),
    )


def _part_of(volumes: Any) -> Callable[[NDArray[Any]], Part | None]:
    """What a network that names its volumes has done with an image."""
    if not volumes:
        return lambda image: None
    listed = read_listed(volumes, "the model")
    return lambda image: part_of(image, listed)
