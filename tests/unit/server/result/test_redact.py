import base64
import json
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callgate_server.model.sealed import Sealed
from callgate_server.result.forms import forms
from callgate_server.result.redact import MIN_FRAGMENT_BYTES, Redactor

KEY = b"whsec-4f1c2d9a7b"
OTHER = b"9a7b-hvs.CAESIJ8"  # begins with the end of the first
REDACTOR = Redactor({"key": Sealed(KEY), "other": Sealed(OTHER)})
NONE = Redactor({})
ALL_FORMS = sorted(forms(KEY) | forms(OTHER))

# Text that is full of secrets, beginnings and ends of secrets, and look-alikes.
pieces = st.one_of(
    st.binary(max_size=6),
    st.sampled_from(ALL_FORMS),
    st.sampled_from(ALL_FORMS).flatmap(lambda form: st.integers(0, len(form)).map(lambda at: form[:at])),
    st.sampled_from(ALL_FORMS).flatmap(lambda form: st.integers(0, len(form)).map(lambda at: form[at:])),
    st.just(KEY + OTHER[4:]),
)
hostile = st.lists(pieces, max_size=12).map(b"".join)


def by_hand(data: bytes) -> bytes:
    """The specification: mark every occurrence of every form, put one label where each marked run begins."""
    found = []
    for name, secret in (("key", KEY), ("other", OTHER)):
        for form in forms(secret):
            at = data.find(form)
            while at >= 0:
                found.append((at, -len(form), name))
                at = data.find(form, at + 1)
    shown, covered = b"", 0
    for start, minus_length, name in sorted(found):
        if start >= covered:
            shown += data[covered:start] + f"[REDACTED:{name}]".encode()
        covered = max(covered, start - minus_length)
    return shown + data[covered:]


def chunked(data: bytes, cuts: list[int]) -> bytes:
    stream = REDACTOR.stream()
    borders = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    shown = [stream.feed(data[start:end]) for start, end in pairwise(borders)]
    return b"".join(shown) + stream.finish()


@given(hostile)
def test_every_form_is_replaced_and_nothing_else_changes(data: bytes) -> None:
    assert REDACTOR.data(data) == by_hand(data)


@given(hostile, st.lists(st.integers(0, 10_000), max_size=20))
def test_a_stream_is_redacted_as_the_whole_however_it_is_cut(data: bytes, cuts: list[int]) -> None:
    assert chunked(data, cuts) == REDACTOR.data(data)


@given(hostile)
def test_a_stream_may_come_byte_by_byte(data: bytes) -> None:
    assert chunked(data, list(range(len(data)))) == REDACTOR.data(data)


@given(st.binary(max_size=40), st.sampled_from(ALL_FORMS), st.binary(max_size=40), st.data())
def test_a_form_that_a_cut_goes_through_shows_less_than_a_fragment(
    before: bytes, form: bytes, after: bytes, data: st.DataObject
) -> None:
    whole = before + form + after
    first = data.draw(st.integers(len(before), len(before) + len(form)))
    second = data.draw(st.integers(first, len(before) + len(form)))
    head, tail = REDACTOR.cut(whole[:first], whole[second:])
    for shown, piece in ((head, form[: first - len(before)]), (tail, form[second - len(before) :])):
        if len(piece) >= MIN_FRAGMENT_BYTES:
            assert b"[REDACTED:" in shown
            assert piece not in shown


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_a_cut_through_nothing_secret_changes_nothing(head: bytes, tail: bytes) -> None:
    if not any(form[:4] in head + tail or form[-4:] in head + tail for form in ALL_FORMS):
        assert REDACTOR.cut(head, tail) == (head, tail)


def test_both_ends_of_a_cut_secret_are_redacted() -> None:
    assert REDACTOR.cut(b"x " + KEY[:7], KEY[-7:] + b" y") == (b"x [REDACTED:key]", b"[REDACTED:key] y")


def test_a_whole_secret_at_the_edge_of_a_cut_has_one_label() -> None:
    assert REDACTOR.cut(b"x " + KEY, KEY + b" y") == (b"x [REDACTED:key]", b"[REDACTED:key] y")


def test_overlapping_secrets_leave_nothing_of_either() -> None:
    assert REDACTOR.data(b"<" + KEY + OTHER[4:] + b">") == b"<[REDACTED:key]>"


def test_secrets_side_by_side_have_a_label_each() -> None:
    assert REDACTOR.data(KEY + KEY + OTHER) == b"[REDACTED:key][REDACTED:key][REDACTED:other]"


def test_the_issue_table_of_encodings_is_covered_in_running_text() -> None:
    text = KEY.decode()
    shown = REDACTOR.text(
        f"raw={text} b64={base64.b64encode(KEY).decode()} hex={KEY.hex()} HEX={KEY.hex().upper()} rev={text[::-1]}"
    )
    assert shown == " ".join(f"{name}=[REDACTED:key]" for name in ("raw", "b64", "hex", "HEX", "rev"))


def test_a_stream_without_a_look_alike_is_shown_at_once() -> None:
    assert REDACTOR.stream().feed(b"progress 50 %\n") == b"progress 50 %\n"


def test_data_larger_than_a_block_is_redacted_across_the_border() -> None:
    at = 256 * 1024 - len(KEY) // 2
    data = b"." * at + KEY + b"." * 1000
    assert REDACTOR.data(data) == b"." * at + b"[REDACTED:key]" + b"." * 1000


def test_json_strings_keys_and_numbers_are_redacted() -> None:
    redactor = Redactor({"key": Sealed(KEY), "pin": Sealed(b"4815162342")})
    value = {KEY.decode(): [f"is {KEY.decode()}!", 4815162342, 4.5, True, None], "n": {"x": "plain"}}
    assert redactor.json(value) == {
        "[REDACTED:key]": ["is [REDACTED:key]!", "[REDACTED:pin]", 4.5, True, None],
        "n": {"x": "plain"},
    }


def test_members_whose_keys_become_equal_are_all_kept() -> None:
    value = {KEY.decode(): 1, KEY.hex(): 2, "[REDACTED:key]": 3, "[REDACTED:key]#2": 4}
    shown = REDACTOR.json(value)
    assert isinstance(shown, dict)
    assert sorted(shown.values()) == [1, 2, 3, 4]
    assert KEY.hex() not in json.dumps(shown)


def test_text_with_lone_surrogates_is_redacted() -> None:
    assert REDACTOR.text(f"\ud800{KEY.decode()}") == "\ud800[REDACTED:key]"


def test_without_secrets_everything_is_passed_on_as_the_same_object() -> None:
    data, value = b"x" * 1000, {"a": [1, "b"]}
    assert NONE.data(data) is data
    assert NONE.json(value) is value
    assert NONE.cut(data, b"y") == (data, b"y")
    assert NONE.stream().feed(data) == data


def test_an_empty_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Redactor({"key": Sealed(b"")})


@pytest.mark.parametrize(
    "flood",
    [KEY[:-1] * 120_000, KEY[:4] * 400_000, KEY * 120_000, KEY[:1] * 2_000_000],
    ids=["nearly", "beginnings", "secrets", "letters"],
)
def test_a_flood_of_look_alikes_takes_time_linear_in_its_size(flood: bytes) -> None:
    started_s = time.process_time()
    REDACTOR.data(flood)
    assert time.process_time() - started_s < 5


def test_a_trickle_that_looks_like_a_long_secret_stays_cheap() -> None:
    redactor = Redactor({"long": Sealed(base64.b64encode(bytes(range(256)) * 12))})
    stream = redactor.stream()
    secret = base64.b64encode(bytes(range(256)) * 12)
    started_s = time.process_time()
    for at in range(len(secret) - 1):
        assert stream.feed(secret[at : at + 1]) == b""
    assert time.process_time() - started_s < 10


def test_many_keys_that_become_equal_take_time_linear_in_their_number() -> None:
    spellings = sorted({form.decode() for form in forms(KEY) if form.isascii()})
    keys = [first + second + third for first in spellings for second in spellings for third in spellings][:8000]
    started_s = time.process_time()
    assert len(REDACTOR.json(dict.fromkeys(keys))) == len(set(keys))  # type: ignore[arg-type]
    assert time.process_time() - started_s < 10


@settings(max_examples=50)
@given(st.binary(min_size=8, max_size=40).filter(lambda secret: len(secret.strip()) >= 8), st.binary(max_size=200))
def test_a_stream_equals_the_whole_for_any_secret(secret: bytes, noise: bytes) -> None:
    redactor = Redactor({"key": Sealed(secret)})
    data = noise + secret[:5] + secret + secret[2:] + noise[::-1] + secret
    stream = redactor.stream()
    shown = b"".join(stream.feed(data[at : at + 3]) for at in range(0, len(data), 3)) + stream.finish()
    assert shown == redactor.data(data)
    assert secret not in shown
