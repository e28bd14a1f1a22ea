from pathlib import Path

import pytest
from typer.testing import Result

from support.unbuilt import callgated, prepare, write_policy


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)


def explain(*words: str) -> Result:
    return callgated("policy", "explain", "--tenant", "acme", "--agent", "bot", "--role", "user", *words)


def reach(*words: str) -> Result:
    return explain("probe.reach", "--to", *words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("https://evil.example/x", "--method", "GET"), "no egress rule of probe.reach names this host, method and"),
        (("https://api.example.com/x", "--method", "POST"), "no egress rule of probe.reach names this host, method"),
        (("https://api.example.com/x",), "those for this host look at each request; say it with --method"),
    ],
)
def test_what_no_rule_names_is_denied_in_the_first_line_though_policy_allows_it(
    words: tuple[str, ...], says: str
) -> None:
    done = reach(*words)
    assert (done.exit_code, done.stdout.splitlines()[0]) == (
        1,
        f"deny: probe.reach, called by acme/bot, reaching {words[0]}",
    )
    assert says in done.stdout
    assert ": allow" in done.stdout


def test_what_rules_and_policy_allow_is_allowed_and_what_policy_denies_is_not(tmp_path: Path) -> None:
    allowed = reach("https://api.example.com/x", "--method", "GET")
    assert (allowed.exit_code, allowed.stdout.startswith("allow: ")) == (0, True)
    assert reach("tcp://db.example.com:5432").exit_code == 0
    write_policy(tmp_path, "")
    denied = reach("https://api.example.com/x", "--method", "GET")
    assert (denied.exit_code, denied.stdout.startswith("deny: ")) == (1, True)
    assert "rules of probe.reach: api.example.com:443" in denied.stdout


def test_a_method_is_meant_however_it_is_written() -> None:
    assert reach("https://api.example.com/x", "--method", "get").exit_code == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("probe.reach", "--to", "tcp://db.example.com"), "like tcp://db.example.com:5432"),
        (("probe.reach", "--to", "tcp://db.example.com:5432", "--method", "GET"), "without --method"),
        (("probe.reach", "--to", "ftp://a.example"), "write one of https, http, tcp"),
        (("no.such",), "No such tool"),
        (("probe.reach", "--arguments", "{"), "JSON"),
        (("probe.reach", "--arguments", '{"name": 7}'), "name"),
        (("probe.reach", "-c", "absent.yaml"), "absent.yaml: cannot be read"),
    ],
)
def test_a_question_that_cannot_be_answered_has_another_exit_status_than_a_denial(
    words: tuple[str, ...], says: str
) -> None:
    done = explain(*words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert says in done.stderr
