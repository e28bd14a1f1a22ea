import asyncio
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from callgate_server.backends.jwks import MAX_AGE_S, MAX_BYTES, JwksFile, JwksUrl

SET = {"keys": [{"kid": "one", "kty": "RSA"}, {"kid": "two", "kty": "EC"}]}


class Provider(BaseHTTPRequestHandler):
    """Answers with what the server is told to; counts who asked."""

    def do_GET(self):
        self.server.asked.append(self.path)
        self.server.answer(self)

    def log_message(self, *_):
        pass


def say(document, status=200, headers=()):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()

    def answer(handler):
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers:
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@contextmanager
def provider(answer):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    server.daemon_threads = True
    server.answer, server.asked = answer, []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}/keys"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


async def test_keys_are_fetched_once_and_kept():
    with provider(say(SET)) as (server, url):
        jwks = JwksUrl(url)
        assert (await jwks.key("one"))["kty"] == "RSA"
        assert (await jwks.key("two"))["kty"] == "EC"
        assert server.asked == ["/keys"]
        await jwks.close()


async def test_an_unknown_key_makes_us_look_again_but_not_more_often_than_the_interval():
    clock = Clock()
    with provider(say(SET)) as (server, url):
        jwks = JwksUrl(url, interval_s=30, now=clock)
        for _ in range(20):
            assert await jwks.key("three") is None
        assert len(server.asked) == 1
        server.answer = say({"keys": [{"kid": "three"}]})
        clock.now_s += 29
        assert await jwks.key("three") is None
        clock.now_s += 1
        assert await jwks.key("three") == {"kid": "three"}
        assert len(server.asked) == 2
        await jwks.close()


async def test_a_crowd_with_unknown_keys_asks_once():
    with provider(say(SET)) as (server, url):
        jwks = JwksUrl(url)
        assert await asyncio.gather(*(jwks.key(f"x{number}") for number in range(50))) == [None] * 50
        assert len(server.asked) == 1
        await jwks.close()


async def test_a_withdrawn_key_is_forgotten_when_the_set_is_old():
    clock = Clock()
    with provider(say(SET)) as (server, url):
        jwks = JwksUrl(url, now=clock)
        assert await jwks.key("one")
        server.answer = say({"keys": [{"kid": "two"}]})
        clock.now_s += MAX_AGE_S - 1
        assert await jwks.key("one")
        clock.now_s += 1
        assert await jwks.key("one") is None
        await jwks.close()


@pytest.mark.parametrize(
    "trouble",
    [
        say(b"", 500),
        say(SET, 404),
        say(b"", 302, [("Location", "/elsewhere")]),
        say(b"not json"),
        say({"keys": {}}),
        say([]),
        say({"keys": [{"kid": "one"}, {"kid": "one"}]}),
        say(b'{"keys":[],"keys":[]}'),
        say(b" " * (MAX_BYTES + 1)),
        lambda handler: handler.connection.close(),
        lambda handler: handler.wfile.write(b"garbage\r\n\r\n"),
    ],
)
async def test_trouble_keeps_the_last_good_set_and_without_one_there_is_no_key(trouble):
    clock = Clock()
    with provider(trouble) as (server, url):
        jwks = JwksUrl(url, interval_s=1, now=clock)
        assert await jwks.key("one") is None
        clock.now_s += 1
        server.answer = say(SET)
        assert await jwks.key("one")
        clock.now_s += MAX_AGE_S
        server.answer = trouble
        assert await jwks.key("one")
        assert len(server.asked) == 3
        await jwks.close()


async def test_a_redirect_is_not_followed():
    with provider(say(SET)) as (other, elsewhere), provider(say(b"", 302, [("Location", elsewhere)])) as (_, url):
        jwks = JwksUrl(url)
        assert await jwks.key("one") is None
        assert other.asked == []
        await jwks.close()


async def test_proxies_of_the_environment_are_not_used(monkeypatch):
    with provider(say(SET)) as (_, url), provider(say({"keys": []})) as (proxy, address):
        monkeypatch.setenv("http_proxy", address)
        monkeypatch.setenv("no_proxy", "")
        jwks = JwksUrl(url)
        assert await jwks.key("one")
        assert proxy.asked == []
        await jwks.close()


async def test_nobody_answering_is_no_key():
    with provider(say(SET)) as (_, url):
        pass
    jwks = JwksUrl(url)
    assert await jwks.key("one") is None
    await jwks.close()


async def test_a_provider_that_trickles_does_not_hold_us():
    finished = threading.Event()

    def trickle(handler):
        handler.send_response(200)
        handler.end_headers()
        try:
            while not finished.wait(0.02):
                handler.wfile.write(b" ")
        except OSError:
            pass

    with provider(trickle) as (_, url):
        jwks = JwksUrl(url, timeout_s=0.3)
        async with asyncio.timeout(10):
            assert await jwks.key("one") is None
        finished.set()
        await jwks.close()


@pytest.mark.parametrize(
    "url",
    [
        "http://id.example/keys",
        "http://127.0.0.1.id.example/keys",
        "http://10.0.0.1/keys",
        "http://user:password@127.0.0.1/keys",
        "https://user@id.example/keys",
        "file:///etc/passwd",
        "ftp://127.0.0.1/keys",
        "data:,{}",
        "https:///keys",
        "keys",
        "",
    ],
)
def test_keys_come_by_https_or_from_this_machine(url):
    with pytest.raises(ValueError, match="key set"):
        JwksUrl(url)


@pytest.mark.parametrize(
    "url", ["https://id.example/k", "http://localhost:1/k", "http://[::1]:1/k", "http://127.8.8.8/k"]
)
async def test_addresses_that_are_taken(url):
    await JwksUrl(url).close()


async def test_a_file_is_followed_when_it_changes(tmp_path):
    path = tmp_path / "jwks.json"
    jwks = JwksFile(path)
    assert await jwks.key("one") is None
    path.write_text(json.dumps(SET))
    assert (await jwks.key("one"))["kty"] == "RSA"
    path.write_text(json.dumps({"keys": [{"kid": "three"}]}))
    assert await jwks.key("one") is None
    assert await jwks.key("three")


async def test_a_broken_or_missing_file_keeps_the_last_good_set(tmp_path, caplog):
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(SET))
    jwks = JwksFile(path)
    assert await jwks.key("one")
    path.write_text("{")
    for _ in range(3):
        assert await jwks.key("one")
    path.unlink()
    for _ in range(3):
        assert await jwks.key("one")
    assert len(caplog.records) == 2


@pytest.mark.parametrize("mode", [0o620, 0o602])
async def test_a_file_that_others_can_write_gives_no_key(tmp_path, mode):
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(SET))
    path.chmod(mode)
    jwks = JwksFile(path)
    assert await jwks.key("one") is None
    path.chmod(0o644)
    assert await jwks.key("one")


async def test_keys_without_an_id_are_left_out(tmp_path):
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [{"kty": "RSA"}, "x", {"kid": 1}, {"kid": "one"}]}))
    assert await JwksFile(path).key("one") == {"kid": "one"}
