"""Several devices share out each batch, through Lightning Fabric."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neurodeploy.training import load_checkpoint, read_log

SCRIPT = """
import json, sys
import torch
sys.path.insert(0, sys.argv[1])
from conftest import bar_volume
from neurodeploy.training import TrainSettings, train
torch.set_num_threads(1)
settings = TrainSettings.from_plain(json.loads(sys.argv[2]))
result = train(settings, [bar_volume(0), bar_volume(1)])
print(f"first {result.first_rank} step {result.step}", flush=True)
"""


@pytest.mark.slow
def test_two_devices_train_one_network(tiny_settings, tmp_path):
    pytest.importorskip("lightning_fabric")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    plain = {**tiny_settings.to_json(), "devices": 2, "steps": 3}
    done = subprocess.run(
        [sys.executable, script, str(Path(__file__).parent), json.dumps(plain)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "first True step 3" in done.stdout
    assert "first False step 3" in done.stdout
    out = Path(tiny_settings.out)
    assert [row.step for row in read_log(out / "log.csv")] == [1, 2, 3]
    network, _ = load_checkpoint(out / "last")
    assert all(torch.isfinite(p).all() for p in network.parameters())
