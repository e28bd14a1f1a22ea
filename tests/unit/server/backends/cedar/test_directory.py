import os
import threading
from pathlib import Path

import pytest

from callgate_server.backends.cedar.directory import MAX_FILE_BYTES, MAX_FILES, PolicyDirectory, Refreshed
from callgate_server.model.egress import EgressAsk
from callgate_server.model.verdict import Ruling
from support.cedar_catalog import CATALOG, DEVELOPER, FETCH, NOON, PYTHON, SHELL

PERMIT_ALL = '@id("all") permit(principal, action in Action::"call", resource);\n'
FORBID_SHELL = '@id("no-shell") forbid(principal, action == Action::"call:shell.run", resource);\n'
BROKEN = '@id("typo") permit(principal, action in Action::"call", resource) when { resource.rsik > 3 };\n'


class Rules:
    """A directory of policies and the alarms that were raised."""

    def __init__(self, path: Path, **files: str) -> None:
        self.path = path
        self.alarms: list[str] = []
        for name, text in files.items():
            self.write(name, text)
        self.live = PolicyDirectory(path, CATALOG, self.alarms.append, lambda: NOON)

    def write(self, name: str, text: str) -> None:
        (self.path / f"{name}.cedar").write_text(text)

    def shell(self) -> Ruling:
        return self.live.decide(DEVELOPER, SHELL, {}).ruling

    def refresh_twice(self) -> Refreshed:
        self.live.refresh()
        return self.live.refresh().outcome


def test_all_files_of_the_directory_are_one_set(tmp_path: Path) -> None:
    rules = Rules(tmp_path, a=PERMIT_ALL, b=FORBID_SHELL)
    (tmp_path / "notes.txt").write_text("not a policy")
    assert rules.shell() is Ruling.DENY
    assert rules.live.decide(DEVELOPER, PYTHON, {"code": ""}).ruling is Ruling.ALLOW
    assert not rules.live.could_allow(DEVELOPER, SHELL)
    assert rules.live.explain(DEVELOPER, SHELL, {}).parts[0].deciding[0].file == "b.cedar"


def test_empty_directory_denies_everything(tmp_path: Path) -> None:
    assert Rules(tmp_path).shell() is Ruling.DENY


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (BROKEN.encode(), r"^p\.cedar:1: policy `typo`: attribute `rsik`"),
        (b"\xff", r"^p\.cedar:1: not UTF-8"),
        (b" " * (MAX_FILE_BYTES + 1), r"^p\.cedar:1: larger than"),
    ],
)
def test_broken_set_refuses_the_start(tmp_path: Path, content: bytes, fault: str) -> None:
    (tmp_path / "p.cedar").write_bytes(content)
    with pytest.raises(ValueError, match=fault):
        Rules(tmp_path)


def test_missing_directory_refuses_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        Rules(tmp_path / "absent")


def test_file_that_cannot_be_read_refuses_the_start(tmp_path: Path) -> None:
    (tmp_path / "p.cedar").symlink_to(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"^p\.cedar:1: cannot be read"):
        Rules(tmp_path)


def test_too_many_files_refuse_the_start(tmp_path: Path) -> None:
    for number in range(MAX_FILES + 1):
        (tmp_path / f"{number}.cedar").touch()
    with pytest.raises(ValueError, match="more than"):
        Rules(tmp_path)


def test_unchanged_files_are_not_loaded_again(tmp_path: Path) -> None:
    rules = Rules(tmp_path, a=PERMIT_ALL)
    before = rules.live.live
    report = rules.live.refresh()
    assert (report.outcome, report.policies, report.version) == (Refreshed.UNCHANGED, 1, before.version)
    assert rules.live.live is before


def test_change_is_taken_up_when_it_has_settled(tmp_path: Path) -> None:
    rules = Rules(tmp_path, a=PERMIT_ALL)
    rules.write("b", FORBID_SHELL)
    assert rules.live.refresh().outcome is Refreshed.SETTLING
    assert rules.shell() is Ruling.ALLOW
    report = rules.live.refresh()
    assert (report.outcome, report.policies) == (Refreshed.LOADED, 2)
    assert rules.shell() is Ruling.DENY
    assert rules.live.refresh().outcome is Refreshed.UNCHANGED
    assert rules.alarms == []


def test_half_a_copy_is_never_live(tmp_path: Path) -> None:
    """A set without its last forbid is a valid set: it must not be taken for the whole."""
    rules = Rules(tmp_path, a=FORBID_SHELL)
    rules.write("a", PERMIT_ALL)
    assert rules.live.refresh().outcome is Refreshed.SETTLING
    rules.write("a", PERMIT_ALL + FORBID_SHELL)
    assert rules.live.refresh().outcome is Refreshed.SETTLING
    assert rules.live.refresh().outcome is Refreshed.LOADED
    assert rules.shell() is Ruling.DENY


def test_edit_of_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    rules = Rules(tmp_path, a=PERMIT_ALL)
    times = (tmp_path / "a.cedar").stat()
    rules.write("a", PERMIT_ALL.replace('"all"', '"any"'))

    os.utime(tmp_path / "a.cedar", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert rules.refresh_twice() is Refreshed.LOADED
    assert rules.live.decide(DEVELOPER, SHELL, {}).policies == ("any",)


def test_broken_set_keeps_the_old_one_live_and_is_news_once(tmp_path: Path) -> None:
    rules = Rules(tmp_path, a=PERMIT_ALL + FORBID_SHELL)
    before = rules.live.live
    rules.write("a", PERMIT_ALL + BROKEN)
    rules.live.refresh()
    for turn in range(3):
        report = rules.live.refresh()
        assert report.new is (turn == 0)
        assert report.outcome is Refreshed.BROKEN
        assert report.faults == "a.cedar:2: policy `typo`: attribute `rsik` on entity type `Tool` not found"
    assert rules.live.live is before
    assert rules.shell() is Ruling.DENY
    assert rules.alarms == []


def test_mended_set_is_taken_up_and_a_new_fault_is_news_again(tmp_path: Path) -> None:
    rules = Rules(tmp_path, a=PERMIT_ALL)
    rules.write("a", BROKEN)
    assert rules.refresh_twice() is Refreshed.BROKEN
    rules.write("a", FORBID_SHELL)
    assert rules.refresh_twice() is Refreshed.LOADED
    rules.write("a", BROKEN)
    rules.live.refresh()
    assert [rules.live.refresh().new for _ in range(2)] == [True, False]


def test_return_to_the_live_set_after_a_broken_one_is_no_change(tmp_path: Path) -> None:
    rules = Rules(tmp_path, a=PERMIT_ALL)
    rules.write("a", BROKEN)
    assert rules.refresh_twice() is Refreshed.BROKEN
    rules.write("a", PERMIT_ALL)
    assert rules.live.refresh().outcome is Refreshed.UNCHANGED


def test_lost_directory_keeps_the_old_set_live(tmp_path: Path) -> None:
    directory = tmp_path / "policies"
    directory.mkdir()
    rules = Rules(directory, a=FORBID_SHELL + PERMIT_ALL)
    directory.rename(tmp_path / "gone")
    reports = [rules.live.refresh() for _ in range(3)]
    assert [report.outcome for report in reports] == [Refreshed.BROKEN] * 3
    assert [report.new for report in reports] == [True, False, False]
    assert rules.shell() is Ruling.DENY


def test_emptied_directory_denies_everything(tmp_path: Path) -> None:
    rules = Rules(tmp_path, a=PERMIT_ALL)
    (tmp_path / "a.cedar").unlink()
    assert rules.refresh_twice() is Refreshed.LOADED
    assert rules.shell() is Ruling.DENY


def test_schema_is_there_for_authors(tmp_path: Path) -> None:
    assert 'action "call:python.run"' in Rules(tmp_path).live.schema_text


def test_every_decision_is_made_by_one_set_while_sets_change(tmp_path: Path) -> None:
    """Each set allows under its own policy id: a mixed decision would name the other's."""
    sets = {name: PERMIT_ALL.replace('"all"', f'"{name}"') for name in ("one", "two")}
    rules = Rules(tmp_path, a=sets["one"])
    versions = {rules.live.live.version: "one"}
    rules.write("a", sets["two"])
    rules.refresh_twice()
    versions[rules.live.live.version] = "two"
    seen: list[tuple[str, tuple[str, ...]]] = []
    done = threading.Event()

    def decide() -> None:
        while not done.is_set():
            verdict = rules.live.decide(DEVELOPER, SHELL, {})
            seen.append((verdict.policy_version, verdict.policies))

    thread = threading.Thread(target=decide)
    thread.start()
    for round_number in range(2000):
        rules.write("a", sets["one" if round_number % 2 else "two"])
        rules.refresh_twice()
        if round_number >= 40 and {version for version, _ in seen} == set(versions):
            break
    done.set()
    thread.join()
    assert {version for version, _ in seen} == set(versions)
    assert all(policies == (versions[version],) for version, policies in seen)


def test_who_is_no_longer_permitted_administers_nothing(tmp_path: Path) -> None:
    rules = Rules(tmp_path, a=PERMIT_ALL, b='@id("ops") permit(principal, action == Action::"administer", resource);\n')
    assert rules.live.may_administer(DEVELOPER, "stop").policies == ("ops",)
    assert rules.live.explain_administration(DEVELOPER, "stop").parts[0].deciding[0].file == "b.cedar"
    (tmp_path / "b.cedar").unlink()
    assert rules.refresh_twice() is Refreshed.LOADED
    assert rules.live.explain_administration(DEVELOPER, "stop").verdict.ruling is Ruling.DENY


def test_what_is_no_longer_permitted_is_not_reached_any_more(tmp_path: Path) -> None:
    ask = EgressAsk("https", "api.example.com", 443)
    rules = Rules(tmp_path, a=PERMIT_ALL, b='@id("out") permit(principal, action == Action::"connect", resource);\n')
    assert rules.live.consent(DEVELOPER, FETCH, ask).policies == ("out",)
    assert rules.live.explain_consent(DEVELOPER, FETCH, ask).parts[0].deciding[0].file == "b.cedar"
    (tmp_path / "b.cedar").unlink()
    assert rules.refresh_twice() is Refreshed.LOADED
    assert rules.live.consent(DEVELOPER, FETCH, ask).ruling is Ruling.DENY
