import asyncio
import time

import pytest

from callgate_server.backends.egress.gate import Gate, GateOptions
from callgate_server.execution.breakers import Breakers
from callgate_server.execution.egress import EgressTerms
from callgate_server.model.call import Deadline
from callgate_server.result.redact import Redactor
from support.egress_rig import ALLOWED, BUDGET


async def nothing(*_):
    pass


def terms():
    return EgressTerms("acme", (), {}, lambda _: ALLOWED, BUDGET, Deadline(time.monotonic() + 60), nothing, "mark")


def gate(folder, **options):
    return Gate(GateOptions(authority_dir=folder, **options), Redactor, Breakers({}, lambda _: None), lambda *_: None)


async def test_one_authority_serves_all_calls_and_stays_between_starts(tmp_path):
    async with gate(tmp_path) as first:
        pem = first.authority_pem
    async with gate(tmp_path) as second:
        assert second.authority_pem == pem
    assert pem.startswith(b"-----BEGIN CERTIFICATE-----")


async def test_sessions_end_on_their_own(tmp_path):
    async with gate(tmp_path) as made:
        one, other = made.open(terms(), nothing), made.open(terms(), nothing)
        assert (await one.close()).connections == 0
        assert (await other.close()).connections == 0


async def test_leaving_it_waits_for_nobody_after_the_last_call(tmp_path):
    async with asyncio.timeout(5), gate(tmp_path) as made:
        await made.open(terms(), nothing).close()


def test_an_authority_that_cannot_be_used_is_found_before_the_first_call(tmp_path):
    (tmp_path / "authority.pem").write_text("nothing of the kind")
    (tmp_path / "authority.pem").chmod(0o600)
    with pytest.raises(ValueError, match="a new one is made"):
        gate(tmp_path)


def test_roots_that_cannot_be_read_are_found_before_the_first_call(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        gate(tmp_path, ca_file=tmp_path / "absent.pem")
