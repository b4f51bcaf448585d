"""Which volume of a file is meant, where it holds several."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from neurodeploy._errors import ConfigError
from neurodeploy_runtime import open_volume
from neurodeploy_runtime.volumes import Source


@dataclass(frozen=True)
class Reading:
    """What is read of every image of a data folder, as `segment` would be asked.

    Parameters
    ----------
    channel, time
        Counted from 0.
    axes
        Axes of the stored array, such as ``zcyx``, where files do not say theirs.
    dataset
        Name of the array inside a file.
    """

    channel: int | None = None
    time: int | None = None
    axes: str | None = None
    dataset: str | None = None

    def __post_init__(self) -> None:
        for name in ("channel", "time"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"reading.{name} is {value}: count from 0")

    def open(self, path: Path) -> Source:
        """Open an image.

        Raises
        ------
        InputError
            It cannot be read, or does not hold what is asked for, or more to choose
            from.
        """
        asked = dataclasses.asdict(self)
        return open_volume(path, **{k: v for k, v in asked.items() if v is not None})
