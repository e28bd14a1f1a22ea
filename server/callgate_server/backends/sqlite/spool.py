"""Where outcomes wait that the ledger cannot take just now, because its disk is full or its file is not to be used.

A call that ran has had its effect, and its outcome must not be lost with the room for it. The spool is a file whose
whole size is taken when it is made, so that writing to it needs no room: an outcome in it is durable, and is moved to
the ledger when that works again, or at the next start before anything is settled. Only outcomes of calls that are in
the ledger come here; new calls are refused as long as it cannot be written.

Each entry is sealed with the ledger's key; what does not carry the seal is the end. File systems that write every
change to a new place (btrfs, zfs) keep no room for us: there the spool can fail with the ledger, and the outcome is
told as unrecorded.
"""

import hmac
import os
import struct
import threading
from pathlib import Path
from typing import Final, Self

from callgate_server.backends.private_files import open_plain, refuse_shared
from callgate_server.ledger.store import Completion
from callgate_server.model.errors import Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.sealed import Sealed
from callgate_server.model.spending import Amounts, Charge, Scope
from callgate_server.model.strict_json import Json, decode, encode

SPOOL_BYTES: Final = 4 * 1024 * 1024
_SIZE: Final = struct.Struct(">I")
_SEAL_BYTES: Final = 32
_END: Final = _SIZE.pack(0)


class Spool:
    """The file, and what is in it. Any thread may call; each write is on the disk when it returns."""

    def __init__(self, descriptor: int, key: Sealed) -> None:
        self._descriptor = descriptor
        self._key = key
        self._lock = threading.Lock()
        self._waiting: dict[str, Completion] = {}
        self._end = 0
        self._load()

    @classmethod
    def open(cls, path: Path, key: Sealed) -> Self:
        """Make or open the spool at `path`.

        Raises:
            PermissionError: the file is a link, of another user or open to others.
            OSError: it cannot be made, or there is no room for it.
        """
        descriptor = open_plain(path, os.O_RDWR | os.O_CREAT)
        try:
            refuse_shared(os.fstat(descriptor), path)
            os.posix_fallocate(descriptor, 0, SPOOL_BYTES)
            os.fsync(descriptor)
            return cls(descriptor, key)
        except BaseException:
            os.close(descriptor)
            raise

    def waiting(self) -> tuple[Completion, ...]:
        """What is to be moved to the ledger, oldest first."""
        with self._lock:
            return tuple(self._waiting.values())

    def find(self, call_id: str) -> Completion | None:
        """The outcome of this call, if it waits here."""
        return self._waiting.get(call_id)

    def keep(self, completion: Completion) -> None:
        """Write down an outcome.

        Raises:
            ValueError: there is no room for it, or one of this call waits already.
            OSError: it cannot be written.
        """
        payload = _to_bytes(completion)
        entry = _SIZE.pack(len(payload)) + self._seal(payload) + payload
        with self._lock:
            if completion.call_id in self._waiting:
                raise ValueError("a call has one outcome")
            if self._end + len(entry) + len(_END) > SPOOL_BYTES:
                raise ValueError("the spool has no room for this outcome")
            # With the end behind it: what older entries left there must not be taken for a next one.
            self._write(entry + _END, self._end)
            self._waiting[completion.call_id] = completion
            self._end += len(entry)

    def moved(self, call_id: str) -> None:
        """Forget an outcome that is in the ledger. The file is emptied with the last one.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:
            if self._waiting.keys() == {call_id}:
                self._write(_END, 0)
                self._end = 0
            self._waiting.pop(call_id, None)

    def close(self) -> None:
        os.close(self._descriptor)

    def _write(self, data: bytes, offset: int) -> None:
        written = os.pwrite(self._descriptor, data, offset)
        if written != len(data):
            raise OSError("the spool was not written whole")
        os.fdatasync(self._descriptor)

    def _load(self) -> None:
        content = os.pread(self._descriptor, SPOOL_BYTES, 0)
        while (payload := self._entry_at(content, self._end)) is not None:
            completion = _from_bytes(payload)
            self._waiting[completion.call_id] = completion
            self._end += _SIZE.size + _SEAL_BYTES + len(payload)

    def _entry_at(self, content: bytes, offset: int) -> bytes | None:
        begin = offset + _SIZE.size + _SEAL_BYTES
        if begin > len(content):
            return None
        (size,) = _SIZE.unpack_from(content, offset)
        payload = content[begin : begin + size]
        seal = content[offset + _SIZE.size : begin]
        sealed = size > 0 and len(payload) == size and hmac.compare_digest(seal, self._seal(payload))
        return payload if sealed else None

    def _seal(self, payload: bytes) -> bytes:
        return hmac.digest(self._key.reveal(), payload, "sha256")


def _to_bytes(completion: Completion) -> bytes:
    """A head in JSON after its length, and the answer's bytes as they are."""
    head = encode(
        {
            "call_id": completion.call_id,
            "state": completion.state.value,
            "reason": None if completion.reason is None else completion.reason.value,
            "message": completion.message,
            "sandbox": completion.sandbox,
            "fallback": completion.fallback,
            "answered": completion.answer_json is not None,
            "charges": [_charge_to_json(charge) for charge in completion.charges],
        }
    )
    return _SIZE.pack(len(head)) + head + (completion.answer_json or b"")


def _from_bytes(payload: bytes) -> Completion:
    """Decode what carried our seal."""
    (size,) = _SIZE.unpack_from(payload)
    head = decode(payload[_SIZE.size : _SIZE.size + size])
    if not isinstance(head, dict):
        raise TypeError("an entry of the spool is not one")
    # An entry of an older version has none.
    charges = head.get("charges", [])
    if not isinstance(charges, list):
        raise TypeError("charges in the spool are none")
    return Completion(
        call_id=str(head["call_id"]),
        state=State(str(head["state"])),
        reason=None if head["reason"] is None else Reason(str(head["reason"])),
        message=str(head["message"]),
        answer_json=payload[_SIZE.size + size :] if head["answered"] else None,
        sandbox=str(head["sandbox"]),
        # Absent in entries of before.
        fallback=None if (kind := head.get("fallback")) is None else str(kind),
        charges=tuple(map(_charge_from_json, charges)),
    )


def _charge_to_json(charge: Charge) -> Json:
    scope, amounts = charge.scope, charge.amounts
    spent = (amounts.calls, amounts.cpu_us, amounts.egress_bytes, amounts.cost)
    return [scope.tenant, scope.agent, scope.task, charge.hour, *spent]


def _charge_from_json(value: Json) -> Charge:
    if not isinstance(value, list):
        raise TypeError("a charge in the spool is not one")
    tenant, agent, task, hour, *amounts = value
    return Charge(Scope(str(tenant), str(agent), str(task)), int(str(hour)), Amounts(*(int(str(n)) for n in amounts)))
