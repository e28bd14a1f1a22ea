"""The gateway's side of the wire: bytes to frames and frames to bytes, without I/O.

It decides which frames exist, which way they go and how large each may be; what a sequence of frames means is
`collect.py`, and what the egress frames hold is `egress_frames.py`. Everything that comes in was written by something
that may be hostile: a length is checked before a byte of the payload is kept, documents are decoded strictly after
their cap, and messages never quote them. The description of the wire is `proto/callgate_proto/frames.json`.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal

from callgate_server.execution.sandbox import Confinement
from callgate_server.model import strict_json
from callgate_server.model.manifest import Limits, Run
from callgate_server.model.run import CallNames, EgressWire
from callgate_server.model.sealed import Sealed
from callgate_server.model.strict_json import Json

WIRE_VERSION: Final = 1
HEADER: Final = struct.Struct(">BI")
_HEAD: Final = struct.Struct(">I")


class FrameType(IntEnum):
    HELLO = 1
    SECRET = 2
    CALL = 3
    CANCEL = 4
    STDOUT = 5
    STDERR = 6
    EXIT = 7
    STDOUT_TAIL = 8
    STDERR_TAIL = 9
    RESULT = 10
    ARTIFACT = 11
    ARTIFACT_DATA = 12
    BYE = 13
    SEAL = 14
    LANE = 15
    EGRESS_OPEN = 32
    EGRESS_DATA = 33
    EGRESS_CLOSE = 34
    EGRESS_CREDIT = 35


# Smallest and largest payload of each frame, by direction: a frame that goes the wrong way is an unknown one.
RECEIVED: Final[dict[int, tuple[int, int]]] = {
    FrameType.HELLO: (2, 256),
    FrameType.STDOUT: (1, 65536),
    FrameType.STDERR: (1, 65536),
    FrameType.EXIT: (2, 4096),
    FrameType.STDOUT_TAIL: (1, 65536),
    FrameType.STDERR_TAIL: (1, 65536),
    FrameType.RESULT: (1, 65536),
    FrameType.ARTIFACT: (2, 8192),
    FrameType.ARTIFACT_DATA: (1, 65536),
    FrameType.BYE: (0, 0),
    FrameType.SEAL: (32, 32),
    FrameType.EGRESS_OPEN: (6, 6),
    FrameType.EGRESS_DATA: (5, 65540),
    FrameType.EGRESS_CLOSE: (5, 5),
    FrameType.EGRESS_CREDIT: (8, 8),
}
SENT: Final[dict[int, tuple[int, int]]] = {
    FrameType.SECRET: (6, 262144),
    FrameType.CALL: (6, 8388608),
    FrameType.CANCEL: (0, 0),
    FrameType.LANE: (6, 131072),
    FrameType.EGRESS_DATA: (5, 65540),
    FrameType.EGRESS_CLOSE: (5, 5),
    FrameType.EGRESS_CREDIT: (8, 8),
}

RunnerCause = Literal["ended", "timed_out", "cancelled", "output_flood", "out_of_memory", "too_many_processes"]
RUNNER_CAUSES: Final[dict[str, RunnerCause]] = {
    "ended": "ended",
    "timed_out": "timed_out",
    "cancelled": "cancelled",
    "output_flood": "output_flood",
    "out_of_memory": "out_of_memory",
    "too_many_processes": "too_many_processes",
}
REJECTIONS: Final = frozenset(
    {
        "symbolic_link",
        "hard_link",
        "not_a_regular_file",
        "bad_name",
        "too_deep",
        "too_many_files",
        "too_large",
        "unreadable",
        "not_examined",
    }
)
# Why the imports of a lane's tool are not kept warm.
COLD: Final = frozenset(
    {
        "output",
        "descriptors",
        "threads",
        "processes",
        "shared memory",
        "files",
        "failure",
        "the zygote died",
        "a cell was not made in time",
    }
)
MAX_REJECTED_ARTIFACTS: Final = 64
MAX_ARTIFACT_NAME_BYTES: Final = 512
_MAX_COUNT: Final = 2**63 - 1
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Frame:
    type: FrameType
    payload: bytes


@dataclass(frozen=True, slots=True)
class ExitFrame:
    """How the runner says the tool ended. Its numbers are in range, and otherwise only a claim."""

    seal: str
    cause: RunnerCause
    code: int | None
    signal: int | None
    oom_kills: int | None
    stdout_bytes: int
    stderr_bytes: int
    result_truncated: bool
    cpu_ms: float | None
    wall_ms: float
    max_rss_kb: int


@dataclass(frozen=True, slots=True)
class ArtifactFrame:
    """Announces a file. `rejected` is one of `REJECTIONS`; without it, `size_bytes` of data follow."""

    name: str
    size_bytes: int
    rejected: str | None


class FrameDecoder:
    """Turns the runner's bytes into frames. Holds at most one payload and the bytes of one `feed`."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take the next bytes; iterate over the frames that they complete.

        What is wrong is found when the iteration comes to it, so that the frames before it are heard however
        the bytes were portioned.

        Raises:
            ValueError: an unknown type, a frame of the other direction, or a length outside its bounds. What
                follows on the wire has no meaning any more.
        """
        self._buffer += data
        return self._complete_frames()

    def _complete_frames(self) -> Iterator[Frame]:
        while len(self._buffer) >= HEADER.size:
            kind, size = HEADER.unpack_from(self._buffer)
            least, most = RECEIVED.get(kind, (1, 0))
            if not least <= size <= most:
                raise ValueError("a frame of an unknown type or a forbidden length")
            end = HEADER.size + size
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            yield Frame(FrameType(kind), payload)


def encode_secret(name: str, deliver: Literal["file", "stdin"], value: Sealed) -> bytes:
    """Return the frame that brings one secret.

    Raises:
        ValueError: the secret is too large, or is meant for standard input and is not UTF-8.
    """
    if deliver == "stdin":
        try:
            value.reveal().decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("a secret for standard input is not UTF-8") from None
    return _with_head(FrameType.SECRET, {"name": name, "deliver": deliver}, value.reveal())


def encode_call(
    run: Run,
    arguments_json: bytes,
    limits: Limits,
    deadline_ms: int,
    names: CallNames,
    egress: EgressWire | None = None,
) -> bytes:
    """Return the frame that starts the tool. `deadline_ms` count from its receipt; without `egress`, it has no way out.

    Raises:
        ValueError: the arguments are too large for the wire.
    """
    head = _common(run, limits) | {
        "call_id": names.call_id,
        "idempotency_key": names.idempotency_key,
        "attempt": names.attempt,
        "deadline_ms": deadline_ms,
        "output_bytes": limits.output_kb * 1024,
        "result_bytes": limits.result_kb * 1024,
        "artifacts_bytes": limits.artifacts_kb * 1024,
        "egress": None if egress is None else _way_out(egress),
    }
    return _with_head(FrameType.CALL, head, arguments_json)


def encode_lane(run: Run, limits: Limits, confinement: Confinement, idle_s: int) -> bytes:
    """Return the frame that makes a sandbox a lane for calls of one tool, which ends itself after `idle_s` without.

    Raises:
        ValueError: it is too large for the wire.
    """
    mounts: list[Json] = [
        {"path": one.path, "options": one.options, "execute": one.execute, "writable": one.writable}
        for one in confinement.mounts
    ]
    filters: list[Json] = [
        {"machine": machine, "bytes": len(program)} for machine, program in confinement.filters.items()
    ]
    head = _common(run, limits) | {
        "idle_s": idle_s,
        "mounts": mounts,
        "filters": filters,
    }
    return _with_head(FrameType.LANE, head, b"".join(confinement.filters.values()))


def _way_out(egress: EgressWire) -> dict[str, Json]:
    authority = egress.authority_pem
    return {
        "proxy": egress.proxy,
        "ports": list(egress.ports),
        "authority": None if authority is None else authority.decode("ascii"),
        "mark": egress.mark,
    }


def _common(run: Run, limits: Limits) -> dict[str, Json]:
    """What a call and the lane for such calls have in common."""
    return {
        "python": run.python,
        "command": None if run.command is None else list(run.command),
        "result": run.result,
        "artifacts": limits.artifacts,
        "memory_bytes": limits.memory_mb * 1024 * 1024,
        "pids": limits.pids,
        "open_files": limits.open_files,
    }


def encode_cancel() -> bytes:
    """Return the frame that asks the runner to kill the tool."""
    return HEADER.pack(FrameType.CANCEL, 0)


def decode_hello(payload: bytes) -> str | None:
    """Check the runner's greeting; return, of a lane, why each call imports its tool anew, None where that is not so.

    Raises:
        ValueError: it is no greeting, or speaks another version of the wire.
    """
    document = _document(payload)
    if document == {"wire": WIRE_VERSION}:
        return None
    cold = document.get("cold")
    if not isinstance(cold, str) or cold not in COLD or document != {"wire": WIRE_VERSION, "cold": cold}:
        raise ValueError("the runner speaks another version of the wire")
    return cold


def decode_exit(payload: bytes) -> ExitFrame:
    """Decode how the tool ended.

    Raises:
        ValueError: it is malformed, or its numbers are out of range.
    """
    document = _document(payload)
    seal, cause = document.get("seal"), document.get("cause")
    if not isinstance(seal, str):
        raise ValueError("an exit frame without a seal")
    truncated = document.get("result_truncated")
    if not isinstance(cause, str) or cause not in RUNNER_CAUSES or not isinstance(truncated, bool):
        raise ValueError("a malformed exit frame")
    code, signal = _optional_count(document, "code", 255), _optional_count(document, "signal", 64)
    if (code is not None and signal is not None) or (cause == "ended" and code is None and signal is None):
        raise ValueError("an exit frame needs either a code or a signal")
    return ExitFrame(
        seal=seal,
        cause=RUNNER_CAUSES[cause],
        code=code,
        signal=signal,
        oom_kills=_optional_count(document, "oom_kills", _MAX_COUNT),
        stdout_bytes=_count(document, "stdout_bytes", _MAX_COUNT),
        stderr_bytes=_count(document, "stderr_bytes", _MAX_COUNT),
        result_truncated=truncated,
        cpu_ms=None if document.get("cpu_ms") is None else _duration(document, "cpu_ms"),
        wall_ms=_duration(document, "wall_ms"),
        max_rss_kb=_count(document, "max_rss_kb", _MAX_COUNT),
    )


def decode_artifact(payload: bytes) -> ArtifactFrame:
    """Decode the announcement of a file. The name of an accepted one is a plain relative path.

    Raises:
        ValueError: it is malformed.
    """
    document = _document(payload)
    name = document.get("name")
    rejected = document.get("rejected")
    if not isinstance(name, str) or len(name.encode()) > MAX_ARTIFACT_NAME_BYTES or _CONTROL.search(name):
        raise ValueError("an artifact with a malformed name")
    if rejected is not None and (not isinstance(rejected, str) or rejected not in REJECTIONS):
        raise ValueError("an artifact rejected for an unknown reason")
    if rejected is None and any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError("an artifact whose name is not a relative path")
    return ArtifactFrame(name, _count(document, "size", _MAX_COUNT), rejected)


def _with_head(kind: FrameType, head: dict[str, Json], body: bytes) -> bytes:
    encoded = strict_json.encode(head)
    size = _HEAD.size + len(encoded) + len(body)
    if size > SENT[kind][1]:
        raise ValueError(f"a {kind.name.lower()} frame would be larger than the wire allows")
    return b"".join((HEADER.pack(kind, size), _HEAD.pack(len(encoded)), encoded, body))


def _document(payload: bytes) -> dict[str, Json]:
    document = strict_json.decode(payload)
    if not isinstance(document, dict):
        raise ValueError("a frame's document is not an object")
    return document


def _count(document: dict[str, Json], key: str, most: int) -> int:
    value = document.get(key)
    # A bool is an int to Python, but not to the wire.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"a frame's {key} is out of range")
    return value


def _optional_count(document: dict[str, Json], key: str, most: int) -> int | None:
    return None if document.get(key) is None else _count(document, key, most)


def _duration(document: dict[str, Json], key: str) -> float:
    value = document.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _MAX_COUNT:
        raise ValueError(f"a frame's {key} is out of range")
    return float(value)
