"""Fixtures that every part of the suite shares."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real microscopy data that lies beside a developer's checkout."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real data beside this checkout ({path} is absent)")
    return path
