"""Where a run writes, and what must not be written over."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neurodeploy_runtime._errors import OutputError
from neurodeploy_runtime._input_place import refuse_input
from neurodeploy_runtime._journal import PLAN
from neurodeploy_runtime._provenance import SECOND
from neurodeploy_runtime._settings import OutputKind
from neurodeploy_runtime.arrays import PlaneKind
from neurodeploy_runtime.volumes import SinkKind
from neurodeploy_runtime.volumes._open_sink import may_replace
from neurodeploy_runtime.volumes._sink_flat import records_path

#: How the name of the map of disagreement ends, beside an output.
SEAM_MAP = "seam.tif"


@dataclass(frozen=True)
class Paths:
    """Where a run writes. The final names are taken at the end only."""

    output: Path
    outputs: tuple[tuple[PlaneKind, Path], ...]
    work: Path
    report: Path
    picture: Path

    @classmethod
    def of(cls, output: Path, kind: OutputKind) -> Paths:
        """The names that belong to an output."""
        base = output.name.removesuffix(output.suffix)
        outputs: tuple[tuple[PlaneKind, Path], ...]
        if kind == "both":
            second = output.with_name(f"{base}{SECOND}{output.suffix}")
            outputs = (("mask", output), ("probability", second))
        else:
            outputs = ((kind, output),)
        return cls(
            output,
            outputs,
            output.with_name(f"{output.name}.neurodeploy"),
            output.with_name(f"{base}.json"),
            output.with_name(f"{base}.png"),
        )

    def beside(self, ending: str) -> Path:
        """A name beside the output, such as ``big.seg.skip.tif``."""
        base = self.output.name.removesuffix(self.output.suffix)
        return self.output.with_name(f"{base}.{ending}")

    def working(self, name: str, path: Path) -> Path:
        """Where a file of this name in the folder is, while it is written.

        A run killed while it gave final names may have given this one, `path`: then it
        is there already.
        """
        working = self.work / name
        named = self.naming and path.exists() and not working.exists()
        return path if named else working

    @property
    def naming(self) -> bool:
        """Whether a run has begun to give final names."""
        return (self.work / "naming").exists()

    def begin_naming(self) -> None:
        """Note that what has a final name from now on is of the run here."""
        (self.work / "naming").touch()

    def check(
        self,
        source: Path | str,
        kind: SinkKind,
        *,
        may_exist: bool,
        files: Sequence[Path] = (),
        also: Sequence[Path] = (),
    ) -> None:
        """Refuse what cannot be written, or must not be.

        The report and the picture take names of their own beside an output, where
        somebody's file may lie: it is asked for like the output itself. `source` and
        `files`: where the input lies. `also`: what else this run leaves there.

        Raises
        ------
        OutputError
            The folder is missing; a place is the input, lies in it or holds it; or
            something lies there that may not be replaced.
        """
        folder = self.output.parent
        if not folder.is_dir():
            raise OutputError(f"the folder {folder} does not exist: make it first")
        beside = (self.report, self.picture, *also)
        every = (*(path for _, path in self.outputs), *beside)
        there = [path for path in every if path.exists() or path.is_symlink()]
        for path in there:
            if not may_exist:
                which = f", which this run leaves beside {self.output.name}"
                raise OutputError(
                    f"{path} exists{which if path in beside else ''}: choose another "
                    "name with -o, or pass --overwrite"
                )
        refuse_input((*every, self.work), source, files)
        for path in there:
            if not may_replace(path, "tiff" if path in beside else kind):
                raise OutputError(_not_replaced(path))

    def take_records(self, name: str, path: Path) -> None:
        """Put the checksums of a file that has its name beside it, to open it.

        They stayed behind where a kill came between the last rename and the end.
        """
        records = records_path(self.work / name)
        if records.exists():
            records.replace(records_path(path))

    def give_names(self) -> None:
        """Move what is finished to its final names; may be repeated after a kill."""
        self.begin_naming()
        given = [(inside(kind, path), path) for kind, path in self.outputs]
        seam = SEAM_MAP, self.beside(SEAM_MAP)
        if self.working(*seam).exists():
            given.insert(0, seam)
        for name, path in given:
            working = self.working(name, path)
            if working == path:
                records_path(path).unlink(missing_ok=True)
                continue
            if path.is_dir():
                shutil.rmtree(path)
            working.replace(path)
        # First: what a kill leaves of the rest is of no run then.
        (self.work / PLAN).unlink(missing_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)


def inside(kind: PlaneKind, path: Path) -> str:
    """The name of an output in the folder of a run."""
    return f"{kind}{path.suffix}"


def _not_replaced(path: Path) -> str:
    what = "a file, and no store"
    if path.is_dir():
        what = "a folder that holds no such output"
    if path.is_symlink():
        what = "a link"
    return (
        f"{path} is {what}, so it is not replaced: remove it yourself, or choose "
        "another name"
    )
