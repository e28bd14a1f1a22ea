from callgate import DeadLetter, dead_letter
from callgate_proto.v1 import gateway_pb2 as pb
from support.examples import failed_doctests


def test_the_examples_of_the_module_hold() -> None:
    assert failed_doctests(dead_letter) == 0


def test_a_document_has_the_words_of_the_wire() -> None:
    document = DeadLetter("c1", "a.b", "1.0.0", "failed").to_json()
    assert set(document) == {field.name for field in pb.DeadLetter.DESCRIPTOR.fields}
