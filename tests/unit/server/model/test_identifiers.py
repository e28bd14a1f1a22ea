import time
import uuid

import pytest

from callgate_server.model.identifiers import PRINCIPAL_NAME, SECRET_NAME, TOOL_NAME, new_call_id


def test_a_call_id_is_a_uuid_of_version_7_that_holds_the_time():
    before_ms = time.time_ns() // 1_000_000
    call_id = uuid.UUID(new_call_id())
    after_ms = time.time_ns() // 1_000_000
    assert call_id.version == 7
    assert call_id.variant == uuid.RFC_4122
    assert before_ms <= call_id.int >> 80 <= after_ms


def test_call_ids_do_not_repeat():
    assert len({new_call_id() for _ in range(5000)}) == 5000


def test_the_random_bits_are_all_used():
    ids = [uuid.UUID(new_call_id()).int for _ in range(200)]
    seen_set, seen_clear = 0, 0
    for value in ids:
        seen_set |= value
        seen_clear |= ~value
    random_bits = ((1 << 80) - 1) & ~(0xF << 76) & ~(0x3 << 62)
    assert seen_set & random_bits == random_bits
    assert seen_clear & random_bits == random_bits


@pytest.mark.parametrize("name", ["a.b", "webhooks.sign", "a1_.b_2.c"])
def test_tool_names(name):
    assert TOOL_NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["", "a", "a.", ".a", "A.b", "a..b", "1.a", "a.b\n", "a.b/c", "a-b.c", "ä.b"])
def test_what_is_no_tool_name(name):
    assert not TOOL_NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["a", "0", "acme", "agent-7", "a_b", "a" * 63])
def test_principal_names(name):
    assert PRINCIPAL_NAME.fullmatch(name)


@pytest.mark.parametrize(
    "name",
    ["", "-a", "a-", "_a", "A", "a/b", "a.b", "..", "a b", "a\n", "a\0", "a" * 64, "٣", "a#b", "{tenant}", "a:b"],
)
def test_no_separator_hides_in_a_principal_name(name):
    assert not PRINCIPAL_NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["", "A", "1a", "a-b", "a/b", "../a", "a\n", "a" * 64])
def test_what_is_no_secret_name(name):
    assert not SECRET_NAME.fullmatch(name)
    assert SECRET_NAME.fullmatch("a" * 63)
