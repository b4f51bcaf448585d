"""The README's figures are those of the result files, and nobody's typing."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import _results  # noqa: E402
import render_readme  # noqa: E402
import whole_brain  # noqa: E402


def test_the_readme_shows_what_the_results_hold() -> None:
    readme = render_readme.README.read_text()
    if render_readme.START not in readme:
        pytest.skip("this README has no section for figures")
    assert render_readme.replaced(readme, render_readme.render()) == readme


def test_a_changed_figure_changes_the_section(tmp_path: Path) -> None:
    values = {
        **_results.stamp(),
        "rows": [{"shape": [n, n, n]} for n in (128, 256)],
        "cpu_exponent": 1.25,
    }
    (tmp_path / "scaling-size.json").write_text(json.dumps(values))
    before = render_readme.render(tmp_path)
    assert "1.25" in before
    (tmp_path / "scaling-size.json").write_text(
        json.dumps({**values, "cpu_exponent": 0.75})
    )
    assert "0.75" in render_readme.render(tmp_path)


def test_the_section_takes_its_place_and_nothing_else() -> None:
    readme = f"# a\n\n{render_readme.START}\nold\n{render_readme.END}\n\nb\n"
    new = render_readme.replaced(readme, "figures")
    assert new.startswith("# a\n")
    assert new.endswith("\n\nb\n")
    assert "old" not in new
    assert render_readme.replaced(new, "figures") == new
    with pytest.raises(ValueError, match="put them"):
        render_readme.replaced("# a", "figures")


def test_every_result_says_where_when_and_how() -> None:
    for path in sorted(_results.RESULTS.glob("*.json")):
        values = json.loads(path.read_text())
        for key in ("machine", "versions", "date", "command"):
            assert values.get(key), f"{path.name} lacks {key}"


@pytest.mark.parametrize(("depth", "workers"), [(5000, 1), (5000, 8), (300, 64)])
def test_shares_cover_every_plane_once(depth: int, workers: int) -> None:
    found = whole_brain.shares(depth, 256, workers)
    assert found[0][0] == 0
    assert found[-1][1] == depth
    assert all(a[1] == b[0] for a, b in pairwise(found))
    assert all(start % 256 == 0 for start, _ in found)


def test_more_workers_are_never_slower_and_storage_is_a_floor() -> None:
    machine = whole_brain.Machine("m", 0.1, (96, 96, 96), 0.25, measured=True)
    shape = (5000, 12_500, 16_000)
    ended = [whole_brain.simulate(machine, shape, n, 1e12, 2) for n in (1, 8, 64)]
    assert ended[0].seconds > ended[1].seconds > ended[2].seconds
    assert ended[2].limit == "20 layers of units for 64 workers"
    slow = whole_brain.simulate(machine, shape, 64, 1e6, 2)
    assert slow.limit == "storage"
    assert slow.seconds == pytest.approx(slow.read_s)


def test_what_the_storage_takes_holds_the_coarser_levels() -> None:
    machine = whole_brain.Machine("m", 0.1, (96, 96, 96), 0.25, measured=True)
    shape = (1000, 1000, 1000)
    ended = whole_brain.simulate(machine, shape, 1, 1e9, 2)
    # An eighth, a sixty-fourth and so on beside the volume itself.
    assert ended.written_bytes > 1.14e9
    assert ended.read_s == (ended.read_bytes + ended.written_bytes) / 1e9
