"""The model card: what a person reads before trusting a bundle."""

from __future__ import annotations

from typing import Any

from neurodeploy_runtime._spec import ModelSpec

_STEPS = {
    "onnx": "PyTorch → ONNX, ONNX Runtime on a CPU",
    "fp16": "PyTorch → typed FP16, rounded after every node on a CPU",
}


def render(spec: ModelSpec, about: str | None = None) -> str:
    """The card as Markdown; `about` takes the place of what a person should write."""
    voxel = (
        " × ".join(f"{v:g}" for v in spec.voxel_size_um) + " µm (z, y, x)"
        if spec.voxel_size_um
        else "not recorded"
    )
    opening = about or (
        f"# {spec.name}\n\nA network that segments neurites in 3D microscopy volumes; "
        "a bundle of neurodeploy."
    )
    lines = [
        opening.strip(),
        "",
        "## How it is run",
        "",
        f"- mode: {spec.mode}; tile {spec.tile}, window {spec.window} voxels (z, y, x)",
        f"- trained at a voxel size of {voxel}",
        f"- input: `{spec.normalisation}`, its constants frozen for each volume",
        f"- a voxel is a neurite above probability {spec.threshold:g}",
        f"- engines are made for batches up to {spec.max_batch}",
        "",
        "## Does the export still say the same?",
        "",
        "| step | tiles | labels flipped | Dice | max ∣Δp∣ | p99.9 ∣Δp∣ | foreground |",
        "|---|---|---|---|---|---|---|",
    ]
    steps: dict[str, Any] = spec.parity.get("steps", {})
    for name, step in steps.items():
        lines.append(
            f"| {_STEPS.get(name, name)} | {step['tiles']} | {step['flips']:.2e} | "
            f"{step['dice']:.5f} | {step['max_difference']:.2e} | "
            f"{step['p999_difference']:.2e} | {step['foreground']:.2%} |"
        )
    lines += ["", "`neurodeploy verify` repeats this on your machine.", ""]
    if spec.training:
        lines += ["## Training", ""]
        lines += [
            f"- {key}: {_told(key, value)}"
            for key, value in sorted(spec.training.items())
        ]
        lines.append("")
    if about is not None:
        return "\n".join(lines)
    lines += [
        "## Limits",
        "",
        "It knows the kind of image it was trained on. Look at its answers on your own "
        "before you count with them.",
        "",
    ]
    return "\n".join(lines)


def _told(key: str, value: Any) -> Any:
    """A value as a card says it; of hundreds of volumes, how many of each kind."""
    if key != "volumes" or not isinstance(value, dict):
        return value
    return (
        ", ".join(f"{len(names)} {kind}" for kind, names in value.items() if names)
        + " (`model.json` names them)"
    )
