"""What a run that continues knows of the tiles that an earlier one skipped."""

from pathlib import Path

import numpy as np
import pytest

from neurodeploy_runtime import Normalisation, SkipSettings, WriteError
from neurodeploy_runtime._skip import BackgroundSkip

COUNTS = 40, 40, 40
DARK = [np.zeros((8, 16, 16), np.uint8)]


def skip(log: Path) -> BackgroundSkip:
    settings = SkipSettings(audit_share=0)
    return BackgroundSkip(settings, COUNTS, (8, 16, 16), 0.5, log)


def judged(log: Path, tile: tuple[int, int, int], lost: int | None) -> BackgroundSkip:
    one = skip(log)
    one.decide(tile, DARK, Normalisation("background-asinh", 10, 1))
    if lost is not None:
        one.audit(tile, np.repeat(np.float32([0, 1]), [1, lost]))
    one.flush()
    return one


@pytest.mark.parametrize("lost", [None, 345])
def test_a_line_that_a_kill_has_torn_says_nothing(
    tmp_path: Path, lost: int | None
) -> None:
    """Neither of another tile, with what comes behind it, nor of a smaller loss."""
    whole = judged(tmp_path / "whole.log", (2, 3, 4), lost)
    text = (tmp_path / "whole.log").read_bytes()
    for kept in range(len(text)):
        log = tmp_path / "torn.log"
        log.write_bytes(text[:kept])
        again = judged(log, (5, 6, 7), 7)
        fresh = skip(log)
        fresh.recall([log])
        assert set(map(tuple, np.argwhere(fresh.map))) <= {(2, 3, 4), (5, 6, 7)}
        assert fresh._lost.items() <= (whole._lost | again._lost).items()
        assert fresh._lost[5, 6, 7] == 7


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="make room, then run the same command"):
        judged(tmp_path / "no" / "skip-1.log", (1, 2, 3), None)


def test_a_loss_is_a_share_of_what_is_found_and_lost(tmp_path: Path) -> None:
    one = judged(tmp_path / "skip.log", (1, 2, 3), 100)
    for tile in ((1, 2, 4), (1, 2, 5), (1, 2, 6)):
        one.decide(tile, DARK, Normalisation("background-asinh", 10, 1))
    # One of four skipped tiles was run, and held 100 voxels.
    for found, share in ((3600, 0.1), (400, 0.5), (0, 1.0)):
        report = one.report(found, 64_000)
        assert report["lost_voxels"] == 400
        assert report["lost_share"] == pytest.approx(share)
        upper = report["lost_share_upper"]
        assert upper is not None
        assert share <= upper <= 1
