from pathlib import Path

import pytest

from callgate_server.cli import places
from support.unbuilt import callgated, configure, prepare


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of one's own, on a host where nothing is installed."""
    monkeypatch.chdir(tmp_path)
    production = tmp_path / "etc/callgate.yaml"
    monkeypatch.setattr(places, "CONFIGS", (*places.CONFIGS[:2], production))


def test_without_a_word_it_is_that_of_this_folder_or_of_its_development_gateway_or_of_production(
    tmp_path: Path,
) -> None:
    (tmp_path / "etc").mkdir()
    prepare(tmp_path / "etc")
    assert f"{tmp_path}/etc/callgate.yaml is valid" in callgated("check-config").stdout
    (tmp_path / ".callgate").mkdir()
    configure(tmp_path / ".callgate")
    assert ".callgate/images: No such file" in callgated("check-config").stderr
    prepare(tmp_path)
    assert callgated("check-config").stdout.startswith("callgate.yaml is valid")


@pytest.mark.parametrize(
    "command",
    [("serve",), ("audit", "show"), ("audit", "verify"), ("catalog", "list"), ("policy", "schema"), ("check-config",)],
)
def test_where_there_is_none_all_places_are_named_and_the_option(command: tuple[str, ...]) -> None:
    done = callgated(*command)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "none of callgate.yaml, .callgate/callgate.yaml, /etc/callgate/callgate.yaml" in done.stderr
    assert "--config" in done.stderr


def test_one_that_was_given_is_in_the_advice(tmp_path: Path) -> None:
    (tmp_path / "my own").mkdir()
    prepare(tmp_path / "my own")
    (tmp_path / "my own/catalog.lock").unlink()
    done = callgated("catalog", "list", "-c", "my own/callgate.yaml")
    assert done.exit_code == 1
    assert "run `callgated catalog build -c 'my own/callgate.yaml'`" in done.stderr
