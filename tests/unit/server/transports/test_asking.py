import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from callgate_server.model.errors import CallError, Reason
from callgate_server.transports.asking import fields_of, json_body, media_type, token_of
from callgate_server.transports.streaming import ClientGoneError


def request(*chunks: bytes, content_type: str = "application/json", gone: bool = False) -> Request:
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.disconnect"} if gone else {"type": "http.request", "body": b"", "more_body": False})
    headers = [(b"content-type", content_type.encode()), (b"authorization", b"Bearer t")]

    async def receive() -> dict[str, object]:
        return messages.pop(0)

    return Request({"type": "http", "headers": headers}, receive)


async def test_a_body_is_read_to_its_end() -> None:
    assert await json_body(request(b'{"a"', b":1}"), 100) == b'{"a":1}'


async def test_a_body_that_is_too_large_is_refused_when_more_has_come_than_is_allowed() -> None:
    with pytest.raises(HTTPException) as caught:
        await json_body(request(b"x" * 60, b"x" * 60), 100)
    assert caught.value.status_code == 413


async def test_a_body_of_another_kind_is_refused() -> None:
    with pytest.raises(HTTPException) as caught:
        await json_body(request(b"{}", content_type="text/plain"), 100)
    assert caught.value.status_code == 415


async def test_a_client_that_leaves_before_its_body_is_complete_is_gone() -> None:
    with pytest.raises(ClientGoneError):
        await json_body(request(b"{", gone=True), 100)


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"a":1,"a":2}', b'{"b":1}'])
async def test_only_an_object_of_known_keys_is_taken(body: bytes) -> None:
    with pytest.raises(CallError) as caught:
        await fields_of(request(body), 100, frozenset("a"))
    assert caught.value.reason is Reason.INVALID_REQUEST


async def test_its_fields_are_returned() -> None:
    assert await fields_of(request(b'{"a":1}'), 100, frozenset("a")) == {"a": 1}


def test_the_credential_and_the_kind_of_body_are_read_from_the_head() -> None:
    assert token_of(request()) == "t"
    assert media_type("Application/JSON; charset=utf-8") == "application/json"
