"""The commands of the terminal, where there is no server to ask."""

from __future__ import annotations

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import automations, status


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


def test_no_automation_is_made_at_a_server_that_nobody_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect would start a server of its own for it, and everything would seem to be made."""
    monkeypatch.setattr("sys.argv", ["automations"])

    with temporary_settings({PREFECT_API_URL: None}):
        code = automations.main()

    assert code == 1
    assert "Set PREFECT_API_URL" in capsys.readouterr().err
