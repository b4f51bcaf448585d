"""The README's figures, written from `results/*.json` and never typed.

    python benchmarks/render_readme.py            # rewrite the section
    python benchmarks/render_readme.py --check    # 1 where the README says otherwise

The section lies between `<!-- figures:start -->` and `<!-- figures:end -->`. A result
file of a kind that is not known here takes part with its `summary`: lines of Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _results import RESULTS, table

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- figures:start -->", "<!-- figures:end -->"

Values = dict[str, Any]


def render(results: Path = RESULTS) -> str:
    """The section's text for these result files."""
    found = {
        path.stem: json.loads(path.read_text())
        for path in sorted(results.glob("*.json"))
    }
    parts = []
    for name in [*RENDERERS, *(n for n in found if n not in RENDERERS)]:
        values = found.get(name)
        if values is None:
            continue
        text = RENDERERS[name](values) if name in RENDERERS else _summary(values)
        if text:
            parts.append(f"{text}\n\n<sub>{_origin(values)}</sub>")
    return "\n\n".join(parts)


def _origin(values: Values) -> str:
    machine = values["machine"]
    flags = "AMX" if "amx_bf16" in machine.get("cpu_flags", []) else ""
    where = ", ".join(
        str(word)
        for word in (machine["cpu"], f"{machine['cores']} cores", flags)
        if word
    )
    if machine.get("gpu"):
        where += f", {machine['gpu']}"
    versions = values["versions"]
    shown = ("torch", "monai", "onnxruntime-gpu", "onnxruntime", "openvino", "numpy")
    libraries = ", ".join(f"{n} {versions[n]}" for n in shown if n in versions)
    return f"{where}; {libraries}; {values['date']}; `{values['command']}`"


def _summary(values: Values) -> str | None:
    summary = values.get("summary")
    if summary is None:
        return None
    return summary if isinstance(summary, str) else "\n".join(summary)


def _times(value: Values | None) -> str:
    if value is None:
        return "–"
    if value.get("n") == 1:
        return f"{value['median']:.2f}"
    return f"{value['median']:.2f} ({value['least']:.2f}–{value['most']:.2f})"


def _peers(values: Values) -> str:
    same = "neurodeploy, torch fp32"
    rows = []
    for row in values["rows"]:
        labels = row["labels"] or {}
        agreed = f"{labels[same]:.5f}" if same in labels else "–"
        rows.append(
            [
                row["variant"],
                row["wall_s"]["n"],
                f"{row['mvoxel_per_s']['median']:.3f}",
                _times(row["over_monai_fp32"]),
                _times(row["over_monai_bf16"]),
                f"{row['over_tiles']['median']:.2f}",
                f"{row['peak_bytes']['median'] / 2**20:.0f}",
                agreed,
            ]
        )
    size = " × ".join(map(str, values["shape"]))
    return (
        f"**One network in every engine, file to file** (ViT-S UNETR, "
        f"{values['parameters'] / 1e6:.0f} M parameters, "
        f"{values['flop_per_tile'] / 1e9:.0f} GFLOP a tile of "
        f"{values['size']['tile']}³, overlap {values['overlap']}, {size} voxels, "
        "× is taken against a run right before, with least and most)\n\n"
        + table(
            [
                "",
                "turns",
                "Mvoxel/s",
                "× MONAI torch fp32",
                "× MONAI torch bf16",
                "wall / tiles alone",
                "MiB over held",
                "labels as torch fp32",
            ],
            rows,
        )
    )


def _tiling(values: Values) -> str:
    largest = max(row["size"] for row in values["rows"])
    rows = [
        [
            row["tiler"],
            f"{row['size']}³",
            _times(row["mvoxel_per_cpu_s"]),
            f"{row['peak_bytes']['median'] / 2**20:.0f}",
            f"{row['max_error']:.2g}",
        ]
        for row in values["rows"]
        if row["size"] in (256, largest)
    ]
    return (
        "**Tiling and blending alone** (identity network, tile 96³, overlap 0.25, one "
        "thread)\n\n"
        + table(
            ["", "volume", "Mvoxel per CPU-second", "MiB over held", "largest error"],
            rows,
        )
    )


def _cap(values: Values) -> str:
    shape = " × ".join(map(str, values["rows"][0]["shape"]))
    rows = [
        [
            row["network"],
            f"{row['cap_bytes'] / 1e9:.0f} GB",
            "OME-Zarr" if row["suffix"].endswith("zarr") else "TIFF",
            f"{row['peak_rss_bytes'] / 1e9:.2f} GB",
            f"{row['redundancy']:.2f}",
            row["wrong_voxels"],
        ]
        for row in sorted(
            values["rows"],
            key=lambda row: (row["network"], row["suffix"], row["cap_bytes"]),
        )
    ]
    return f"**Memory** (`--memory`, {shape} voxels, every voxel checked)\n\n" + table(
        ["network", "cap", "output", "peak of the process", "× voxels", "wrong voxels"],
        rows,
    )


def _depth(values: Values) -> str:
    first, last = values["rows"][0], values["rows"][-1]
    return (
        f"**Depth**: {last['shape'][0]} planes take {values['change']:+.1%} of the "
        f"memory of {first['shape'][0]} "
        f"({last['peak_rss_bytes'] / 2**20:.0f} against "
        f"{first['peak_rss_bytes'] / 2**20:.0f} MiB, "
        f"{last['shape'][1]} × {last['shape'][2]} each)."
    )


def _size(values: Values) -> str:
    rows = [row["shape"][0] for row in values["rows"]]
    return (
        f"**Size**: from {min(rows)}³ to {max(rows)}³, CPU time around the network "
        f"grows as voxels to the {values['cpu_exponent']:.2f}."
    )


def _seams(values: Values) -> str:
    rows = [
        [
            row["overlap"],
            f"{row['redundancy']:.2f}",
            f"{row['mvoxel_per_s']:.3f}",
            f"{row['dice']:.4f}",
            f"{row['dice_truth']:.4f}",
        ]
        for row in values["rows"]
    ]
    return (
        "**What overlap costs and changes** (the default bundle on a simulated volume)"
        "\n\n"
        + table(
            ["overlap", "× voxels", "Mvoxel/s", "Dice with 0.5", "Dice with the truth"],
            rows,
        )
    )


#: In the order in which the README shows them.
def _live(values: Values) -> str:
    rig = {row["plane_shape"][0]: row for row in values["rig"]}
    rows = [
        [
            f"{row['side']}²",
            f"{row['rate_hz']:g}/s",
            f"{row['p50_s'] * 1e3:.2f} / {row['p99_s'] * 1e3:.2f}",
            f"{row['copy_p50_s'] * 1e3:.2f} / {row['copy_p99_s'] * 1e3:.2f}",
            f"{row['slot_p50_s'] * 1e3:.3f} / {row['slot_p99_s'] * 1e3:.3f}",
            f"{path['sustained_hz']:.0f}/s",
            f"{rig[row['side']]['sustained_hz']:.2g}/s",
        ]
        for row, path in zip(values["push"], values["path"], strict=True)
    ]
    over = [row["overhead"] for row in values["overhead"]]
    memory = values["memory"]
    return (
        "**Beside a camera** (planes of uint16; a push copies the plane and returns, a "
        "slot is written by the camera itself; milliseconds at the median and the 99th "
        "percentile, on cores that blend at that rate)\n\n"
        + table(
            [
                *("plane", "rate", "push", "a plain copy there", "slot"),
                *("the path alone sustains", "default model on these cores"),
            ],
            rows,
        )
        + f"\n\nThe live path adds {min(over):.1%} to {max(over):.1%} to its engine's "
        f"own time; over {memory['minutes']:g} minutes memory grew by "
        f"{memory['rss_span_bytes'] / 2**20:.1f} MiB."
    )


RENDERERS: dict[str, Callable[[Values], str | None]] = {
    "peers": _peers,
    "live": _live,
    "tiling": _tiling,
    "scaling-cap": _cap,
    "scaling-depth": _depth,
    "scaling-size": _size,
    "scaling-seams": _seams,
}


def replaced(readme: str, section: str) -> str:
    """The README with another section; ValueError where it has no place for one."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the README has no {START} … {END}: put them where it goes")
    inside = f"\n\n{section}\n\n" if section else "\n"
    return f"{before}{START}{inside}{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    readme = README.read_text()
    try:
        wanted = replaced(readme, render())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if options.check:
        if wanted != readme:
            print("README.md: run python benchmarks/render_readme.py", file=sys.stderr)
            return 1
        return 0
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
