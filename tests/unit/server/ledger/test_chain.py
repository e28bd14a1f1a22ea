from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.ledger.chain import GENESIS, Event, Head, Keys, check, follow, keyed_hash, to_document
from callgate_server.model.sealed import Sealed

KEY = Keys.derive(Sealed(b"k" * 32)).chain
OTHER_KEY = Keys.derive(Sealed(b"j" * 32)).chain


def chain_of(bodies, key=KEY):
    events, head = [], Head()
    for number, body in enumerate(bodies):
        event = follow(key, head, f"2026-01-01T00:00:{number:02}+00:00", f"call-{number % 3}", "intent", body)
        events.append(event)
        head = Head(event.seq, event.hash)
    return events


BODIES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=12)


@given(BODIES)
def test_a_chain_as_it_was_written_holds(bodies):
    events = chain_of(bodies)
    report = check(KEY, events)
    assert (report.events, report.head, report.fault) == (len(bodies), events[-1].hash, None)
    assert check(KEY, events, Head(events[0].seq, events[0].hash)).fault is None


@given(BODIES, st.data())
def test_any_edit_of_any_field_is_found(bodies, data):
    events = chain_of(bodies)
    index = data.draw(st.integers(0, len(events) - 1))
    field = data.draw(st.sampled_from(["seq", "at", "call_id", "kind", "body", "hash"]))
    old = getattr(events[index], field)
    strategy = st.integers(0, 1000) if field == "seq" else st.text(st.characters(exclude_categories=["Cs"]))
    new = data.draw(strategy.filter(lambda value: value != old))
    events[index] = replace(events[index], **{field: new})
    assert check(KEY, events).fault is not None


@given(BODIES, st.data())
def test_a_removed_event_is_found_wherever_it_stood(bodies, data):
    events = chain_of(bodies)
    known = Head(events[-1].seq, events[-1].hash)
    index = data.draw(st.integers(0, len(events) - 1))
    del events[index]
    assert check(KEY, events, known).fault is not None
    if index < len(events):
        assert check(KEY, events).fault is not None


@given(BODIES, st.data())
def test_an_inserted_event_is_found(bodies, data):
    events = chain_of(bodies)
    index = data.draw(st.integers(0, len(events)))
    forged = data.draw(
        st.sampled_from(
            [
                *events,
                replace(events[-1], seq=index + 1),
                follow(OTHER_KEY, Head(index, events[index - 1].hash if index else GENESIS), "now", "c", "k", "b"),
            ]
        )
    )
    events.insert(index, forged)
    assert check(KEY, events).fault is not None


@given(BODIES.filter(lambda bodies: len(bodies) > 1), st.data())
def test_events_that_changed_places_are_found(bodies, data):
    events = chain_of(bodies)
    one, other = data.draw(st.lists(st.integers(0, len(events) - 1), min_size=2, max_size=2, unique=True))
    events[one], events[other] = events[other], events[one]
    assert check(KEY, events).fault is not None


@given(BODIES, st.data())
def test_events_renumbered_after_a_removal_are_found(bodies, data):
    events = chain_of([*bodies, "last"])
    del events[data.draw(st.integers(0, len(events) - 2))]
    renumbered = [replace(event, seq=number) for number, event in enumerate(events, start=1)]
    assert check(KEY, renumbered).fault is not None


def test_a_chain_made_with_another_key_is_found():
    assert check(OTHER_KEY, chain_of(["a"])).fault is not None


def test_fields_cannot_borrow_characters_from_each_other():
    one = follow(KEY, Head(), "t", "ab", "c", "d")
    other = follow(KEY, Head(), "t", "a", "bc", "d")
    assert one.hash != other.hash


def test_a_cut_tail_is_found_by_who_knows_a_later_head():
    events = chain_of(["a", "b", "c"])
    known = Head(3, events[2].hash)
    assert check(KEY, events[:2]).fault is None
    assert "tail was cut off" in str(check(KEY, events[:2], known).fault)
    assert "tail was cut off" in str(check(KEY, [], known).fault)


def test_another_chain_of_the_same_key_is_not_the_expected_one():
    known = Head(2, chain_of(["a", "b"])[1].hash)
    assert "not the one that was expected" in str(check(KEY, chain_of(["a", "x", "c"]), known).fault)


def test_the_report_says_how_far_the_chain_holds():
    events = chain_of(["a", "b", "c"])
    report = check(KEY, [events[0], replace(events[1], body="x"), events[2]])
    assert (report.events, report.head) == (1, events[0].hash)
    assert report.fault == "event 2 does not follow from the one before it: one of them was changed"
    assert check(KEY, [events[0], events[2]]).fault == "event 2 is missing: the next one is 3"


def test_a_head_survives_being_written_down():
    head = Head(128, "ab" * 32)
    assert Head.parse(str(head)) == head


@pytest.mark.parametrize(
    "text", ["", "1", "1:", ":ab", "x:" + "a" * 64, "-1:" + "a" * 64, "1:" + "A" * 64, "٣:" + "a" * 64]
)
def test_what_is_no_head_is_refused(text):
    with pytest.raises(ValueError, match="a head looks like"):
        Head.parse(text)


def test_each_purpose_has_its_own_key():
    keys = Keys.derive(Sealed(b"k" * 32))
    hashes = {keyed_hash(key, b"x") for key in (keys.chain, keys.row, keys.value, keys.idempotency, Sealed(b"k" * 32))}
    assert len(hashes) == 5


def test_an_event_is_shown_with_its_body_as_json():
    assert to_document(Event(1, "t", "c", "k", '{"a":1}', "h")) == {
        "seq": 1,
        "at": "t",
        "call_id": "c",
        "kind": "k",
        "body": {"a": 1},
        "hash": "h",
    }
    with pytest.raises(ValueError, match="not JSON"):
        to_document(Event(1, "t", "c", "k", "{", "h"))
