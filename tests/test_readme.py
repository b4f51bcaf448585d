"""Every command of the README runs, at toy size, as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

README = Path(__file__).parents[1] / "README.md"
BIN = Path(sys.executable).parent

#: Makes a command small; everything else of it stays.
SMALLER = {
    "--steps 2000": "--steps 2",
    "--shape 96,512,512": "--shape 24,72,80",
    "--memory 4GB": "--memory 4GB --threads 1",
    "neurodeploy rig-check": "neurodeploy rig-check --seconds 1",
    "neurodeploy benchmark": "neurodeploy benchmark --seconds 0.3 --repeat 1",
}


def commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", README.read_text(), re.S)
    return [line for block in blocks for line in block.splitlines() if line]


def is_main(command: str) -> bool:
    return command.startswith("python3 -m venv")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it: a volume, and annotated images."""
    folder = tmp_path_factory.mktemp("readme")
    env = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}

    def sample(name: str, *more: str) -> None:
        subprocess.run(
            [BIN / "neurodeploy", "sample", name, *more],
            cwd=folder,
            env=env,
            check=True,
            capture_output=True,
        )

    sample("big.tif", "--shape", "64,200,200", "--seed", "1")
    (folder / "my_images").mkdir()
    for name, seed in (("one", "2"), ("two", "3")):
        sample(
            *(f"my_images/{name}.tif", "--shape", "40,96,96", "--seed", seed),
            *("--truth", f"my_images/{name}_mask.tif"),
        )
    return folder


def test_the_readme_has_the_two_commands() -> None:
    main = [command for command in commands() if is_main(command)]
    assert len(main) == 2
    assert main[0].endswith("neurodeploy segment sample.tif")
    assert main[1].endswith(".venv/bin/pytest")


def test_every_command_runs_in_order(desk: Path) -> None:
    env = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    ran = 0
    for command in commands():
        if is_main(command):
            # Its environment and install are what CI itself begins with.
            command = command.partition("install . && ")[2].replace(".venv/bin/", "")
            if not command:
                continue
        for text, small in SMALLER.items():
            command = command.replace(text, small)
        done = subprocess.run(
            command, shell=True, cwd=desk, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran >= 12
    truth = desk / "sample.seg.tif"
    assert tifffile.imread(truth).shape == (24, 72, 80)
    assert (desk / "sample.seg.png").exists()


def test_the_python_of_the_readme_runs(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)  # the README is ours
    mask = names["mask"]
    assert isinstance(mask, np.ndarray)
    assert set(np.unique(mask)) <= {0, 255}
    masks = names["masks"]
    assert isinstance(masks, list)
    assert [plane.shape for plane in masks] == [(64, 64)] * 17
