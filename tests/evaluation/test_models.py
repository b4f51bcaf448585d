"""A checkpoint and the bundle that ships are measured through one function."""

from pathlib import Path

import numpy as np
import pytest

from neurodeploy.evaluation import open_model
from neurodeploy_runtime import EngineSettings, InputError, SettingsError


def test_a_checkpoint_gives_probabilities_by_the_runtimes_tiles(
    tmp_path: Path,
) -> None:
    from neurodeploy.networks import Network, NetworkConfig
    from neurodeploy.training import Checkpoint, predict, save_checkpoint

    config = NetworkConfig(
        tile=(8, 16, 16),
        patch=(4, 16, 16),
        width=24,
        depth=1,
        heads=3,
        taps=(1,),
        tap_channels=4,
        half_channels=4,
        quarter_channels=8,
    )
    network = Network(config)
    checkpoint = Checkpoint(config, step=1, threshold=0.4)
    save_checkpoint(tmp_path / "made", checkpoint, network.state_dict())
    image = np.random.default_rng(0).integers(90, 110, (10, 40, 50)).astype(np.uint16)
    with open_model(tmp_path / "made", EngineSettings()) as model:
        answer = model.predict(image)
    assert model.threshold == 0.4
    assert answer.shape == image.shape
    np.testing.assert_allclose(answer, predict(network, config, image), atol=1e-6)
    # PyTorch runs it: what only engines know is refused, and so is no device.
    for asked, named in (
        (EngineSettings(precision="fp16"), "only --device can be chosen"),
        (EngineSettings(engine="openvino"), "only --device can be chosen"),
        (EngineSettings(device="foo"), "use auto, cpu or cuda:N"),
    ):
        with (
            pytest.raises(SettingsError, match=named),
            open_model(tmp_path / "made", asked),
        ):
            pass


def test_a_folder_that_is_neither_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="neither a bundle"),
        open_model(tmp_path, EngineSettings()),
    ):
        pass
