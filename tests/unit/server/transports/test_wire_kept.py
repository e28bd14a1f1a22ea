from callgate_server.transports.wire_kept import approval_to_proto, dead_letter_to_proto
from support.edge import approval, dead_letter


def test_every_field_of_an_approval_is_on_the_wire() -> None:
    decided = approval("a1", decided_by="acme/boss", decided_at="2026-03-04T05:06:07+00:00", task="t1")
    message = approval_to_proto(decided)
    assert {descriptor.name for descriptor, _ in message.ListFields()} == {*decided} - {"arguments"} | {
        "arguments_json"
    }


def test_what_an_approval_does_not_have_is_absent() -> None:
    message = approval_to_proto(approval("a1", arguments=None, purpose=None, digest=""))
    for field in ("arguments_json", "purpose", "decided_by", "task", "decided_at"):
        assert not message.HasField(field)


def test_every_field_of_a_dead_letter_is_on_the_wire() -> None:
    dead = dead_letter("d1") | {"task": "t1", "follows": "d0"}
    assert {descriptor.name for descriptor, _ in dead_letter_to_proto(dead).ListFields()} == set(dead)
