"""Which z-stacks an acquisition is to bring, known before its first frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from neurodeploy_runtime._errors import SettingsError

#: Where a stack lies in an acquisition: axis and index, sorted, without z.
Key = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class ExpectedStack:
    """A stack that is to come.

    Frames of the stacks of one `group` may alternate; when a frame of another group
    comes, all stacks of this one are over. `step_um` is 0 where it is not known.
    """

    index: Mapping[str, int]
    planes: int
    group: int
    step_um: float


@dataclass(frozen=True)
class Acquisition:
    """The stacks of an acquisition, in order, and how often each axis is stepped."""

    axes: str
    sizes: Mapping[str, int]
    stacks: Mapping[Key, ExpectedStack]

    @property
    def together(self) -> int:
        """The most stacks whose frames alternate."""
        groups = Counter(stack.group for stack in self.stacks.values())
        return max(groups.values())


def acquisition_of(sequence: Any) -> Acquisition:
    """The stacks of a `useq.MDASequence`.

    Raises
    ------
    SettingsError
        It has no stack, or frames that cannot be told apart by their index.
    """
    inner = any(_has_axes(p) for p in getattr(sequence, "stage_positions", ()))
    found = by_events(sequence) if inner else by_sizes(sequence)
    if not found.stacks:
        raise SettingsError(
            "the acquisition has no z axis of known length: give run_mda an "
            "MDASequence with a z_plan"
        )
    return found


def by_sizes(sequence: Any) -> Acquisition:
    """From the length of each axis, where no position has a sequence of its own.

    An acquisition may have a million events: this looks at none of them.
    """
    sizes = {axis: n for axis, n in letters(sequence.sizes).items() if n}
    order = [str(getattr(a, "value", a)) for a in sequence.axis_order]
    axes = "".join(axis for axis in order if axis in sizes)
    if "z" not in sizes:
        return Acquisition(axes, sizes, {})
    outer = axes[: axes.index("z")]
    channels = list(getattr(sequence, "channels", ()))
    steps = list(sequence.z_plan) if sequence.z_plan is not None else []
    step_um = abs(float(steps[1]) - float(steps[0])) if len(steps) > 1 else 0.0
    groups: dict[Key, int] = {}
    stacks: dict[Key, ExpectedStack] = {}
    others = axes.replace("z", "")
    for numbers in product(*(range(sizes[axis]) for axis in others)):
        index = dict(zip(others, numbers, strict=True))
        if (c := index.get("c")) is not None and c < len(channels):
            every = getattr(channels[c], "acquire_every", 1)
            single = sizes["z"] > 1 and not getattr(channels[c], "do_stack", True)
            if single or index.get("t", 0) % every:
                continue
        around = tuple((axis, index[axis]) for axis in outer)
        group = groups.setdefault(around, len(groups))
        stacks[key_of(index)] = ExpectedStack(index, sizes["z"], group, step_um)
    return Acquisition(axes, sizes, stacks)


def by_events(sequence: Any) -> Acquisition:
    """From every event: the plain version, and the one for sequences in positions."""
    axes = [str(getattr(a, "value", a)) for a in sequence.axis_order]
    sizes: dict[str, int] = {}
    #: Of each stack: by plane, the number of the event and the height.
    found: dict[Key, dict[int, tuple[int, float | None]]] = {}
    for number, event in enumerate(sequence):
        if getattr(event.action, "type", "acquire_image") != "acquire_image":
            continue
        index = letters(event.index)
        for axis, n in index.items():
            sizes[axis] = max(sizes.get(axis, 0), n + 1)
        z = index.pop("z", None)
        if z is None:
            continue
        planes = found.setdefault(key_of(index), {})
        if z in planes:
            raise SettingsError(
                f"plane {z} of stack {index} comes twice: stacks of one index are not "
                "told apart, segment them in acquisitions of their own"
            )
        planes[z] = number, event.z_pos
    stacks: dict[Key, ExpectedStack] = {}
    group, over = -1, -1
    for key, planes in found.items():
        numbers = [number for number, _ in planes.values()]
        if 0 not in planes:
            continue  # the middle plane of a channel without a stack
        if min(numbers) > over:
            group += 1
        over = max(over, *numbers)
        stacks[key] = ExpectedStack(dict(key), max(planes) + 1, group, _step_um(planes))
    used = [axis for axis in axes if axis in sizes]
    used += [axis for axis in sizes if axis not in used]
    return Acquisition("".join(used), sizes, stacks)


def key_of(index: Mapping[str, int]) -> Key:
    """An index without z, as a key."""
    return tuple(sorted(index.items()))


def letters(index: Mapping[Any, Any]) -> dict[str, int]:
    """Numbers by the letter of their axis, which useq gives as a string or an enum."""
    return {str(getattr(axis, "value", axis)): int(n) for axis, n in index.items()}


def _has_axes(position: Any) -> bool:
    inner = getattr(position, "sequence", None)
    return inner is not None and any(letters(inner.sizes).values())


def _step_um(planes: Mapping[int, tuple[int, float | None]]) -> float:
    (_, low), (_, high) = planes.get(0, (0, None)), planes.get(1, (0, None))
    return 0.0 if low is None or high is None else abs(float(high) - float(low))
