"""What a process may hold is the least of what the machine and its groups have."""

from pathlib import Path

import pytest

from neurodeploy_runtime._rss import machine_memory

PHYSICAL = machine_memory(Path("/nowhere"))
MB = 2**20


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "limits", "wanted"),
    [
        ("0::/job/step", {"job/memory.max": 96, "job/step/memory.max": 128}, 96),
        ("0::/job/step", {"job/step/memory.max": 64}, 64),
        ("0::/", {"memory.max": 80}, 80),
        # A container whose path is the host's, and one with no limit of its own.
        ("0::/outside/of/it", {"memory.max": 80}, 80),
        (
            "5:cpu:/job\n4:memory:/job\n0::/",
            {"memory/job/memory.limit_in_bytes": 72},
            72,
        ),
        ("4:memory,cpu:/a", {"memory/memory.limit_in_bytes": 72}, 72),
        ("4:memory:/a", {"memory/a/memory.limit_in_bytes": 2**43 - 1}, None),
        ("0::/job", {}, None),
        ("no such line", {"memory.max": 80}, None),
    ],
)
def test_a_limit_of_a_control_group_is_known(
    tmp_path: Path, groups: str, limits: dict[str, int], wanted: int | None
) -> None:
    files = {f"sys/fs/cgroup/{k}": f"{v * MB}\n" for k, v in limits.items()}
    write(tmp_path, **{"proc/self/cgroup": groups}, **files)
    found = machine_memory(tmp_path)
    assert found == (PHYSICAL if wanted is None else wanted * MB)


def test_no_limit_is_no_number(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/memory.max": "max\n"}
    assert machine_memory(write(tmp_path, **files)) == PHYSICAL
    assert machine_memory() is not None
