"""The log of a run: one CSV row per logged step, and its curves as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from neurodeploy_runtime._atomic import write_atomically
from neurodeploy_runtime._errors import WriteError, said_by


@contextmanager
def written(path: Path) -> Iterator[None]:
    """A disk that refuses a file of a run, as an error of ours."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"cannot write {path}: {said_by(error)}; make room there, or see who may "
            "write there, and resume the run"
        ) from error


@dataclass(frozen=True)
class Row:
    """One line of the log; `loss` is the mean since the line before."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    crops_per_s: float
    validation_average_precision: float | None = None
    validation_dice: float | None = None


class Log:
    """A CSV that grows by whole lines.

    A resumed run drops what was logged after the step that it resumes from, so that
    the file reads like that of an uninterrupted one.
    """

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        self.path = path
        self.rows = [row for row in read_log(path) if row.step <= resume_at]
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(f.name for f in fields(Row))
        writer.writerows(asdict(row).values() for row in self.rows)
        # Killed here, a run keeps the rows that it had.
        with written(path):
            write_atomically(path, text.getvalue())

    def add(self, row: Row) -> None:
        """Append a row, durable to a crash of this process."""
        self.rows.append(row)
        with (
            written(self.path),
            self.path.open("a", newline="", encoding="utf-8") as file,
        ):
            csv.writer(file).writerow(asdict(row).values())


def read_log(path: Path) -> list[Row]:
    """The rows of a log; none where there is no file. A torn last line is left out."""
    if not path.is_file():
        return []
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for values in csv.DictReader(file):
            try:
                rows.append(
                    Row(
                        int(values["step"]),
                        float(values["loss"]),
                        float(values["learning_rate"]),
                        float(values["gradient_norm"]),
                        float(values["crops_per_s"]),
                        _or_none(values["validation_average_precision"]),
                        _or_none(values["validation_dice"]),
                    )
                )
            except (KeyError, TypeError, ValueError):
                break
    return rows


def _or_none(text: str) -> float | None:
    return None if text == "" else float(text)


def draw_curves(rows: list[Row], path: Path) -> None:
    """Loss, learning rate and validation figures over the steps, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [row.step for row in rows]
    left.plot(steps, [row.loss for row in rows], color="C0", linewidth=1)
    left.set(xlabel="step", ylabel="loss")
    rate = left.twinx()
    rate.plot(steps, [row.learning_rate for row in rows], color="C7", linewidth=0.8)
    rate.set_ylabel("learning rate", color="C7")
    for name, label in (
        ("validation_average_precision", "average precision"),
        ("validation_dice", "best Dice"),
    ):
        points = [
            (r.step, getattr(r, name)) for r in rows if getattr(r, name) is not None
        ]
        if points:
            right.plot(*zip(*points, strict=True), marker=".", label=label)
            right.legend()
    right.set(xlabel="step", ylabel="validation", ylim=(0, 1))
    with written(path):
        figure.savefig(path, dpi=120)
