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
from math import prod
from pathlib import Path
from typing import Any

import _quality
from _results import RESULTS, table

from neurodeploy_runtime import default_bundle_path, load_bundle

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
        former = of_former_model(values)
        if text and former:
            text += f"\n\n*{former}*"
        if text:
            parts.append(f"{text}\n\n<sub>{_origin(values)}</sub>")
    return "\n\n".join(parts)


def of_former_model(values: Values) -> str | None:
    """That a result is of a default model that no longer ships, as a sentence.

    By the bundle's digest where the result holds one, else by the threshold, or by the
    cost of a voxel; None where it is of the model that ships, or of none.
    """
    path = default_bundle_path()
    if not path.is_dir():
        return None
    bundle = load_bundle(path)
    spec = bundle.spec
    default = values.get("default") or {}
    digest = values.get("digest") or default.get("digest")
    named = values.get("bundle") or default.get("name") or spec.name
    date = values["date"]
    if digest is not None:
        former = named == spec.name and digest != bundle.digest
    elif "rig" in values:
        if all(row.get("model") != spec.name for row in values["rig"]):
            return None
        date = values.get("stamps", {}).get("rig", values)["date"]
        return f"Of which default model it is, the result of {date} does not say."
    elif "threshold" in values:
        former = values["threshold"] != spec.threshold
    else:
        costs = [
            row["kflop_per_voxel"]
            for row in values.get("rows", [])
            if row.get("network") == "default"
        ]
        shipped = (spec.flop_per_tile or 0.0) / prod(spec.tile) / 1e3
        former = any(abs(cost / shipped - 1) > 0.01 for cost in costs)
    if not former:
        return None
    return (
        f"What this says of the default model is of a former model, {date}; the one "
        "that ships was not measured since."
    )


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
    command = f"`{values['command']}`"
    if values.get("dirty"):
        command += f", with changes that commit {values['commit']} does not hold"
    return f"{where}; {libraries}; {values['date']}; {command}"


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


#: Least times MONAI in fp32, and in bf16, that were asked of a variant.
ASKED_OVER_FP32 = {
    "neurodeploy, ONNX Runtime fp32": 1.35,
    "neurodeploy, OpenVINO fp32": 2.1,
    "neurodeploy, OpenVINO bf16": 4.2,
}
ASKED_OVER_BF16 = {"neurodeploy, OpenVINO bf16": 1.8}
#: Least times the other network's speed that was asked of the default one, and the most
#: wall time over tiles that was asked of ours.
ASKED_OF_DEFAULT = 3.0
ASKED_OVER_TILES = 1.05

#: Share of a pair's time that the host may give to others before it is disturbed.
DISTURBED_FROM = 0.05

MISSED, DISTURBED = " †", " ‡"


def _below(value: Values | None, asked: float | None) -> bool:
    return value is not None and asked is not None and value["median"] < asked


def _peers(values: Values) -> str:
    same = "neurodeploy, torch fp32"
    by_name = {row["variant"]: row for row in values["rows"]}
    rows = []
    for row in values["rows"]:
        name = row["variant"]
        labels = row["labels"] or {}
        agreed = f"{labels[same]:.5f}" if same in labels else "–"
        fp32, bf16 = row["over_monai_fp32"], row["over_monai_bf16"]
        slow = _ours(name) and row["over_tiles"]["median"] > ASKED_OVER_TILES
        rows.append(
            [
                name + DISTURBED * _disturbed(row),
                row["wall_s"]["n"],
                f"{row['mvoxel_per_s']['median']:.3f}",
                _times(fp32) + MISSED * _below(fp32, ASKED_OVER_FP32.get(name)),
                _times(bf16) + MISSED * _below(bf16, ASKED_OVER_BF16.get(name)),
                row["tiles"],
                _times(row["over_tiles"]) + MISSED * slow,
                f"{row['peak_rss_bytes'] / 2**20:.0f}",
                agreed,
            ]
        )
    size = " × ".join(map(str, values["shape"]))
    return (
        f"**One network in every engine, file to file** (ViT-S UNETR, "
        f"{values['parameters'] / 1e6:.0f} M parameters, "
        f"{values['flop_per_tile'] / 1e9:.0f} GFLOP a tile of "
        f"{values['size']['tile']}³, overlap {values['overlap']}, {size} voxels, "
        "× is taken against a run right before, with least and most; MiB is the peak "
        "of the process during the run, libraries and weights in it)\n\n"
        + table(
            [
                "",
                "turns",
                "Mvoxel/s",
                "× MONAI torch fp32",
                "× MONAI torch bf16",
                "tiles",
                "wall / tiles alone",
                "MiB of the process",
                "labels as torch fp32",
            ],
            rows,
        )
        + f"\n\n{_asked_of_peers(by_name)}"
        + _references(values["rows"])
        + _disturbances(values["rows"])
    )


def _disturbed(row: Values) -> bool:
    """Whether even its best run, with the one before it, had to share the machine."""
    known = [share for share in row.get("stolen", []) if share is not None]
    return bool(known) and min(known) > DISTURBED_FROM


def _disturbances(rows: list[Values]) -> str:
    shares = [share for row in rows if _disturbed(row) for share in row["stolen"]]
    if not shares:
        return ""
    return (
        f"{DISTURBED} disturbed: in the best of several tries the host gave "
        f"{min(shares):.0%} to {max(shares):.0%} of the machine's time to others."
    )


def _ours(name: str) -> bool:
    """Whether a variant is our tiler around an engine that we ship."""
    return name.startswith(("neurodeploy, O", "default bundle"))


def _asked_of_peers(rows: dict[str, Values]) -> str:
    """What was asked of the variants that were measured, and what was missed."""
    told = []
    for kind, asked in (("fp32", ASKED_OVER_FP32), ("bf16", ASKED_OVER_BF16)):
        for name, times in asked.items():
            found = rows.get(name, {}).get(f"over_monai_{kind}")
            if found is not None:
                engine = name.removeprefix("neurodeploy, ")
                told.append(
                    f"{engine} {times} × MONAI torch {kind}, "
                    + _told(found["median"], missed=found["median"] < times)
                )
    for name in rows:
        engine = name.removeprefix("default bundle, ")
        other = rows.get(f"neurodeploy, {engine}")
        if engine == name or other is None:
            continue
        if rows[name]["over_monai_fp32"] and other["over_monai_fp32"]:
            times = (
                rows[name]["over_monai_fp32"]["median"]
                / other["over_monai_fp32"]["median"]
            )
            told.append(
                f"the default bundle {ASKED_OF_DEFAULT:g} × the ViT-S UNETR in "
                f"{engine}, " + _told(times, missed=times < ASKED_OF_DEFAULT)
            )
    walls = [row["over_tiles"]["median"] for name, row in rows.items() if _ours(name)]
    if walls:
        above = sum(wall > ASKED_OVER_TILES for wall in walls)
        told.append(
            f"wall over tiles alone at most {ASKED_OVER_TILES}, "
            f"{min(walls):.2f} to {max(walls):.2f}, "
            + (f"**missed** in {above} of {len(walls)}" if above else "reached")
        )
    return f"Asked (†: missed): {'; '.join(told)}." if told else ""


def _told(found: float, *, missed: bool) -> str:
    return f"{found:.2f}, {'**missed**' if missed else 'reached'}"


def _references(rows: list[Values]) -> str:
    """Seconds of the runs that ratios are taken against, where the result has them."""
    spans = [row["reference_s"] for row in rows if "reference_s" in row]
    if not spans:
        return ""
    least = min(span["least"] for span in spans)
    most = max(span["most"] for span in spans)
    return (
        f" The runs of MONAI in torch fp32 that they are taken against took "
        f"{least:.1f} to {most:.1f} s."
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
        + _not_fastest(values["rows"])
    )


def _not_fastest(rows: list[Values]) -> str:
    """Where a peer is as fast as ours or faster, as a sentence."""
    told = []
    for size in sorted({row["size"] for row in rows}):
        rates = {
            row["tiler"]: row["mvoxel_per_cpu_s"]["median"]
            for row in rows
            if row["size"] == size
        }
        ours = rates.pop("neurodeploy", None)
        if ours is None:
            continue
        faster = [f"{name} ({rate:.1f})" for name, rate in rates.items() if rate > ours]
        if faster:
            told.append(f"at {size}³ {', '.join(faster)} against {ours:.1f}")
    if not told:
        return ""
    return f"\n\nNot the fastest: {'; '.join(told)} Mvoxel per CPU-second."


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
    rows = sorted(values["rows"], key=lambda row: prod(row["shape"]))
    costs = [
        (row["cpu_s"] / prod(row["shape"]) * 1e9, f"{row['shape'][0]}³") for row in rows
    ]
    (least, cheapest), (first, small), (last, large) = min(costs), costs[0], costs[-1]
    between = f", {least:.0f} at {cheapest}, where it is least," * (cheapest != large)
    return (
        f"**Size**: CPU time around the network is {first:.0f} ns a voxel at {small}"
        f"{between} and {last:.0f} at {large}; "
        f"over all sizes it grows as voxels to the {values['cpu_exponent']:.2f}."
    )


def _wall(values: Values) -> str:
    engines = list(dict.fromkeys(row["engine"] for row in values["rows"]))
    edges = sorted({row["shape"][0] for row in values["rows"]})
    found = {(row["engine"], row["shape"][0]): row for row in values["rows"]}

    def cell(row: Values) -> str:
        over = row["over_tiles"]
        return (
            f"{over:.3f}{MISSED * (over > ASKED_OVER_TILES)}, "
            f"busy {row['engine_busy']:.1%}{DISTURBED * _was_disturbed(row)}"
        )

    rows = [
        [name, *(cell(found[name, e]) for e in edges if (name, e) in found)]
        for name in engines
    ]
    return (
        "**A run over its tiles alone** (the default bundle, file to file, wall time "
        "over that of its tiles in isolation, and the share of the run in which the "
        f"engine was busy; {ASKED_OVER_TILES} and 95 % asked,{MISSED}: missed)\n\n"
        + table(["", *(f"{edge}³" for edge in edges)], rows)
    )


def _was_disturbed(row: Values) -> bool:
    return (row.get("stolen") or 0.0) > DISTURBED_FROM


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


def _milliseconds(row: Values, of: str = "") -> str:
    return f"{row[f'{of}p50_s'] * 1e3:.2f} / {row[f'{of}p99_s'] * 1e3:.2f}"


def _live(values: Values) -> str:
    rig = {row["plane_shape"][0]: row for row in values["rig"]}
    streamed = {row["side"]: row for row in values["streamed"]}
    rows = [
        [
            f"{row['side']}²",
            f"{row['rate_hz']:g}/s",
            _milliseconds(row),
            _milliseconds(streamed[row["side"]]),
            _milliseconds(row, "copy_"),
            "–"
            if "slot_p50_s" not in row
            else f"{row['slot_p50_s'] * 1e3:.3f} / {row['slot_p99_s'] * 1e3:.3f}",
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
                *("plane", "rate", "push", "push past the cache"),
                *("a plain copy there", "slot"),
                *("the path alone sustains", "default model on these cores"),
            ],
            rows,
        )
        + "\n\nPast the cache: in a program started with the variable that "
        "`neurodeploy rig-check` names where it helps."
        + f" The live path adds {min(over):.1%} to {max(over):.1%} to its engine's "
        f"own time; over {memory['minutes']:g} minutes memory grew by "
        f"{memory['rss_span_bytes'] / 2**20:.1f} MiB."
    )


def _default_model(values: Values) -> str:
    """With the five folds of its training: of the result, else of the same bundle."""
    folds = values.get("five_folds")
    path = default_bundle_path()
    if folds is None and path.is_dir() and of_former_model(values) is None:
        figures = load_bundle(path).spec.training.get("figures", {})
        folds = figures.get("five_folds")
    return _quality.text(values, folds)


def _flips(values: Values) -> str:
    said = {
        row["flips"]: f"{row['average_precision']:.3f} and {row['dice']:.3f}"
        for row in values["rows"]
    }
    return (
        f"`segment --flips`, for four times the work: {said['y and x']} instead of "
        f"{said['none']}, average precision and best Dice in those five folds."
    )


def _folds(values: Values) -> str:
    rows = [
        [
            row["network"],
            f"{row['kflop_per_voxel']:.1f}",
            f"{row['average_precision']:.3f}",
            f"{row['dice']:.3f}",
        ]
        for row in values["rows"]
    ]
    return (
        "**The network of `peers.py`, trained as the default one** (five folds over "
        f"TRAILMAP's cubes: {values['steps']} steps on {values['volumes']} simulated "
        f"volumes, {values['cube_steps']} with eight cubes, the other two measured; "
        "shorter than the training of the model that ships)\n\n"
        + table(["network", "kFLOP per voxel", "AP", "best Dice"], rows)
    )


#: In the order in which the README shows them.
RENDERERS: dict[str, Callable[[Values], str | None]] = {
    "peers": _peers,
    "live": _live,
    "tiling": _tiling,
    "scaling-cap": _cap,
    "scaling-depth": _depth,
    "scaling-size": _size,
    "scaling-wall": _wall,
    "scaling-seams": _seams,
    "default_model": _default_model,
    "flips": _flips,
    "folds": _folds,
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
