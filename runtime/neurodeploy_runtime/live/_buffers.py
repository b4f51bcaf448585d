"""What a live segmentation allocates when it is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from neurodeploy_runtime._errors import MemoryCapError, SettingsError
from neurodeploy_runtime._plan import Axis, TilePlan
from neurodeploy_runtime._rss import machine_memory
from neurodeploy_runtime._spec import ModelSpec
from neurodeploy_runtime._stream import slots_of
from neurodeploy_runtime.engines import Engine
from neurodeploy_runtime.live._settings import LiveSettings

#: How deep a stack may become: 2 ** 40 planes are a plane a millisecond for 34 years.
UNKNOWN_DEPTH = 1 << 40


def ring_planes(axis: Axis, settings: LiveSettings) -> int:
    """Raw planes that are held: those asked for, or as many as keep tiles coming.

    Raises
    ------
    SettingsError
        Fewer are asked for than a tile, or learning the normalisation, needs.
    """
    least = axis.layer_planes
    asked = settings.ring_planes
    learn = 0 if settings.normalisation else settings.learn_planes
    if asked is None:
        return max(least + 2 * axis.stride, 2 * least, learn, 16)
    if asked < max(least, learn):
        raise SettingsError(
            f"a ring of {asked} planes is too small: tiles of this model need "
            f"{least}, learning the normalisation {learn}"
        )
    return asked


def check_stream(spec: ModelSpec, settings: LiveSettings) -> None:
    """Refuse, before any stream, what no stream of a model could have.

    Raises
    ------
    SettingsError
        The overlap is not possible, or no tile fits the ring.
    """
    plan = TilePlan.of(spec, (UNKNOWN_DEPTH, *spec.tile[1:]), settings.overlap)
    ring_planes(plan.axes[0], replace(settings, learn_planes=1))


def buffer_bytes(
    plan: TilePlan,
    dtype: np.dtype[Any],
    ring_planes: int,
    outlet_planes: int,
    engines: Sequence[Engine],
) -> int:
    """Bytes of the host that a live segmenter allocates when it is opened."""
    pixels = prod(plan.shape[1:])
    raw = ring_planes * pixels * dtype.itemsize
    blend = plan.window[0] * pixels * 4
    tiles = prod(plan.tile) + prod(plan.window)
    slots = slots_of(engines) * engines[0].batch * tiles * 4
    if len(engines) == 1 and engines[0].resident:
        # They lie on the GPU.
        blend = slots = 0
    return raw + blend + slots + (outlet_planes + 3) * pixels


def checked_bytes(
    plan: TilePlan,
    dtype: np.dtype[Any],
    ring_planes: int,
    outlet_planes: int,
    engines: Sequence[Engine],
    cap_bytes: int | None,
) -> int:
    """As `buffer_bytes`; None of a cap is half of the machine's memory.

    Raises
    ------
    MemoryCapError
        They are more than the cap.
    """
    need = buffer_bytes(plan, dtype, ring_planes, outlet_planes, engines)
    cap = cap_bytes or (machine_memory() or 8 * 10**9) // 2
    if need > cap:
        height, width = plan.shape[1:]
        raw = ring_planes * height * width * dtype.itemsize
        raise MemoryCapError(
            f"live buffers for planes of {height} × {width} take {need / 1e9:.2f} GB "
            f"and may take {cap / 1e9:.2f}: {ring_planes} planes in the ring are "
            f"{raw / 1e9:.2f} GB, {outlet_planes} results "
            f"{outlet_planes * height * width / 1e9:.2f}; use fewer, or allow more "
            "memory"
        )
    return need
