"""SWC files are read as they are, or refused by a sentence."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurodeploy.data import Pair, read_tracing
from neurodeploy.morphology import (
    Morphology,
    read_swc,
    tracing_distances,
    write_swc,
)
from neurodeploy_runtime import InputError, OutputError


def written(folder: Path, *lines: str) -> Path:
    path = folder / "n.swc"
    path.write_text("\n".join(lines))
    return path


def test_every_odd_file_is_read_or_refused(shared_data: Path) -> None:
    paths = sorted((shared_data / "swc_edge_cases").iterdir())
    assert len(paths) > 50
    for path in paths:
        tree = read_swc(path)
        assert (tree.parent < len(tree)).all()
        assert (tree.parent != np.arange(len(tree))).all()
        assert tree.roots >= 1
        assert np.isfinite(tree.length)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("repeated_id.swc", "given twice"),
        ("Neuron_missing_parents.swc", "5, 216, 427, 638 are absent"),
        ("Neuron_disconnected_components.swc", "5 roots"),
        ("soma_zero_radius.swc", "7 nodes have no radius"),
    ],
)
def test_what_is_odd_is_named(shared_data: Path, name: str, note: str) -> None:
    notes = read_swc(shared_data / "swc_edge_cases" / name).notes
    assert any(note in one for one in notes), notes


def test_coordinates_are_z_y_x_and_columns_x_y_z(tmp_path: Path) -> None:
    tree = read_swc(written(tmp_path, "7 3 1 2 3 0.5 -1", "9 3 4 6 3 0.5 7"))
    np.testing.assert_array_equal(tree.position, [[3, 2, 1], [3, 6, 4]])
    np.testing.assert_array_equal(tree.parent, [-1, 0])
    assert tree.length == 5.0
    assert tree.notes == ()


def test_parents_may_follow_and_a_loop_is_cut(tmp_path: Path) -> None:
    lines = ["1 2 0 0 0 1 2", "2 2 0 0 1 1 3", "3 2 0 0 2 1 1", "4 2 0 0 3 1 4"]
    tree = read_swc(written(tmp_path, *lines))
    np.testing.assert_array_equal(tree.parent, [-1, 2, 0, -1])
    assert any("loops are cut at the nodes 1, 4" in note for note in tree.notes)


def test_a_repeated_id_keeps_both_nodes(tmp_path: Path) -> None:
    lines = ["1 2 0 0 0 1 -1", "2 2 0 0 1 1 1", "2 2 0 9 1 1 1", "3 2 0 0 2 1 2"]
    tree = read_swc(written(tmp_path, *lines))
    np.testing.assert_array_equal(tree.parent, [-1, 0, 0, 1])
    assert any("ids 2 are repeated" in note for note in tree.notes)


def test_voxel_size_of_snt_is_read(tmp_path: Path) -> None:
    head = "# Voxel separation (x,y,z): 0.5, 0.5, 2.0"
    tree = read_swc(written(tmp_path, head, "1 2 1 1 4 1 -1", "2 2 2 1 4 1 1"))
    assert tree.voxel_size_um == (2.0, 0.5, 0.5)
    np.testing.assert_array_equal(
        tree.to_voxels((2.0, 0.5, 0.5)).position, [[2, 2, 2], [2, 2, 4]]
    )


def test_a_voxel_size_that_is_none_is_not_taken_for_one(tmp_path: Path) -> None:
    for sizes in ("0.5, 0.5, 1e999", "0.5, 0.5, 0", "., ., .", "0.5, -1, 2"):
        head = f"# Voxel separation (x,y,z): {sizes}"
        assert read_swc(written(tmp_path, head, "1 2 1 1 4 1 -1")).voxel_size_um is None


def test_a_mark_of_encoding_is_no_column(tmp_path: Path) -> None:
    path = written(tmp_path, "1 2 1 2 3 1 -1")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_swc(path).position.tolist() == [[3, 2, 1]]


def test_columns_may_be_divided_by_commas(tmp_path: Path) -> None:
    for line in (
        "1,2,1.5,2,3,1,-1",
        "1, 2, 1.5, 2, 3, 1, -1",
        "1\t2\t1.5\t2\t3\t1\t-1",
    ):
        assert read_swc(written(tmp_path, line)).position.tolist() == [[3, 2, 1.5]]


def test_a_tracing_that_no_memory_holds_is_refused_before_it_is_sampled(
    tmp_path: Path,
) -> None:
    far = read_swc(written(tmp_path, "1 2 0 0 0 1 -1", "2 2 1e12 0 0 1 1"))
    near = Morphology.from_path([(0, 0, 0), (0, 0, 9)])
    for measure in (lambda: far.samples(1.0), lambda: tracing_distances(near, far)):
        with pytest.raises(InputError, match="too long: 1e\\+12 points"):
            measure()


def test_a_tracing_in_voxels_is_written_and_read_as_one(tmp_path: Path) -> None:
    head = "# Voxel separation (x,y,z): 0.5, 0.5, 2.0"
    tree = read_swc(written(tmp_path, head, "1 2 1 1 10 1 -1", "2 2 2 1 10 1 1"))
    write_swc(tmp_path / "voxels.swc", tree.to_voxels((2.0, 0.5, 0.5)))
    pair = Pair(tmp_path / "absent.tif", tmp_path / "voxels.swc", "tracing")
    np.testing.assert_array_equal(read_tracing(pair).position[0], [5, 2, 2])


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("1 2 0 0 0 1", "line 1 .* has 6 columns"),
        ("1 2 0 0 nan 1 -1", "seven finite numbers"),
        ("1 2 0 zero 0 1 -1", "seven finite numbers"),
        ("1.5 2 0 0 0 1 -1", "seven finite numbers"),
        ("1e300 2 0 0 0 1 -1", "seven finite numbers"),
        ("1 2 10,5 20,25 3,0 1,0 -1", "line 1 .* commas in its numbers"),
        ("# nothing", "holds no node"),
        ("\0\0\0", "no text"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, line: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_swc(written(tmp_path, line))


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.swc cannot be read"):
        read_swc(tmp_path / "absent.swc")


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    n = data.draw(st.integers(1, 30))
    # Any forest: each node's parent comes before it in a hidden order.
    parent = [data.draw(st.integers(-1, i - 1)) for i in range(n)]
    order = np.array(data.draw(st.permutations(range(n))))
    place = np.argsort(order)
    rng = np.random.default_rng(0)
    tree = Morphology(
        position=rng.integers(0, 99, (n, 3)).astype(float),
        radius=np.ones(n),
        parent=np.array([-1 if parent[i] < 0 else place[parent[i]] for i in order]),
        kind=np.full(n, 3),
    )
    path = tmp_path_factory.mktemp("swc") / "a.swc"
    write_swc(path, tree)
    again = read_swc(path)
    assert again.roots == tree.roots

    def edges(one: Morphology) -> list[tuple[float, ...]]:
        a, b = one.segments
        return sorted(map(tuple, np.concatenate([a, b], axis=1)))

    assert edges(again) == edges(tree)


def test_a_place_far_from_the_origin_is_kept_to_a_thousandth(tmp_path: Path) -> None:
    """As in a whole brain in micrometres."""
    line = Morphology.from_path([(0.0, -1e-9, 7.25), (12345.678, 100000.25, 2345678.9)])
    write_swc(tmp_path / "a.swc", line)
    again = read_swc(tmp_path / "a.swc")
    np.testing.assert_allclose(again.position, line.position, rtol=0, atol=1e-3)


def test_a_file_is_not_overwritten(tmp_path: Path) -> None:
    path = written(tmp_path, "1 2 0 0 0 1 -1")
    with pytest.raises(OutputError, match="exists"):
        write_swc(path, read_swc(path))
    write_swc(path, read_swc(path), overwrite=True)
