from callgate_server.model.sealed import Sealed
from callgate_server.result.live import LiveViews
from callgate_server.result.redact import Redactor

SECRET = "sk-test-6vQ2hF8kLm0pRz4Xw9Yt"


def views() -> tuple[LiveViews, dict[str, str]]:
    seen = {"stdout": "", "stderr": ""}

    def publish(stream: str, text: str) -> None:
        assert text, "nothing is published when there is nothing to show"
        seen[stream] += text

    return LiveViews(Redactor({"key": Sealed(SECRET.encode())}), publish), seen


def test_a_secret_that_arrives_byte_by_byte_is_never_published() -> None:
    live, seen = views()
    for byte in f"a {SECRET} b, and so on for longer than any form of it {'x' * 300}".encode():
        live.feed("stdout", bytes([byte]))
        assert SECRET[:12] not in seen["stdout"]
    assert seen["stdout"].startswith("a [REDACTED:key] b, and so on")


def test_characters_are_put_together_across_chunks_and_control_characters_made_visible() -> None:
    live, seen = views()
    for byte in "grün \x1b[31m€\n".encode() + b"." * 400:
        live.feed("stderr", bytes([byte]))
    assert seen["stderr"].startswith("grün \\x1b[31m€\n")


def test_the_streams_are_apart() -> None:
    live, seen = views()
    live.feed("stdout", b"out" + b"." * 400)
    live.feed("stderr", b"err" + b"." * 400)
    assert seen["stdout"].startswith("out")
    assert seen["stderr"].startswith("err")
