"""The ledger on a real disk that fails: full, read-only, damaged, held by another, killed in mid-write."""

import asyncio
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from callgate_server.backends.sqlite.audit import events, verify_file
from callgate_server.backends.sqlite.files import load_or_create_key
from callgate_server.backends.sqlite.ledger import SqliteLedger
from callgate_server.backends.sqlite.spool import SPOOL_BYTES
from callgate_server.ledger.record import recorded
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.strict_json import encode
from support.records import CALLER, intent, success

TESTS = Path(__file__).parent.parent
LOAD = TESTS / "support" / "ledger_load.py"


@pytest.fixture
def key(tmp_path):
    return load_or_create_key(tmp_path / "ledger.key")


@pytest.fixture
def disk(tmp_path):
    """A disk that has room for the spool, and a little more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m,mode=700", "tmpfs", folder], check=True)
    yield folder
    # Lazily: a test that failed has left its ledger open.
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk):
    with (disk / "ballast").open("ab", buffering=0) as stream:
        try:
            while True:
                stream.write(b"\0" * 4096)
        except OSError:
            return


async def fill_up(ledger, disk):
    """Fill the disk until the ledger feels it: reopening after a failure folds its log away, which makes room."""
    while True:
        fill(disk)
        try:
            await ledger.probe()
        except CallError:
            return


async def refused(awaitable):
    with pytest.raises(CallError) as error:
        await awaitable
    assert error.value.reason is Reason.AUDIT_UNAVAILABLE
    assert error.value.message == "The call cannot be recorded, so it is refused; try again later."


def kinds(path, call):
    return [event.kind for event in events(path) if event.call_id == call.call_id]


async def states(ledger, calls):
    return [None if (found := await ledger.get(call.call_id)) is None else found.state for call in calls]


async def test_a_full_disk_refuses_calls_until_there_is_room_and_loses_none(disk, key):
    ledger = SqliteLedger.open(disk / "ledger.db", key)
    before, during, after = intent(), [intent() for _ in range(20)], intent()
    await ledger.claim(before)
    await fill_up(ledger, disk)
    outcomes = await asyncio.gather(*(ledger.claim(new) for new in during), return_exceptions=True)
    await fill_up(ledger, disk)
    # A running call's outcome finds room, and is what everybody is told, before it is in the record.
    await ledger.complete(success(before.call_id, b"x" * 100_000))
    assert await states(ledger, [before]) == [State.SUCCEEDED]
    await fill_up(ledger, disk)
    await ledger.move_spooled()
    assert kinds(disk / "ledger.db", before) == ["intent"]
    (disk / "ballast").unlink()
    await ledger.probe()
    await ledger.claim(after)
    await ledger.move_spooled()
    assert kinds(disk / "ledger.db", before) == ["intent", "outcome"]
    found = await states(ledger, during)
    assert [state is State.RUNNING for state in found] == [outcome is None for outcome in outcomes]
    assert None in found
    assert await states(ledger, [before, after]) == [State.SUCCEEDED, State.RUNNING]
    assert (await ledger.verify()).fault is None
    await ledger.close()
    assert verify_file(disk / "ledger.db", key).fault is None


async def test_an_outcome_that_met_a_full_disk_is_there_after_a_crash_and_its_call_was_not_interrupted(
    tmp_path, disk, key
):
    ledger = SqliteLedger.open(disk / "ledger.db", key)
    ended, running = intent("k", effect="unsafe"), intent(effect="unsafe")
    await ledger.claim(ended)
    await ledger.claim(running)
    await fill_up(ledger, disk)
    await ledger.complete(success(ended.call_id, b"x" * 100_000))
    # What a crash leaves: the files as they are.
    shutil.copytree(disk, tmp_path / "after", ignore=shutil.ignore_patterns("ballast"))
    await ledger.close()
    after = SqliteLedger.open(tmp_path / "after" / "ledger.db", key)
    await after.settle_orphans()
    assert await states(after, [ended, running]) == [State.SUCCEEDED, State.UNKNOWN]
    assert (await after.find(CALLER, "a.b", "k")).answer_json == b"x" * 100_000
    assert (await after.verify()).fault is None
    await after.close()


async def test_an_outcome_for_which_even_the_spool_has_no_room_is_refused(disk, key):
    ledger = SqliteLedger.open(disk / "ledger.db", key)
    small, large = intent(), intent()
    await ledger.claim(small)
    await ledger.claim(large)
    await fill_up(ledger, disk)
    await refused(ledger.complete(success(large.call_id, b"x" * SPOOL_BYTES)))
    await ledger.complete(success(small.call_id))
    assert await states(ledger, [small, large]) == [State.SUCCEEDED, State.RUNNING]
    await ledger.close()


async def test_an_answer_too_large_for_the_disk_does_not_take_its_neighbours_along(disk, key):
    ledger = SqliteLedger.open(disk / "ledger.db", key)
    large, small = intent(), [intent() for _ in range(10)]
    await ledger.claim(large)
    outcomes = await asyncio.gather(
        *(ledger.claim(new) for new in small[:5]),
        ledger.complete(success(large.call_id, b"x" * 5_000_000)),
        *(ledger.claim(new) for new in small[5:]),
        return_exceptions=True,
    )
    failed = outcomes.pop(5)
    assert isinstance(failed, CallError)
    assert failed.reason is Reason.AUDIT_UNAVAILABLE
    assert outcomes == [None] * 10
    assert await states(ledger, [large, *small]) == [State.RUNNING] * 11
    await ledger.complete(success(large.call_id))
    assert (await ledger.verify()).fault is None
    await ledger.close()


async def test_writes_that_the_kernel_refuses_are_refusals_and_end_with_the_cause(tmp_path, key):
    ledger = SqliteLedger.open(tmp_path / "state" / "ledger.db", key)
    before = intent()
    await ledger.claim(before)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        await refused(ledger.claim(intent()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    await ledger.complete(success(before.call_id))
    assert (await ledger.verify()).fault is None
    await ledger.close()


@contextmanager
def read_only(disk):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)


async def test_a_read_only_disk_is_refused_at_start_and_can_be_used_again_after(disk, key):
    await SqliteLedger.open(disk / "ledger.db", key).close()
    with read_only(disk), pytest.raises(OSError, match=r"ledger\.db"):
        SqliteLedger.open(disk / "ledger.db", key)
    ledger = SqliteLedger.open(disk / "ledger.db", key)
    await ledger.claim(intent())
    await ledger.close()


async def test_a_ledger_that_became_open_to_others_refuses_calls_until_it_is_closed(tmp_path, key):
    path = tmp_path / "state" / "ledger.db"
    ledger = SqliteLedger.open(path, key)
    new = intent()
    await ledger.claim(new)
    path.chmod(0o666)
    await refused(ledger.claim(intent()))
    await ledger.complete(success(new.call_id))
    path.chmod(0o600)
    assert kinds(path, new) == ["intent"]
    await ledger.move_spooled()
    assert kinds(path, new) == ["intent", "outcome"]
    await ledger.close()


def flip_a_page(path):
    data = bytearray(path.read_bytes())
    middle = len(data) // 4096 // 2 * 4096
    data[middle : middle + 4096] = bytes(byte ^ 0xFF for byte in data[middle : middle + 4096])
    path.write_bytes(data)


def cut_in_half(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 8192 * 4096])


def spoil_the_header(path):
    path.write_bytes(b"not a database at all" + path.read_bytes()[21:])


@pytest.mark.parametrize("damage", [flip_a_page, cut_in_half, spoil_the_header])
async def test_a_damaged_file_is_refused_at_start_with_what_to_do(tmp_path, key, damage):
    path = tmp_path / "state" / "ledger.db"
    ledger = SqliteLedger.open(path, key)
    await asyncio.gather(*(ledger.claim(intent()) for _ in range(200)))
    await ledger.close()
    damage(path)
    broken = path.read_bytes()
    with pytest.raises(ValueError, match="restore it from a backup"):
        SqliteLedger.open(path, key)
    assert path.read_bytes() == broken
    assert "damaged" in str(verify_file(path, key).fault)


class Load:
    """A process that writes the ledger as fast as it can."""

    def __init__(self, path, key_path, claimers):
        self.process = subprocess.Popen(
            [sys.executable, LOAD, path, key_path, str(claimers)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(TESTS)},
        )
        assert self.process.stdout.readline() == "ready\n"

    def kill_after(self, lines):
        """Kill it once it has acknowledged this much; return everything it acknowledged, by what it was."""
        told = [self.process.stdout.readline() for _ in range(lines)]
        self.process.kill()
        told.extend(self.process.stdout)
        self.process.stdout.close()
        assert self.process.wait() == -9
        acknowledged = {"claimed": set(), "ended": set()}
        for line in told:
            if line.endswith("\n"):
                what, call_id = line.split()
                acknowledged[what].add(call_id)
        return acknowledged


@pytest.mark.parametrize("claimers", [1, 16])
async def test_a_gateway_killed_in_mid_write_loses_nothing_that_it_acknowledged(tmp_path, key, claimers):
    path = tmp_path / "state" / "ledger.db"
    claimed, ended = set(), set()
    for lines in (1, 100, 333):
        acknowledged = Load(path, tmp_path / "ledger.key", claimers).kill_after(lines)
        claimed |= acknowledged["claimed"]
        ended |= acknowledged["ended"]
        assert verify_file(path, key).fault is None
    ledger = SqliteLedger.open(path, key)
    await ledger.settle_orphans()
    for call_id in claimed:
        stored = await ledger.get(call_id)
        assert stored is not None
        assert stored.state in ((State.SUCCEEDED,) if call_id in ended else (State.SUCCEEDED, State.INTERRUPTED))
    assert len(claimed) > 100
    assert (await ledger.verify()).fault is None
    await ledger.claim(intent())
    await ledger.close()


async def test_a_second_process_is_refused_while_the_first_lives_and_not_longer(tmp_path, key):
    path = tmp_path / "state" / "ledger.db"
    load = Load(path, tmp_path / "ledger.key", 1)
    with pytest.raises(BlockingIOError, match="another gateway holds"):
        SqliteLedger.open(path, key)
    load.kill_after(10)
    await SqliteLedger.open(path, key).close()


async def test_no_argument_and_no_key_of_a_caller_is_in_any_file_of_the_ledger(tmp_path, key):
    path = tmp_path / "state" / "ledger.db"
    ledger = SqliteLedger.open(path, key)
    arguments = {
        "token": "sk-live-2b7e151628aed2a6",
        "pin": 48_151_623,
        "rate": 2.71828182,
        "nested": {"alice@example.com": [31_415_926, "deep-secret"]},
        "many": [271_828_180 + number for number in range(100)],
        "city": "Zollikofen",
    }
    template = intent("caller-chosen-key")
    new = type(template)(
        **{name: getattr(template, name) for name in template.__slots__}
        | {
            "arguments": recorded(arguments, ("city",), ledger.digest),
            "arguments_digest": ledger.digest(encode(arguments)),
        }
    )
    await ledger.claim(new)
    assert (await ledger.find(CALLER, "a.b", "caller-chosen-key")).call_id == new.call_id

    def written():
        return b"".join(file.read_bytes() for file in path.parent.iterdir())

    secrets = ["sk-live", "48151623", "2.71828182", "alice", "31415926", "deep-secret", "27182818", "caller-chosen-key"]
    for look in ("while it is open", "after it was closed"):
        if look == "after it was closed":
            await ledger.close()
        content = written()
        assert b"Zollikofen" in content
        assert [secret for secret in secrets if secret.encode() in content] == [], look
