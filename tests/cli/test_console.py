"""What is printed is what was meant."""

import io

from neurodeploy.cli._console import console


def test_an_extra_in_brackets_is_text_and_not_markup() -> None:
    out = console()
    out.file = io.StringIO()
    out.print('pip install "neurodeploy[cluster]"')
    assert "neurodeploy[cluster]" in out.file.getvalue()
