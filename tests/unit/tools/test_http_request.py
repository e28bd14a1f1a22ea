"""`http.request`: an upstream's answer as data, bounded, whatever the upstream does."""

import base64
import gzip
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from support.tools import Ended, call, call_each
from support.web_server import Answer, Asked, gates, serving, silent_server, through

JSON = {"Content-Type": "application/json"}


def request(
    folder: Path,
    url: str,
    *,
    environment: dict[str, str] | None = None,
    memory_bytes: int | None = None,
    **arguments: Any,
) -> Ended:
    return call(
        "http_request:request", "web", folder, {"url": url, **arguments}, packages=True, environment=environment,
        memory_bytes=memory_bytes,
    )  # fmt: skip


def body_of(result: dict[str, Any]) -> dict[str, Any]:
    return {shape: result[shape] for shape in ("json", "text", "base64") if result[shape] is not None}


def test_an_answer_is_given_as_data_with_its_origin(tmp_path: Path) -> None:
    content = b'{"n": [1, 2.5, null], "ok": true}'
    before = datetime.now(UTC).replace(microsecond=0)
    with serving(Answer(content, 201, JSON | {"X-Two": "a"})) as server:
        result = request(tmp_path, f"{server.url}/v1/x?q=1").result
    assert (result["status"], result["json"]) == (201, {"n": [1, 2.5, None], "ok": True})
    assert (result["text"], result["base64"], result["truncated"], result["size_bytes"]) == (None, None, False, 33)
    assert {"name": "X-Two", "value": "a"} in result["headers"]
    source = result["source"]
    assert source["url"] == source["final_url"] == f"{server.url}/v1/x?q=1"
    assert source["sha256"] == hashlib.sha256(content).hexdigest()
    assert before <= datetime.fromisoformat(source["fetched_at"]) <= datetime.now(UTC)


def test_the_request_is_sent_as_it_was_asked_for(tmp_path: Path) -> None:
    with serving(Answer()) as server:
        request(tmp_path, f"{server.url}/a", method="PUT", headers={"X-A": "1"}, body="zürich")
        request(tmp_path, f"{server.url}/b", method="POST", json={"a": [1]})
        request(tmp_path, f"{server.url}/c", method="HEAD")
    put, post, head = server.asked
    assert (put.method, put.path, put.headers["x-a"], put.body) == ("PUT", "/a", "1", "zürich".encode())
    assert (post.headers["content-type"], json.loads(post.body)) == ("application/json", {"a": [1]})
    assert head.method == "HEAD"
    assert not any("authorization" in asked.headers for asked in server.asked)


@pytest.mark.parametrize("status", [400, 401, 404, 500, 503])
def test_a_status_of_failure_is_an_answer(tmp_path: Path, status: int) -> None:
    with serving(Answer(b"no", status, {"Content-Type": "text/plain"})) as server:
        result = request(tmp_path, server.url).result
    assert (result["status"], result["text"]) == (status, "no")


BODIES: list[tuple[bytes, str, dict[str, Any]]] = [
    (b"plain", "text/plain", {"text": "plain"}),
    ("zürich".encode("latin-1"), "text/plain; charset=iso-8859-1", {"text": "zürich"}),
    ("zürich".encode(), "text/plain", {"text": "zürich"}),
    (b"\x89PNG\x00", "image/png", {"base64": base64.b64encode(b"\x89PNG\x00").decode()}),
    (b"\xff\xfe", "text/plain; charset=utf-8", {"base64": "//4="}),
    # Names of codecs that are none for this, or that give halves of characters.
    (b"created", "text/plain; charset=undefined", {"base64": base64.b64encode(b"created").decode()}),
    (b"created", "text/plain; charset=hex", {"base64": base64.b64encode(b"created").decode()}),
    (b"created", "text/plain; charset=a\xff\x01", {"base64": base64.b64encode(b"created").decode()}),
    (b"+2AA-", "text/plain; charset=utf-7", {"base64": base64.b64encode(b"+2AA-").decode()}),
    (b"\\ud800", "application/json; charset=raw_unicode_escape", {"base64": base64.b64encode(b"\\ud800").decode()}),
    (b"[1]", "application/vnd.api+json; charset=utf-8", {"json": [1]}),
    (b"[1]", "text/plain", {"text": "[1]"}),
    (b"{", "application/json", {"text": "{"}),
    (b'{"a": 1, "a": 2}', "application/json", {"text": '{"a": 1, "a": 2}'}),
    (b"[NaN]", "application/json", {"text": "[NaN]"}),
    (b"[1e999]", "application/json", {"text": "[1e999]"}),
    (b'["\\ud800"]', "application/json", {"text": '["\\ud800"]'}),
    (b"[" * 60 + b"]" * 60, "application/json", {"text": "[" * 60 + "]" * 60}),
    (b"[" * 100_000, "application/json", {"text": "[" * 100_000}),
    (b"1" * 5000, "application/json", {"text": "1" * 5000}),
]


def test_a_body_has_the_first_shape_that_holds_it_exactly(tmp_path: Path) -> None:
    def behave(asked: Asked) -> Answer:
        content, content_type, _ = BODIES[int(asked.path[1:])]
        return Answer(content, headers={"Content-Type": content_type})

    with serving(behave) as server:
        wanted = [{"url": f"{server.url}/{number}"} for number in range(len(BODIES))]
        ended = call_each("http_request:request", "web", tmp_path, wanted, packages=True)
    assert [body_of(result) for result in ended.result] == [shown for _, _, shown in BODIES]


def test_a_body_without_end_is_cut_at_what_was_asked_for(tmp_path: Path) -> None:
    with serving(Answer(b"x" * 5_000_000)) as server:
        result = request(tmp_path, server.url, max_bytes=1000).result
    assert (result["text"], result["truncated"], result["size_bytes"]) == ("x" * 1000, True, 1000)
    assert result["source"]["sha256"] == hashlib.sha256(b"x" * 1000).hexdigest()


def test_a_bomb_is_unpacked_no_further_than_it_is_kept(tmp_path: Path) -> None:
    bomb = gzip.compress(gzip.compress(b"\0" * 400_000_000, 1), 9)
    headers = {"Content-Encoding": "gzip, gzip", "Content-Type": "application/octet-stream"}
    with serving(Answer(bomb, headers=headers)) as server:
        result = request(tmp_path, server.url, max_bytes=1000, memory_bytes=400_000_000).result
    assert (result["size_bytes"], result["truncated"]) == (1000, True)


def test_json_that_was_cut_is_text(tmp_path: Path) -> None:
    with serving(Answer(b"[1, 2, 3]", headers=JSON)) as server:
        result = request(tmp_path, server.url, max_bytes=2).result
    assert body_of(result) == {"text": "[1"}


def test_a_body_that_ends_too_early_is_a_failure(tmp_path: Path) -> None:
    with serving(Answer(b"half", length=1000)) as server:
        ended = request(tmp_path, server.url)
    assert (ended.status, ended.result) == (1, None)
    assert ended.stderr == "The connection to the upstream failed, or ended before its answer was complete.\n"


def redirecting(target: str, status: int = 302) -> Any:
    def behave(asked: Asked) -> Answer:
        return Answer(b"", status, {"Location": target}) if asked.path == "/from" else Answer(b"there")

    return behave


def test_a_redirect_is_an_answer_unless_following_was_asked_for(tmp_path: Path) -> None:
    with serving(redirecting("/to")) as server:
        plain = request(tmp_path, f"{server.url}/from").result
        followed = request(tmp_path, f"{server.url}/from", follow_redirects=True).result
    assert (plain["status"], plain["source"]["final_url"]) == (302, f"{server.url}/from")
    assert (followed["status"], followed["text"]) == (200, "there")
    assert followed["source"]["url"] == f"{server.url}/from"
    assert followed["source"]["final_url"] == f"{server.url}/to"


def test_what_was_meant_for_one_origin_does_not_follow_to_another(tmp_path: Path) -> None:
    headers = {"X-Api-Key": "mine", "Authorization": "Basic x", "Cookie": "a=b", "Accept": "text/plain"}
    with serving(Answer(b"there")) as other, serving(redirecting(f"{other.url}/to")) as server:
        request(tmp_path, f"{server.url}/from", follow_redirects=True, headers=headers)
    assert server.asked[0].headers["x-api-key"] == "mine"
    assert other.asked[0].headers["accept"] == "text/plain"
    assert not {"x-api-key", "authorization", "cookie"} & other.asked[0].headers.keys()


def test_a_redirect_of_what_has_an_effect_is_not_followed(tmp_path: Path) -> None:
    with serving(redirecting("/to", 307)) as server:
        result = request(tmp_path, f"{server.url}/from", method="POST", body="x", follow_redirects=True).result
    assert (result["status"], len(server.asked)) == (307, 1)


@pytest.mark.parametrize("target", ["http://[x", "http://a.test/\xff", "http://\xfe@[/", ""])
def test_a_redirect_to_nowhere_is_an_answer(tmp_path: Path, target: str) -> None:
    moved = Answer(b"made", 302, {"Location": target, "Content-Type": "text/plain"})
    with serving(moved) as server:
        wanted = [
            {"url": server.url, "method": method, "follow_redirects": follow}
            for method, follow in (("POST", False), ("POST", True), ("GET", False), ("GET", True))
        ]
        ended = call_each("http_request:request", "web", tmp_path, wanted, packages=True)
    assert [(result["status"], result["text"]) for result in ended.result] == [(302, "made")] * 4, ended.stderr


def test_n13_what_a_redirect_says_is_bounded_like_any_answer(tmp_path: Path) -> None:
    with serving(Answer(b"x" * 5_000_000, 307, {"Location": "/to"})) as server:
        result = request(tmp_path, server.url, method="POST", max_bytes=1000).result
    assert (result["text"], result["truncated"]) == ("x" * 1000, True)


@pytest.mark.parametrize(("status", "sent"), [(301, b""), (302, b""), (303, b""), (307, None), (308, None)])
def test_a_body_that_was_meant_for_one_origin_does_not_follow_to_another(
    tmp_path: Path, status: int, sent: bytes | None
) -> None:
    """Where the same request is asked for again, there is none without its body: the redirect is the answer."""
    with serving(Answer(b"there")) as other, serving(redirecting(f"{other.url}/to", status)) as server:
        result = request(tmp_path, f"{server.url}/from", follow_redirects=True, body="mine").result
    assert server.asked[0].body == b"mine"
    assert [asked.body for asked in other.asked] == ([] if sent is None else [sent])
    assert result["status"] == (status if sent is None else 200)


def test_a_body_follows_within_its_origin(tmp_path: Path) -> None:
    with serving(redirecting("/to", 307)) as server:
        request(tmp_path, f"{server.url}/from", follow_redirects=True, body="mine")
    assert [asked.body for asked in server.asked] == [b"mine"] * 2


def test_redirects_have_an_end_and_do_not_leave_the_web(tmp_path: Path) -> None:
    with serving(redirecting("/from")) as circle, serving(redirecting("file:///etc/passwd")) as away:
        round_and_round = request(tmp_path, f"{circle.url}/from", follow_redirects=True)
        out = request(tmp_path, f"{away.url}/from", follow_redirects=True)
    assert "redirects more than 5 times" in round_and_round.stderr
    assert "must begin with http" in out.stderr
    assert round_and_round.result is out.result is None


@pytest.mark.parametrize(
    "url",
    ["ftp://h/", "file:///etc/passwd", "h/x", "//h/x", "", "http://", "http://h:0/", "http://h:99999/", "http://[::1/"],
)
def test_what_is_no_address_of_the_web_is_refused(tmp_path: Path, url: str) -> None:
    ended = request(tmp_path, url)
    assert ended.stderr == "The address must begin with http:// or https:// and name a host.\n"


def test_credentials_in_an_address_are_refused_and_not_shown(tmp_path: Path) -> None:
    ended = request(tmp_path, "http://user:hunter22@127.0.0.1/")
    assert "must hold no user name or password" in ended.stderr
    assert "hunter22" not in ended.stderr


@pytest.mark.parametrize("headers", [{"X-A": "1\r\nX-B: 2"}, {"X-A\n": "1"}, {"X A": "1"}])
def test_a_header_cannot_begin_another(tmp_path: Path, headers: dict[str, str]) -> None:
    with serving(Answer()) as server:
        ended = request(tmp_path, server.url, headers=headers)
    assert ended.result is None or "x-b" not in server.asked[0].headers


def test_a_body_is_given_one_way(tmp_path: Path) -> None:
    assert "either `body` or `json`" in request(tmp_path, "http://127.0.0.1:1/", body="x", json=1).stderr


def test_it_goes_the_way_of_the_proxy_like_any_program(tmp_path: Path) -> None:
    with serving(Answer(b"by proxy")) as proxy:
        environment = {"HTTP_PROXY": proxy.url, "http_proxy": proxy.url, "NO_PROXY": "", "no_proxy": ""}
        result = request(tmp_path, "http://api.example.test/v1", environment=environment).result
    assert result["text"] == "by proxy"
    assert proxy.asked[0].path == "http://api.example.test/v1"


def test_a_refusal_of_the_gate_is_a_failure_that_says_so(tmp_path: Path) -> None:
    with serving(gates("policy", 403, "egress_refused")) as proxy:
        seen = request(tmp_path, "http://a.test/", environment=through(proxy))
        tunnelled = request(tmp_path, "https://a.test/", environment=through(proxy))
    assert seen.stderr.endswith("ask its operator for an egress rule (policy).\n")
    assert tunnelled.stderr.endswith("ask its operator for an egress rule.\n")
    assert seen.result is tunnelled.result is None


def test_a_failure_of_the_gate_is_no_answer_of_the_upstream(tmp_path: Path) -> None:
    with serving(gates("encoded_answer", 502)) as proxy:
        ended = request(tmp_path, "http://a.test/", environment=through(proxy))
    assert ended.stderr == "The gateway could not bring back an answer of the upstream (encoded_answer).\n"


AWAY = [
    ("unreachable", 502, "egress_failed"),
    ("unresolved", 502, "egress_refused"),
    ("circuit_open", 503, "egress_refused"),
]


@pytest.mark.parametrize(("why", "status", "error"), AWAY)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_an_upstream_that_nothing_was_sent_to_is_away_for_now(
    tmp_path: Path, why: str, status: int, error: str, method: str
) -> None:
    with serving(gates(why, status, error)) as proxy:
        # However little of the answer is wanted.
        ended = request(tmp_path, "http://a.test/", method=method, max_bytes=1, environment=through(proxy))
    assert (ended.status, ended.result) == (75, None)
    assert ended.stderr == f"The upstream cannot be reached for now ({why}).\n"


@pytest.mark.parametrize(("status", "ends"), [(502, 75), (503, 75), (504, 75), (400, 1), (403, 1), (500, 1)])
def test_a_tunnel_that_leads_nowhere_for_now_is_told_from_one_that_is_refused(
    tmp_path: Path, status: int, ends: int
) -> None:
    with serving(gates("unreachable", status)) as proxy:
        ended = request(tmp_path, "https://a.test/", method="POST", environment=through(proxy))
    assert (ended.status, "for now" in ended.stderr) == (ends, ends == 75)


@pytest.mark.parametrize(("why", "status"), [("broken_off", 502), ("idle", 504), ("untrusted_certificate", 502)])
def test_what_may_have_reached_the_upstream_or_stays_so_is_a_failure(tmp_path: Path, why: str, status: int) -> None:
    with serving(gates(why, status)) as proxy:
        ended = request(tmp_path, "http://a.test/", environment=through(proxy))
    assert (ended.status, ended.result, why in ended.stderr) == (1, None, True)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_that_is_not_answered_in_time_may_have_had_its_effect(tmp_path: Path, method: str) -> None:
    with silent_server() as port:
        arguments = {"url": f"http://127.0.0.1:{port}/", "method": method}
        ended = call("http_request:request", "web", tmp_path, arguments, packages=True, exchange__TIMEOUT_S=0.3)
    assert (ended.status, ended.result, ended.stderr) == (1, None, "The upstream did not answer in time.\n")


def test_where_a_redirect_leads_nowhere_the_request_before_it_has_been_made(tmp_path: Path) -> None:
    def behave(asked: Asked) -> Answer:
        moved = Answer(b"", 302, {"Location": "http://b.test/to"})
        return moved if asked.path == "http://a.test/from" else gates("unreachable", 502)

    with serving(behave) as proxy:
        ended = request(tmp_path, "http://a.test/from", follow_redirects=True, environment=through(proxy))
    assert (ended.status, len(proxy.asked)) == (1, 2)


@pytest.mark.parametrize(("why", "status", "error"), [*AWAY, ("no_rule", 403, "egress_refused")])
@pytest.mark.parametrize("mark", ["", "guessed"])
def test_an_upstream_that_speaks_as_the_gate_has_answered(
    tmp_path: Path, why: str, status: int, error: str, mark: str
) -> None:
    words = gates(why, status, error, mark)
    with serving(words) as upstream, serving(words) as proxy:
        direct = request(tmp_path, upstream.url, method="POST")
        through_the_gate = request(tmp_path, "http://a.test/", method="POST", environment=through(proxy))
    for ended in (direct, through_the_gate):
        assert (ended.status, ended.stderr) == (0, "")
        assert (ended.result["status"], ended.result["json"]) == (status, {"error": error, "why": why})


def test_without_a_way_out_it_is_said_whom_to_ask_and_no_address(tmp_path: Path) -> None:
    with serving(Answer()) as server:
        url = server.url
    for unreachable in (f"{url}/secret-path", "https://no-such-host.invalid/secret-path"):
        ended = request(tmp_path, unreachable)
        assert (ended.status, ended.result) == (1, None)
        assert ended.stderr == (
            "This tool has no egress rule here and reaches nothing; ask the gateway's operator to name what it may reach.\n"
        )
