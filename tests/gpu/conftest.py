"""What runs here runs on the card, whatever the other tests name as their device."""

import pytest


@pytest.fixture(autouse=True)
def on_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSUGIKI_DEVICE", "cuda")
