"""From planes to finished planes: cutting, inferring and blending, overlapped.

::

    planes -> ring -> [cut] -> ready -> [infer] x engines -> done -> [blend] -> emit
                        ^                                               |
                        +------------------ free slots -----------------+

A fixed set of slots goes round, so memory is fixed and a slow stage holds up those
before it. The first error of any stage stops all of them and is raised to the caller.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._blend import BlendRing
from neurodeploy_runtime._channel import Channel
from neurodeploy_runtime._clock import Clock
from neurodeploy_runtime._errors import (
    CancelledError,
    EngineError,
    InputError,
    StreamError,
)
from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime._normalise import Normalisation
from neurodeploy_runtime._plan import TilePlan
from neurodeploy_runtime._planes import PlaneRing
from neurodeploy_runtime._skip import BackgroundSkip
from neurodeploy_runtime._tissue import TissueMask
from neurodeploy_runtime.arrays import Arrays, HostArrays, Normaliser, PlaneKind
from neurodeploy_runtime.engines import Engine, Portions

_log = logging.getLogger(__name__)

Emit = Callable[[int, BlendRing], None]
Lost = Callable[[int], None]

#: Flips on y and x whose mean is taken with test-time augmentation.
FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))


@dataclass(frozen=True)
class TileId:
    """Where a tile lies in the grid, and whether its layer is the volume's last."""

    layer: int
    row: int
    column: int
    last: bool


@dataclass
class Slot:
    """A batch of tiles on its way; allocated and touched once, used again and again.

    `voxels` is (B, 1, *tile) and `answer` (B, 1, *window), float32, of the stream's
    arrays.
    """

    voxels: Any
    answer: Any
    order: int = 0
    #: The tiles of the batch; a batch may be padded with what was there before.
    tiles: list[TileId] = field(default_factory=list)
    #: Tiles known to be background: they add nothing and are not run.
    skipped: list[TileId] = field(default_factory=list)
    #: Which of `tiles` are background tiles that are run for the audit only.
    audited: list[bool] = field(default_factory=list)
    #: The layer whose tiles end with this slot, if they do.
    ends: TileId | None = None
    #: Whether that layer was not run, because planes that it reads never came.
    lost: bool = False


@dataclass(frozen=True)
class StreamBuffers:
    """What a stream works in, allocated and touched; serves one stack after another."""

    arrays: Arrays
    slots: tuple[Slot, ...]
    blend: BlendRing
    depth: int
    #: Called before each step that reads or writes much memory; it may wait.
    give_way: Callable[[], object] | None = None

    @classmethod
    def of(
        cls,
        plan: TilePlan,
        region: Box,
        engines: Sequence[Engine],
        *,
        seam: bool = False,
        give_way: Callable[[], object] | None = None,
    ) -> StreamBuffers:
        """As many slots as keep every engine busy, and the planes being blended.

        They lie where the engine is. Several engines have the host in common.
        """
        arrays = arrays_of(engines)
        blend = BlendRing(plan, region, squares=seam, arrays=arrays, give_way=give_way)
        slots = [
            Slot(
                arrays.zeros(engines[0].input_shape),
                arrays.zeros(engines[0].output_shape),
            )
            for _ in range(slots_of(engines))
        ]
        buffers = cls(arrays, tuple(slots), blend, plan.window[0], give_way)
        buffers.reset()
        return buffers

    def warm_up(self, engine: Engine, dtype: np.dtype[Any]) -> None:
        """Take every step once: kernels are compiled, and no memory is left to take."""
        slot, arrays = self.slots[0], self.arrays
        plain = arrays.prepare(Normalisation("background-asinh", 0.0, 1.0), dtype)
        raw = np.zeros(slot.voxels.shape[2:], dtype)
        arrays.normalise([raw], plain, slot.voxels[0, 0])
        engine.infer_resident(slot.voxels, slot.answer, arrays)
        with arrays.step():
            self.blend.add(0, 0, 0, slot.answer[0, 0], last=False)
        levels = np.empty(self.blend.plane, np.uint8)
        for kind in get_args(PlaneKind):
            self.blend.quantise(0, kind, 0.5, levels)
        self.reset()

    def reset(self) -> None:
        """Nothing has been added yet; and every page of it is there."""
        for z in range(self.depth):
            self.blend.clear(z)


def slots_of(engines: Sequence[Engine]) -> int:
    """Batches on their way: one in each call, one ready for it, one on either side."""
    return 2 * sum(engine.at_once for engine in engines) + 2


def arrays_of(engines: Sequence[Engine]) -> Arrays:
    """New arrays for a stream through these engines."""
    alone = len(engines) == 1 and engines[0].resident
    return engines[0].arrays() if alone else HostArrays()


class RegionStream:
    """Segments one region, plane by finished plane.

    Parameters
    ----------
    plan
        The tiles of the volume. Where the depth is not known yet (a camera), its z
        extent only has to be large enough, and `depth` is None.
    region
        What is asked for. Its y and x extents decide what `ring` holds of a plane.
    ring
        The raw planes of ``plan.layer(region).reads``, in order, from the first that
        the region needs. Someone else fills it.
    engines
        A thread for each call that they compute at once.
    normalisation
        Or a function that waits for planes and learns it from them: it is called once,
        in the thread that cuts; None says that no plane came.
    emit
        Called in z order, from one thread, with each finished plane and the ring that
        holds it; the ring's plane is cleared when it returns.
    lost
        Called instead, in the same order, for a plane that some tile's answer is
        missing for, because planes that the tile reads never came.
    buffers
        What an earlier stream of the same plan worked in, to be used again.
    said
        Called with a sentence, from any thread, when a batch no longer fits into the
        memory of a GPU and is run in portions; None logs it as a warning.
    """

    def __init__(
        self,
        plan: TilePlan,
        region: Box,
        ring: PlaneRing,
        engines: Sequence[Engine],
        normalisation: Normalisation | Callable[[], Normalisation | None],
        emit: Emit,
        *,
        dtype: np.dtype[Any],
        depth: int | None,
        clock: Clock | None = None,
        flips: bool = False,
        seam: bool = False,
        skip: BackgroundSkip | None = None,
        tissue: TissueMask | None = None,
        lost: Lost | None = None,
        buffers: StreamBuffers | None = None,
        said: Callable[[str], None] | None = None,
    ) -> None:
        self._plan = plan
        self._region = region
        self._layer = plan.layer(region)
        self._ring = ring
        self._engines = engines
        self._settle = normalisation
        self._dtype = dtype
        self._check_finite = dtype.kind == "f"
        self._emit = emit
        self._lost = lost
        self._said = said or _log.warning
        self._depth = depth
        self.clock = clock or Clock()
        self._flips = flips
        self._skip = skip
        self._tissue = tissue
        if buffers is None:
            buffers = StreamBuffers.of(plan, region, engines, seam=seam)
        else:
            buffers.reset()
        self._arrays = buffers.arrays
        self._blend = buffers.blend
        self._give_way = buffers.give_way
        slots = len(buffers.slots)
        self._free: Channel[Slot] = Channel(slots)
        self._ready: Channel[Slot] = Channel(slots)
        self._done: Channel[Slot] = Channel(slots)
        self._batch = engines[0].batch
        for slot in buffers.slots:
            self._free.put(slot)
        self._error: BaseException | None = None
        self._finished = threading.Event()
        self._lock = threading.Lock()
        self._calls_left = sum(engine.at_once for engine in engines)
        self.tiles_run = 0

    def stop(self, error: BaseException) -> None:
        """Stop every stage; the first `error` is what :meth:`run` raises."""
        self._error = self._error or error
        self._ring.fail(error)
        for channel in (self._free, self._ready, self._done):
            channel.fail(error)
        self._finished.set()

    def let_go(self) -> None:
        """Forget the buffers, after :meth:`run`; what was counted stays."""
        self._free = self._ready = self._done = Channel(1)
        del self._arrays, self._blend

    def run(self, *cancel: threading.Event | None) -> None:
        """Segment the region; returns when the last plane was emitted.

        Any event of `cancel` stops it within a second and raises CancelledError.

        Raises
        ------
        NeurodeployError
            The first error of any stage, in the thread that called.
        """
        jobs: list[tuple[str, Callable[[], None]]] = [
            ("cut", self._cut),
            ("blend", self._blend_all),
        ]
        jobs += [
            (f"infer {i}.{call}", lambda engine=engine: self._infer(engine))  # type: ignore[misc]
            for i, engine in enumerate(self._engines)
            for call in range(engine.at_once)
        ]
        threads = [
            threading.Thread(target=self._guard, args=(job,), name=name, daemon=True)
            for name, job in jobs
        ]
        for thread in threads:
            thread.start()
        try:
            # An Event waited for with a timeout lets Ctrl-C through at once.
            while not self._finished.wait(0.2):
                if any(event is not None and event.is_set() for event in cancel):
                    self.stop(CancelledError("stopped by the caller"))
        except BaseException as error:
            self.stop(
                CancelledError("stopped by the user")
                if isinstance(error, KeyboardInterrupt)
                else error
            )
            raise
        finally:
            for thread in threads:
                thread.join()
        if self._error is not None:
            raise self._error

    def _guard(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self.stop(error)

    # -- cutting ---------------------------------------------------------------

    def _cut(self) -> None:
        axis = self._plan.axes[0]
        order = 0
        normaliser = self._normaliser()
        layer = axis.meeting(
            self._region.start[0], self._region.stop[0], self._plan.shape[0]
        ).start
        while True:
            start = layer * axis.stride
            end = start + axis.window
            need = (
                axis.reads(layer, self._depth)[1]
                if self._depth is not None
                # One plane more than the window says whether another layer follows.
                else end + max(axis.margin, 1)
            )
            with self.clock.stage("wait for planes"):
                arrived, ended = self._ring.wait(need)
            depth = self._depth if self._depth is not None else arrived
            known = self._depth is not None or ended
            last = known and layer + 1 >= axis.count(depth)
            if normaliser is None or (known and depth == 0):
                break
            extent = depth if known else end + axis.tile
            if self._ring.whole(*axis.reads(layer, extent)):
                order = self._cut_layer(layer, last, extent, order, normaliser)
            else:
                order = self._lose_layer(layer, last, order)
            if last or (layer + 1) * axis.stride >= self._region.stop[0]:
                break
            layer += 1
            self._ring.release(max(0, layer * axis.stride - axis.margin))
        self._ready.end()

    def _normaliser(self) -> Normaliser | None:
        settle = self._settle
        normalisation = settle() if callable(settle) else settle
        if normalisation is None:
            return None
        return self._arrays.prepare(normalisation, self._dtype)

    def _lose_layer(self, layer: int, last: bool, order: int) -> int:
        """Send a slot without tiles on the way, for a layer that cannot be run."""
        if self._lost is None:
            raise StreamError(
                f"planes that tile layer {layer} reads never came, and nobody asked "
                "to be told of lost planes"
            )
        slot = self._take_free()
        slot.order = order
        slot.lost = True
        slot.ends = TileId(layer, self._layer.rows[0], self._layer.columns[0], last)
        self._ready.put(slot)
        return order + 1

    def _cut_layer(
        self, layer: int, last: bool, extent: int, order: int, normaliser: Normaliser
    ) -> int:
        """Cut all tiles of a layer into slots; returns the next slot's number."""
        z_axis = self._plan.axes[0]
        low, high = z_axis.reads(layer, extent)
        planes = self._ring.views(low, high)
        z_index = z_axis.mirrored(layer, extent)
        slot: Slot | None = None
        tiles = list(self._layer)
        for number, (row, column) in enumerate(tiles):
            tile = TileId(layer, row, column, last)
            if slot is None:
                slot = self._take_free()
                slot.order = order
                order += 1
            with self.clock.stage("normalise"):
                raw = self._raw(planes, row, column)
                run, audited = self._in_tissue(tile, extent), False
                if run and self._skip is not None:
                    run, audited = self._skip.decide(
                        (layer, row, column), raw, normaliser.normalisation
                    )
                if run:
                    if self._give_way is not None:
                        self._give_way()
                    out = slot.voxels[len(slot.tiles), 0]
                    self._normalise(raw, z_index, row, column, out, normaliser)
            if run:
                slot.tiles.append(tile)
                slot.audited.append(audited)
            else:
                slot.skipped.append(tile)
            ends = number + 1 == len(tiles)
            slot.ends = tile if ends else None
            if ends or len(slot.tiles) == self._batch or len(slot.skipped) >= 64:
                self._ready.put(slot)
                slot = None
        return order

    def _in_tissue(self, tile: TileId, extent: int) -> bool:
        if self._tissue is None:
            return True
        at = (tile.layer, tile.row, tile.column)
        start = tuple(k * a.stride for k, a in zip(at, self._plan.axes, strict=True))
        window = Box(start, start).grow(self._plan.window)  # type: ignore[arg-type]
        return self._tissue.meets(
            window.intersect(Box.whole((extent, *self._plan.shape[1:])))
        )

    def _take_free(self) -> Slot:
        with self.clock.stage("wait for a slot"):
            slot = self._free.get()
        if slot is None:
            raise CancelledError("the run was stopped")
        slot.tiles, slot.skipped, slot.audited, slot.ends = [], [], [], None
        slot.lost = False
        return slot

    def _raw(
        self, planes: list[NDArray[Any]], row: int, column: int
    ) -> list[NDArray[Any]]:
        """What the tile reads of the volume, as views."""
        (y_low, _), (x_low, _) = self._layer.reads
        y0, y1 = self._plan.axes[1].reads(row, self._plan.shape[1])
        x0, x1 = self._plan.axes[2].reads(column, self._plan.shape[2])
        return [
            part[:, y0 - y_low : y1 - y_low, x0 - x_low : x1 - x_low] for part in planes
        ]

    def _normalise(
        self,
        raw: list[NDArray[Any]],
        z_index: NDArray[np.intp] | None,
        row: int,
        column: int,
        out: Any,
        normaliser: Normaliser,
    ) -> None:
        """The tile as the network sees it, mirrored where it sticks out, into `out`."""
        if self._check_finite:
            _refuse_not_finite(raw)
        y_index = self._plan.axes[1].mirrored(row, self._plan.shape[1])
        x_index = self._plan.axes[2].mirrored(column, self._plan.shape[2])
        if z_index is None and y_index is None and x_index is None:
            self._arrays.normalise(raw, normaliser, out)
            return
        whole = np.concatenate(raw)
        for axis, index in enumerate((z_index, y_index, x_index)):
            if index is not None:
                whole = whole.take(index, axis)
        self._arrays.normalise([whole], normaliser, out)

    # -- inferring -------------------------------------------------------------

    def _infer(self, engine: Engine) -> None:
        infer = Portions(engine, self._infer_with(engine), self._said)
        flipped = self._arrays.zeros(engine.output_shape) if self._flips else None
        while (slot := self._ready.get()) is not None:
            if slot.tiles:
                with self.clock.stage("infer", 1 / engine.at_once):
                    if flipped is None:
                        infer(slot.voxels, slot.answer)
                    else:
                        self._infer_flips(infer, slot, flipped)
                with self._lock:
                    self.tiles_run += len(slot.tiles)
            self._done.put(slot)
        self._ended_call()

    def _infer_with(self, engine: Engine) -> Callable[[Any, Any], None]:
        if isinstance(self._arrays, HostArrays):
            return engine.infer
        return lambda batch, out: engine.infer_resident(batch, out, self._arrays)

    def _infer_flips(
        self, infer: Callable[[Any, Any], None], slot: Slot, answer: Any
    ) -> None:
        """The mean over `FLIPS`, into the slot; `answer` is room for one of them."""
        xp, step = self._arrays.xp, self._arrays.step
        with step():
            slot.answer.fill(0)
        for axes in FLIPS:
            with step():
                flipped = xp.ascontiguousarray(xp.flip(slot.voxels, axes))
            infer(flipped, answer)
            with step():
                slot.answer += xp.flip(answer, axes)
        with step():
            slot.answer *= np.float32(1 / len(FLIPS))

    def _ended_call(self) -> None:
        """The last one to end closes what is behind them."""
        with self._lock:
            self._calls_left -= 1
            left = self._calls_left
        if left == 0:
            self._done.end()

    # -- blending --------------------------------------------------------------

    def _blend_all(self) -> None:
        waiting: dict[int, Slot] = {}
        order = 0
        lost_before = False
        while (slot := self._done.get()) is not None:
            waiting[slot.order] = slot
            while order in waiting:
                slot = waiting.pop(order)
                order += 1
                with self.clock.stage("blend"), self._arrays.step():
                    self._add(slot)
                ends, lost = slot.ends, slot.lost
                self._free.put(slot)
                if ends is not None:
                    self._emit_layer(ends, lost, lost_before)
                    lost_before = lost
        self._finished.set()

    def _add(self, slot: Slot) -> None:
        if slot.tiles and not self._arrays.finite(slot.answer[: len(slot.tiles)]):
            self._refuse_answer(slot)
        for i, (tile, audited) in enumerate(zip(slot.tiles, slot.audited, strict=True)):
            window = slot.answer[i, 0]
            if audited and self._skip is not None:
                host = self._arrays.fetch(window)
                self._skip.audit((tile.layer, tile.row, tile.column), host)
                continue
            self._blend.add(tile.layer, tile.row, tile.column, window, last=tile.last)

    def _refuse_answer(self, slot: Slot) -> None:
        """NaN would pass for background: no comparison with it holds."""
        finite = [self._arrays.finite(answer) for answer in slot.answer]
        tile = slot.tiles[finite.index(False)]
        place = (tile.layer, tile.row, tile.column)
        start = [
            n * axis.stride for n, axis in zip(place, self._plan.axes, strict=True)
        ]
        raise EngineError(
            f"the network answers NaN or infinity in the tile at voxel {start} (z, y, "
            "x): in half precision large values overflow, so try --precision fp32; "
            "if it stays, the weights or the input there are to blame"
        )

    def _emit_layer(self, tile: TileId, lost: bool, lost_before: bool) -> None:
        """Let the planes go that no later layer meets.

        `lost` and `lost_before` say that this layer, or the one before, was not run.
        """
        if self._skip is not None:
            self._skip.flush()
        axis = self._plan.axes[0]
        start = tile.layer * axis.stride
        stop = start + (axis.window if tile.last else axis.stride)
        if tile.last:
            depth = self._ring.arrived if self._depth is None else self._depth
            stop = min(stop, depth)
        for z in range(
            max(start, self._region.start[0]), min(stop, self._region.stop[0])
        ):
            if self._lost is not None and (
                lost or (lost_before and z < start + axis.overlap)
            ):
                self._lost(z)
            else:
                self._emit(z, self._blend)
            self._blend.clear(z)


def _refuse_not_finite(raw: list[NDArray[Any]]) -> None:
    bad = sum(int(part.size - np.count_nonzero(np.isfinite(part))) for part in raw)
    if bad:
        raise InputError(
            f"{bad} voxels of one tile are NaN or infinite: replace them (with the "
            "background, for example) before segmenting"
        )
