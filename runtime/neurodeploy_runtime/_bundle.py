"""The bundle: a folder that carries a network from export to runtime."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from neurodeploy_runtime._errors import BundleError, OutputError, WriteError
from neurodeploy_runtime._golden import Golden, read_golden
from neurodeploy_runtime._spec import ModelSpec

MODEL_JSON = "model.json"
GOLDEN = "golden.npz"
ONNX: dict[str, str] = {"fp32": "model.onnx", "fp16": "model.fp16.onnx"}

#: What a machine keeps in a bundle's folder, outside of its seal: its TensorRT engines,
#: and which settings are fastest there.
ENGINES, LOCAL_JSON = "engines", "local.json"
MACHINES = (ENGINES, LOCAL_JSON)

#: Larger than any honest model.json; checked before it is read.
MAX_JSON_BYTES = 4_000_000

#: How a disk says that it has no room.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Precision = Literal["fp32", "fp16"]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every file was found to be what its `model.json` says."""

    path: Path
    spec: ModelSpec
    #: SHA-256 of every file but model.json itself.
    files: dict[str, str]
    #: SHA-256 over the specification and all hashes: the model's identity.
    digest: str

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions that it has an ONNX graph in."""
        have: list[Precision] = []
        if ONNX["fp32"] in self.files:
            have.append("fp32")
        if ONNX["fp16"] in self.files:
            have.append("fp16")
        return tuple(have)

    def onnx(self, precision: Precision) -> Path:
        """The ONNX graph of that precision; a BundleError where it has none."""
        name = ONNX[precision]
        if name not in self.files:
            raise BundleError(
                f"{self.path} has no {name}: export the checkpoint again with "
                f"--precision {precision}"
            )
        return self.path / name

    def golden(self) -> Golden:
        """The golden tiles; a BundleError where there are none or they are odd."""
        path = self.path / GOLDEN
        if GOLDEN not in self.files:
            raise BundleError(f"{self.path} has no {GOLDEN}: export it again")
        return read_golden(path, self.spec.tile, self.spec.window)


def default_bundle_path() -> Path:
    """Where the bundle lies that ships with this package."""
    return Path(__file__).parent / "bundles" / "default"


def load_bundle(path: str | Path | None = None) -> Bundle:
    """Open a bundle and verify it; without a path, the one that ships.

    Raises
    ------
    BundleError
        A file is missing, altered or truncated, or the bundle is of a newer schema;
        the text says which file and what to do.
    """
    folder = default_bundle_path() if path is None else Path(path)
    if not folder.is_dir():
        raise BundleError(
            f"{folder} is not a bundle: a bundle is a folder with {MODEL_JSON} in it, "
            "as `neurodeploy export` writes it"
        )
    values = _read_json(folder / MODEL_JSON)
    where = str(folder / MODEL_JSON)
    files = values.pop("files", None)
    seal = values.pop("seal", None)
    spec = ModelSpec.from_json(values, where)
    if not isinstance(files, dict) or not all(
        isinstance(k, str) and isinstance(v, str) for k, v in files.items()
    ):
        raise BundleError(f"{where} names no files: export the checkpoint again")
    if seal != _digest(spec, files):
        raise BundleError(
            f"{where} was altered after it was written (its seal does not match): "
            "export the checkpoint again, or fetch the bundle again"
        )
    for name, expected in sorted(files.items()):
        if Path(name).name != name or name in (".", ".."):
            raise BundleError(f"{where} names a file outside the bundle: {name!r}")
        file = folder / name
        if not file.is_file():
            raise BundleError(
                f"{folder} lacks {name}, which its {MODEL_JSON} lists: copy the bundle "
                "again, whole"
            )
        if sha256(file) != expected:
            raise BundleError(
                f"{file} was altered or truncated (its SHA-256 differs from the one "
                f"in {MODEL_JSON}): copy the bundle again, or export it again"
            )
    return Bundle(folder, spec, dict(files), seal)


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(spec: ModelSpec, files: dict[str, str]) -> str:
    text = json.dumps(
        {"spec": json.loads(json.dumps(spec.to_json())), "files": files},
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BundleError(
            f"{path.parent} has no {path.name}: it is not a bundle, or not a whole one"
        )
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise BundleError(f"{path} has {size} bytes: too many for a {path.name}")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"{path} is not JSON ({error}): copy the bundle again"
        ) from None
    if not isinstance(values, dict):
        raise BundleError(f"{path} is not a JSON object: copy the bundle again")
    return values


def _others(path: Path) -> list[str]:
    """What lies in a bundle's folder that neither an export nor a machine put there."""
    if not (path / MODEL_JSON).is_file():
        return []
    try:
        files = _read_json(path / MODEL_JSON).get("files")
    except BundleError:
        # A damaged bundle is one still: exporting again is its cure.
        return []
    known = {MODEL_JSON, *MACHINES, *(files if isinstance(files, dict) else ())}
    names = (entry.name for entry in path.iterdir())
    return sorted(n for n in names if n not in known and not n.startswith("."))


class BundleWriter:
    """Writes a bundle that appears under its name only when it is whole.

    Files are put into :attr:`folder`; :meth:`seal` hashes them, writes `model.json`
    and gives the folder its final name. Leaving the context without a seal removes
    everything; a full disk is a WriteError then, whatever was being written.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self._overwrite = overwrite
        if self.path.exists() and not overwrite:
            raise OutputError(
                f"{self.path} exists: choose another name, or pass --overwrite"
            )
        if (
            self.path.exists()
            and not (self.path / MODEL_JSON).is_file()
            and any(self.path.iterdir() if self.path.is_dir() else [self.path])
        ):
            raise OutputError(
                f"{self.path} exists and is not a bundle: it is not overwritten, "
                "choose another name"
            )
        if others := _others(self.path):
            raise OutputError(
                f"{self.path / others[0]} is no part of the bundle there, and would be "
                "lost with it: move it first, or choose another name"
            )
        if not self.path.parent.is_dir():
            raise OutputError(
                f"the folder {self.path.parent} does not exist: make it first"
            )
        self.folder = self.path.with_name(f".{self.path.name}.partial-{os.getpid()}")

    def __enter__(self) -> BundleWriter:
        try:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
        except OSError as error:
            raise OutputError(f"cannot write to {self.path.parent}: {error}") from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise WriteError(
                f"the disk did not take the bundle {self.path} ({error.strerror}): "
                "free space there, or choose another folder"
            ) from error

    def seal(self, spec: ModelSpec) -> Bundle:
        """Hash what is in the folder, write `model.json`, take the final name."""
        files = {
            file.name: sha256(file)
            for file in sorted(self.folder.iterdir())
            if file.is_file() and file.name != MODEL_JSON
        }
        # As it will be read: a 0 that was given as an overlap is a 0.0 there.
        plain = json.loads(json.dumps(spec.to_json()))
        spec = ModelSpec.from_json(plain, str(self.path / MODEL_JSON))
        values = {
            **spec.to_json(),
            "files": files,
            "seal": _digest(spec, files),
        }
        target = self.folder / MODEL_JSON
        with target.open("w", encoding="utf-8") as out:
            json.dump(values, out, indent=1)
            out.flush()
            os.fsync(out.fileno())
        if self.path.exists() and not self._overwrite:
            raise OutputError(
                f"{self.path} has come to exist meanwhile: it is not overwritten, "
                "choose another name"
            )
        if self.path.exists():
            old = self.path.with_name(f".{self.path.name}.old-{os.getpid()}")
            self.path.rename(old)
            self.folder.rename(self.path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            self.folder.rename(self.path)
        return load_bundle(self.path)
