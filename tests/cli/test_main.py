"""The frame of the command line."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from neurodeploy.cli import _info
from neurodeploy.cli._main import VERBS, cli


def test_help_names_every_verb_and_imports_none() -> None:
    code = (
        "import sys\n"
        "from neurodeploy.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'torch', 'onnxruntime', 'rich', 'tifffile', 'scipy'}\n"
        "print(heavy & set(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "set()"
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_there_and_explains_itself(verb: str) -> None:
    import click

    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{verb} {parameter.opts} has no help"


@pytest.mark.parametrize(("number", "code"), [(errno.EACCES, 2), (errno.EIO, 1)])
def test_what_the_system_refuses_is_named(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    def refused(path: str | None) -> None:
        raise OSError(number, os.strerror(number), "bundle/model.json")

    monkeypatch.setattr(_info, "describe_bundle", refused)
    ended = run("info")
    assert ended.code == code
    assert ended.err == (
        f"neurodeploy: bundle/model.json cannot be used: {os.strerror(number)}; see "
        "to it and to who may use it, or name another\n"
    )


def test_ctrl_c_while_it_loads_is_no_traceback() -> None:
    code = (
        "import sys\n"
        "class CtrlC:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, CtrlC())\n"
        "from neurodeploy.__main__ import run\n"
        "run()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stderr == "neurodeploy: stopped\n"
    assert done.returncode == 130


def test_ctrl_c_while_it_ends_is_no_traceback() -> None:
    code = (
        "import atexit, sys, time\n"
        "def slow():\n"
        "    print('ending', flush=True)\n"
        "    time.sleep(60)\n"
        "atexit.register(slow)\n"
        "sys.argv = ['neurodeploy', '--help']\n"
        "from neurodeploy.__main__ import run\n"
        "run()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "ending\n":
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert errors == ""
    assert process.returncode == -signal.SIGINT
