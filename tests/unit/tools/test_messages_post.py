"""`messages.post`: one message, told apart from its repetitions."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.tools import Ended, call
from support.web_server import Answer, WebServer, gates, serving, through


def post(folder: Path, url: str, text: str = "hello", **arguments: Any) -> Ended:
    return call("messages:post", "web", folder, {"url": url, "text": text, **arguments}, packages=True)


def test_a_message_is_posted_with_its_fields_and_no_credential_of_ours(tmp_path: Path) -> None:
    with serving(Answer(b"ok", 202)) as server:
        result = post(tmp_path, f"{server.url}/hook", "zürich", fields={"channel": "#ops"}).result
    [asked] = server.asked
    assert (asked.method, asked.path, asked.headers["content-type"]) == ("POST", "/hook", "application/json")
    assert json.loads(asked.body) == {"text": "zürich", "channel": "#ops"}
    assert "authorization" not in asked.headers
    assert result == {"status": 202, "idempotency_key": asked.headers["idempotency-key"], "reply": "ok"}


def test_the_same_message_has_the_same_key_and_another_another(tmp_path: Path) -> None:
    with serving(Answer()) as server, serving(Answer()) as elsewhere:
        for text, fields in (("a", {"x": "1", "y": "2"}), ("a", {"y": "2", "x": "1"}), ("b", {}), ("a", {})):
            post(tmp_path, server.url, text, fields=fields)
        post(tmp_path, elsewhere.url, "a", fields={})
    first, again, *others = [asked.headers["idempotency-key"] for asked in [*server.asked, *elsewhere.asked]]
    assert first == again
    assert len({first, *others}) == 4


def test_a_key_that_is_given_is_the_key(tmp_path: Path) -> None:
    with serving(Answer()) as server:
        result = post(tmp_path, server.url, idempotency_key="order-7").result
    assert server.asked[0].headers["idempotency-key"] == result["idempotency_key"] == "order-7"


def test_a_refusal_and_a_doubt_are_failures_that_differ(tmp_path: Path) -> None:
    with serving(Answer(status=404)) as refusing, serving(Answer(status=502)) as broken:
        refused, doubtful = post(tmp_path, refusing.url), post(tmp_path, broken.url)
    assert refused.stderr == "The upstream refused the message with status 404.\n"
    assert "whether it has the message is not known" in doubtful.stderr
    assert broken.asked[0].headers["idempotency-key"] in doubtful.stderr
    assert refused.result is doubtful.result is None


@pytest.mark.parametrize(
    ("why", "status", "ends"), [("unreachable", 502, 75), ("broken_off", 502, 1), ("idle", 504, 1)]
)
def test_only_a_message_that_was_not_sent_may_be_posted_later(tmp_path: Path, why: str, status: int, ends: int) -> None:
    with serving(gates(why, status)) as proxy:
        ended = posted_through(proxy, tmp_path)
    assert (ended.status, ended.result) == (ends, None)


def test_an_upstream_cannot_say_that_a_message_was_not_sent(tmp_path: Path) -> None:
    with serving(gates("unreachable", 503, mark="guessed")) as proxy:
        ended = posted_through(proxy, tmp_path)
    assert (ended.status, ended.result) == (1, None)
    assert "whether it has the message is not known" in ended.stderr


def posted_through(proxy: WebServer, folder: Path) -> Ended:
    arguments = {"url": "http://a.test/hook", "text": "hello"}
    return call("messages:post", "web", folder, arguments, packages=True, environment=through(proxy))


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    with serving(Answer(status=307, headers={"Location": "/elsewhere"})) as server:
        assert post(tmp_path, server.url).result is None
    assert len(server.asked) == 1


def test_the_message_cannot_be_given_twice(tmp_path: Path) -> None:
    assert "beside `fields`" in post(tmp_path, "http://127.0.0.1:1/", fields={"text": "other"}).stderr


@pytest.mark.parametrize(
    ("reply", "charset"),
    [
        (b"\xff\x00", "utf-8"),
        (b"", "utf-8"),
        (b"ok", "undefined"),
        (b"+2AA-", "utf-7"),
        (b"\\ud800", "raw_unicode_escape"),
    ],
)
def test_a_reply_that_is_no_text_is_left_out(tmp_path: Path, reply: bytes, charset: str) -> None:
    with serving(Answer(reply, headers={"Content-Type": f"text/plain; charset={charset}"})) as server:
        result = post(tmp_path, server.url).result
    assert (result["status"], result["reply"].encode()) == (200, b"")
