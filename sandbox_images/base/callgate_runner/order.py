"""What the calls of a lane have in common, as the gateway sent it when it opened the lane."""

import os

from callgate_runner import wire
from callgate_runner.call import flag, number, text, words
from callgate_runner.namespaces import Filter


class Mount:
    """One empty file system that every call gets for itself."""

    __slots__ = ("execute", "options", "path", "writable")

    def __init__(self, document: dict[str, object]) -> None:
        self.path = text(document["path"]).encode()
        self.options = text(document["options"]).encode()
        self.execute = flag(document["execute"])
        self.writable = flag(document["writable"])


class Order:
    """A lane frame, decoded. The gateway is trusted; what is malformed is a fault, and nothing runs."""

    __slots__ = (
        "artifacts",
        "command",
        "filter",
        "function",
        "idle_s",
        "memory_bytes",
        "mounts",
        "open_files",
        "pids",
        "result_from_stdout",
    )

    def __init__(self, payload: bytes) -> None:
        head, filters = wire.split_head(payload)
        self.function = None if head["python"] is None else text(head["python"])
        self.command = None if head["command"] is None else words(head["command"])
        if (self.function is None) == (self.command is None):
            raise ValueError("a lane needs either a function or a command")
        self.result_from_stdout = head["result"] == "stdout"
        self.artifacts = number(head["artifacts"])
        self.memory_bytes = number(head["memory_bytes"])
        self.pids = number(head["pids"])
        self.open_files = number(head["open_files"])
        self.idle_s = number(head["idle_s"])
        self.mounts = [Mount(document) for document in _list(head["mounts"])]
        self.filter = Filter(_own_part(_list(head["filters"]), filters))


def _own_part(parts: list[dict[str, object]], filters: bytes) -> bytes:
    """Return the filter of this machine, of those that stand one behind the other."""
    start = 0
    for part in parts:
        end = start + number(part["bytes"])
        if end > len(filters):
            # The part of it that is there would be another filter.
            raise ValueError("a filter is shorter than its head says")
        if part["machine"] == os.uname().machine:
            return filters[start:end]
        start = end
    raise ValueError("there is no filter for this machine")


def _list(value: object) -> list[dict[str, object]]:
    if not isinstance(value, list):
        raise TypeError("a field of a lane's order is not a list")
    return value
