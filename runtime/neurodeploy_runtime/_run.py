"""One segmentation of one volume into one output, from plan to final name."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neurodeploy_runtime._atomic import write_atomically
from neurodeploy_runtime._bundle import Bundle
from neurodeploy_runtime._clock import Clock
from neurodeploy_runtime._errors import (
    InputError,
    OutputError,
    ResumeError,
    RunError,
    SettingsError,
    WriteError,
)
from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime._identity import refuse_changed, run_identity
from neurodeploy_runtime._journal import Journal
from neurodeploy_runtime._memory import MemoryPlan
from neurodeploy_runtime._normalise import Histogram, Normalisation
from neurodeploy_runtime._outputs import OutputSet, check_disk, default_grain
from neurodeploy_runtime._paths import SEAM_MAP, Paths
from neurodeploy_runtime._picture import draw_picture
from neurodeploy_runtime._plan import TilePlan
from neurodeploy_runtime._progress import Progress, ProgressCallback
from neurodeploy_runtime._region_run import RegionRun
from neurodeploy_runtime._report import Report, machine, out_of_range, versions
from neurodeploy_runtime._rss import machine_memory, peak_rss
from neurodeploy_runtime._run_memory import RunMemory
from neurodeploy_runtime._settings import SegmentSettings
from neurodeploy_runtime._shares import worker_shares
from neurodeploy_runtime._survey import survey
from neurodeploy_runtime._tissue import TissueMask
from neurodeploy_runtime.engines import Engine, same_engine
from neurodeploy_runtime.volumes import (
    SinkKind,
    Source,
    sink_kind,
)
from neurodeploy_runtime.volumes._plain import open_plain


class SegmentRun:
    """What `Segmenter.segment` does for one volume."""

    def __init__(
        self,
        bundle: Bundle,
        engines: Sequence[Engine],
        source: Source,
        output: Path,
        settings: SegmentSettings,
        *,
        overwrite: bool,
        progress: ProgressCallback | None,
        cancel: threading.Event | None,
        notes: dict[str, Any],
    ) -> None:
        self._bundle = bundle
        self._engines = engines
        self._source = source
        self._settings = settings
        self._overwrite = overwrite
        self._progress = progress
        self._notes = notes
        self._clock = Clock()
        self._paths = Paths.of(output, settings.output_kind)
        self._kind: SinkKind = sink_kind(output)
        self._roi = settings.region_of(source.shape)
        self._grain = default_grain(self._kind, self._roi.shape)
        self._plan = TilePlan.of(bundle.spec, source.shape, settings.overlap)
        threshold = settings.threshold
        self._threshold = bundle.spec.threshold if threshold is None else threshold
        self._journal = Journal(self._paths.work, settings.worker[0])
        self._resumed_voxels = 0
        self._warnings: list[str] = []
        self._start = time.perf_counter()
        cap = settings.memory_bytes
        self._memory = RunMemory(
            self._plan,
            self._roi,
            source,
            engines,
            settings,
            grain=self._grain,
            outputs=len(self._paths.outputs),
            cap_bytes=(machine_memory() or 8_000_000_000) // 2 if cap is None else cap,
        )
        tissue = None
        self._tissue_digest: str | None = None
        if settings.tissue is not None:
            with open_plain(settings.tissue) as mask:
                tissue = TissueMask.read(mask, source.shape)
                self._tissue_digest = mask.fingerprint()
        self._regions = RegionRun(
            self._plan,
            self._roi,
            source,
            engines,
            settings,
            threshold=self._threshold,
            journal=self._journal,
            work=self._paths.work,
            tissue=tissue,
            clock=self._clock,
            cancel=cancel,
            advanced=self._tell,
        )

    # -- the whole -------------------------------------------------------------

    def execute(self) -> Report | None:
        """Run it; None where other workers still have shares to do."""
        self.check_place()
        # Refused before anything is begun, which fewer workers could not go on with.
        worker_shares((), self._roi, self._grain, self._settings.worker)
        with self._clock.stage("look at the volume"):
            normalisation = self._normalise()
        found = self._settings.normalisation is None
        if self._settings.skip and found and normalisation.kind == "unit":
            raise SettingsError(
                "background cannot be told from signal where the normalisation is "
                "'unit', which knows no noise: leave out --skip-background"
            )
        plan = {
            "identity": self._identity(normalisation),
            "normalisation": normalisation.to_json(),
            "warnings": self._warnings,
            "overwrite": self._overwrite,
        }
        memory = self.plan_memory()
        try:
            with self._journal.beginning():
                # Asked now: another worker may have begun while this one looked.
                fresh = not self._journal.exists
                if fresh:
                    check_disk(self._paths, self._kind, self._roi.shape)
                    # What a kill amid a removal has left: it belongs to no plan. Only
                    # who has the place may remove anything here.
                    self._journal.lock()
                    self._journal.clear()
                    self._journal.begin(plan)
                else:
                    fresh = self._go_on(plan)
                    self._journal.lock()
        except BaseException:
            self._journal.close()
            # Where nothing was begun, it is empty.
            with contextlib.suppress(OSError):
                self._paths.work.rmdir()
            raise
        try:
            outputs = self._open_outputs()
        except BaseException:
            # Not where another worker has joined already.
            if fresh:
                with contextlib.suppress(OutputError, ResumeError):
                    self._journal.remove()
            self._journal.close()
            raise
        try:
            done = outputs.verified(self._journal.records())
            self._resumed_voxels = sum(
                unit.voxels
                for unit in Box.whole(self._roi.shape).grid(outputs.grain)
                if unit.start in done
            )
            self._regions.execute(memory, outputs, normalisation, done)
            return self._finish(outputs, normalisation, memory)
        except InputError as error:
            outputs.close()
            if self._journal.records():
                raise InputError(
                    f"{error}; what is done is kept in {self._paths.work}, for this "
                    "input: pass --overwrite to start again with a repaired one"
                ) from error
            # Not where another worker is at it.
            with contextlib.suppress(OutputError, ResumeError):
                self._journal.remove()
            raise
        finally:
            outputs.close()
            self._journal.close()

    # -- before ----------------------------------------------------------------

    def check_place(self) -> None:
        """Refuse an output that cannot be written there, or must not be."""
        self._paths.check(
            self._source.path,
            self._kind,
            files=self._source.files,
            may_exist=self._may_exist(),
            also=self._also(),
        )

    def _may_exist(self) -> bool:
        """Whether what has a final name already may be replaced.

        That was asked for, now or when the run here began; or this run gave the name.
        What came there while it was stopped is somebody else's.
        """
        if self._overwrite or self._paths.naming:
            return True
        if not self._journal.exists:
            return False
        return bool(self._journal.read_plan().get("overwrite", True))

    def _also(self) -> list[Path]:
        """What is left beside the outputs when it was asked for."""
        asked = {
            SEAM_MAP: self._settings.seam_map,
            "skip.tif": self._settings.skip is not None,
        }
        return [self._paths.beside(ending) for ending, yes in asked.items() if yes]

    def _go_on(self, plan: dict[str, Any]) -> bool:
        """Go on with what lies here, or start again where that is allowed."""
        try:
            self._journal.check(plan)
        except ResumeError:
            if not self._overwrite:
                raise
            self._journal.lock()
            self._journal.clear()
            check_disk(self._paths, self._kind, self._roi.shape)
            self._journal.begin(plan)
            return True
        return False

    def _normalise(self) -> Normalisation:
        if self._settings.normalisation is not None:
            return self._settings.normalisation
        histogram: Histogram = survey(self._source)
        normalisation = histogram.freeze(self._bundle.spec.normalisation)
        self._warnings += out_of_range(self._bundle.spec, normalisation, histogram)
        return normalisation

    def _identity(self, normalisation: Normalisation) -> dict[str, Any]:
        return run_identity(
            self._bundle,
            self._engines,
            self._source,
            self._settings,
            self._plan,
            normalisation,
            roi=self._roi,
            kind=self._kind,
            threshold=self._threshold,
            tissue=self._tissue_digest,
        )

    @property
    def kind(self) -> SinkKind:
        """The format of the output."""
        return self._kind

    def plan_memory(self) -> MemoryPlan:
        """The regions in which the memory cap holds; nothing is written."""
        memory = self._memory.choose()
        self._warnings += self._memory.notes
        return memory

    def _open_outputs(self) -> OutputSet:
        return OutputSet(
            self._paths,
            self._kind,
            self._roi.shape,
            self._grain,
            self._source.voxel_size_um,
            seam=self._settings.seam_map,
        )

    def _tell(self, done_voxels: int) -> None:
        if self._progress is not None:
            self._progress(
                Progress(
                    done_voxels + self._resumed_voxels,
                    self._roi.voxels,
                    self._resumed_voxels,
                    time.perf_counter() - self._start,
                )
            )

    # -- after -----------------------------------------------------------------

    def _finish(
        self,
        outputs: OutputSet,
        normalisation: Normalisation,
        memory: MemoryPlan,
    ) -> Report | None:
        records = self._journal.records()
        units = list(Box.whole(self._roi.shape).grid(outputs.grain))
        missing = [unit for unit in units if unit.start not in records]
        if missing and self._settings.worker[1] == 1:
            raise RunError(
                f"{len(missing)} of {len(units)} units of {self._paths.output} are not "
                "done: run the same command again"
            )
        if missing or not self._journal.claim_finish():
            return None
        try:
            return self._give_names(outputs, normalisation, memory)
        except OSError as error:
            raise WriteError(
                f"all of {self._paths.output} is done, and it cannot be finished "
                f"({error}): see to the disk, then run the same command again"
            ) from error
        finally:
            self._journal.leave_finish()

    def _give_names(
        self,
        outputs: OutputSet,
        normalisation: Normalisation,
        memory: MemoryPlan,
    ) -> Report:
        identity = self._identity(normalisation)
        refuse_changed(self._source, self._journal, identity)
        regions = self._regions
        regions.gather_pictures()
        self._warnings += self._journal.notes()
        if regions.lost_pictures:
            self._warnings.append(
                f"the picture lacks a part: {', '.join(sorted(regions.lost_pictures))} "
                "was damaged when the run continued; the segmentation lacks nothing"
            )
        records = self._journal.records()
        foreground = sum(record.foreground for record in records.values())
        skip = None
        if regions.skip is not None:
            regions.skip.recall(self._paths.work.glob("skip-*.log"))
            tiles = self._plan.tiles_in(self._roi)
            skip = regions.skip.report(foreground, tiles)
            self._check_skip(skip)
            if skip["skipped"] and not skip["audited"]:
                self._warnings.append(
                    f"none of the {skip['skipped']} skipped tiles was checked: what "
                    "they hold is not known"
                )
            elif skip["skipped"] and skip["lost_share_upper"] is None:
                self._warnings.append(
                    "no foreground was found, neither in the tiles that were run nor "
                    f"in the {skip['audited']} skipped ones that were checked: what "
                    "share was lost cannot be said"
                )
        # In the output itself lies what decides its bytes, and nothing else: two runs
        # are the same file. The command and the times are in the report.
        inside = {
            **identity,
            "versions": versions(),
            "machine": machine(),
        }
        provenance = {
            **inside,
            "engine": same_engine(self._engines),
            "notes": self._notes,
            "input_file": self._source.describe(),
            "tiles_on": self._memory.arrays.place,
            "content": outputs.content(records),
            "command": sys.argv,
        }
        with self._clock.stage("finish"):
            outputs.finish(inside)
        size = self._source.voxel_size_um
        aspect = size[0] / size[2] if size else 1.0
        png = draw_picture(regions.image, regions.result, aspect)
        wall = max(regions.wall_s, 1e-9)
        seconds = {k: round(v, 3) for k, v in sorted(self._clock.seconds.items())}
        report = Report(
            output=str(self._paths.output),
            outputs=[str(path) for _, path in self._paths.outputs],
            picture=str(self._paths.picture),
            shape=self._roi.shape,
            voxels=self._roi.voxels,
            resumed_voxels=self._resumed_voxels,
            foreground_voxels=foreground,
            tiles_run=regions.tiles_run,
            redundancy=round(memory.redundancy, 4),
            wall_s=round(wall, 3),
            seconds=seconds,
            engine_busy=round(seconds.get("infer", 0.0) / wall / len(self._engines), 4),
            mvoxel_per_s=round(regions.done_voxels / wall / 1e6, 4),
            peak_rss_bytes=peak_rss(),
            memory_plan_bytes=memory.peak_bytes,
            warnings=self._warnings,
            provenance=provenance,
            skip=skip,
        )
        # From here on, what has one of the names is of this run.
        self._paths.begin_naming()
        write_atomically(self._paths.picture, png)
        write_atomically(
            self._paths.report, json.dumps(report.to_json(), indent=1, default=str)
        )
        if regions.skip is not None:
            regions.skip.save(self._paths.beside("skip.tif"))
        outputs.close()
        self._paths.give_names()
        return report

    def _check_skip(self, skip: dict[str, Any]) -> None:
        limit = self._settings.skip.limit_lost if self._settings.skip else math.inf
        upper = skip["lost_share_upper"]
        if upper is not None and upper > limit:
            raise RunError(
                f"skipping background may have lost up to {upper:.2%} of all "
                f"foreground, more than the limit of {limit:.2%} (of {skip['audited']} "
                f"skipped tiles that were run, {skip['audited_with_foreground']} held "
                "some): run again without --skip-background, or with a lower "
                "--skip-sigma, and with --overwrite"
            )
