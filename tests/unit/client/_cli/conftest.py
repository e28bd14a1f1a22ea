"""What the tests of commands share: the environment that names the gateway."""

from pathlib import Path

import pytest

from support.fake_gateway import TOKEN, FakeGateway


@pytest.fixture
def commands(fake: FakeGateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeGateway:
    monkeypatch.setenv("CALLGATE_TARGET", fake.target)
    monkeypatch.setenv("CALLGATE_TOKEN", TOKEN)
    monkeypatch.delenv("CALLGATE_TOKEN_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    return fake
