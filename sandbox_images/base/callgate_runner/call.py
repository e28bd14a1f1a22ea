"""One call as the gateway sent it: what to run, within which ceilings, with which secrets."""

import os

from callgate_runner import json_text, wire

SECRETS_FOLDER = "/run/secrets"


class WayOut:
    """What the tool gets to reach the outside: an HTTP proxy, local ports, the gate's own certificate authority, and
    the mark of its words."""

    __slots__ = ("authority", "mark", "ports", "proxy")

    def __init__(self, document: object) -> None:
        if not isinstance(document, dict) or not isinstance(document["ports"], list):
            raise TypeError("a call's way out is malformed")
        self.proxy = document["proxy"] is True
        self.ports = [number(port) for port in document["ports"]]
        self.authority = None if document["authority"] is None else text(document["authority"])
        # A gateway from before it sends none.
        self.mark = None if document.get("mark") is None else text(document["mark"])


class Call:
    """A call frame, decoded. The gateway is trusted; what is malformed is a fault, and nothing runs."""

    __slots__ = (
        "arguments",
        "artifacts",
        "artifacts_bytes",
        "command",
        "deadline_s",
        "egress",
        "function",
        "memory_bytes",
        "names",
        "open_files",
        "output_bytes",
        "pids",
        "result_bytes",
        "result_from_stdout",
    )

    def __init__(self, payload: bytes) -> None:
        head, self.arguments = wire.split_head(payload)
        self.function = None if head["python"] is None else text(head["python"])
        self.command = None if head["command"] is None else words(head["command"])
        if (self.function is None) == (self.command is None):
            raise ValueError("a call needs either a function or a command")
        self.result_from_stdout = head["result"] == "stdout"
        self.names = {
            "CALLGATE_CALL_ID": text(head["call_id"]),
            "CALLGATE_IDEMPOTENCY_KEY": text(head["idempotency_key"]),
            "CALLGATE_ATTEMPT": str(number(head["attempt"])),
        }
        self.deadline_s = number(head["deadline_ms"]) / 1000
        self.output_bytes = number(head["output_bytes"])
        self.result_bytes = number(head["result_bytes"])
        self.artifacts = number(head["artifacts"])
        self.artifacts_bytes = number(head["artifacts_bytes"])
        self.memory_bytes = number(head["memory_bytes"])
        self.pids = number(head["pids"])
        self.open_files = number(head["open_files"])
        self.egress = None if head["egress"] is None else WayOut(head["egress"])

    def stdin(self, secrets: dict[str, str]) -> bytes:
        """Return the tool's input: one line of arguments, and one of secrets where it gets any that way."""
        document = self.arguments + b"\n"
        if secrets:
            document += json_text.encode(secrets) + b"\n"
        return document


def accept_secret(payload: bytes, secrets: dict[str, str]) -> None:
    """Take one secret: write it to its file, or add it to `secrets`, those for standard input."""
    name, deliver, value = read_secret(payload)
    if deliver == "stdin":
        secrets[name] = value.decode()
    else:
        _write_secret(name, value)


def read_secret(payload: bytes) -> tuple[str, str, bytes]:
    """Return a secret's name, how it is delivered (`stdin` or `file`), and its value."""
    head, value = wire.split_head(payload)
    name, deliver = text(head["name"]), head["deliver"]
    if not (name.isascii() and name.isidentifier()):
        raise ValueError("a secret's name is not plain")
    if deliver not in ("stdin", "file"):
        raise ValueError("a secret is delivered to a file or to standard input")
    return name, text(deliver), value


def _write_secret(name: str, value: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(f"{SECRETS_FOLDER}/{name}", flags, 0o400)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(value)
    finally:
        os.close(fd)


def text(value: object) -> str:
    """Return a field that must be text."""
    if not isinstance(value, str):
        raise TypeError("a call's field is not text")
    return value


def number(value: object) -> int:
    """Return a field that must be a count."""
    # A bool is an int to Python, but not to the wire.
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError("a call's field is not a count")
    return value


def flag(value: object) -> bool:
    """Return a field that must be true or false."""
    if not isinstance(value, bool):
        raise TypeError("a call's field is neither true nor false")
    return value


def words(value: object) -> list[str]:
    """Return a field that must be a list of words."""
    if not isinstance(value, list) or not value:
        raise TypeError("a call's command is not a list of words")
    return [text(word) for word in value]
