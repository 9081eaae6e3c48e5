"""The overview in the terminal, where there is no server to ask."""

from __future__ import annotations

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import status


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        (None, "Set PREFECT_API_URL"),
        ("http://127.0.0.1:9/api", "The Prefect server at http://127.0.0.1:9/api cannot be reached."),
    ],
)
def test_a_server_that_cannot_be_asked_is_told(
    url: str | None, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence and its own exit code, and no traceback."""
    with temporary_settings({PREFECT_API_URL: url}):
        code = status.main()

    assert code == 2
    assert sentence in capsys.readouterr().err
