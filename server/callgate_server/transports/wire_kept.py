"""Documents of approvals and dead letters as messages. See `wire.py`."""

from collections.abc import Mapping
from typing import Any

from callgate_proto.v1 import gateway_pb2
from callgate_server.model.strict_json import encode
from callgate_server.transports.wire import failure_to_proto, timestamp


def approval_to_proto(document: Mapping[str, Any]) -> gateway_pb2.Approval:
    arguments = document["arguments"]
    return gateway_pb2.Approval(
        call_id=document["call_id"],
        tool=document["tool"],
        version=document["version"],
        summary=document["summary"],
        effect=document["effect"],
        tenant=document["tenant"],
        agent=document["agent"],
        task=document["task"],
        group=document["group"],
        policies=document["policies"],
        purpose=document["purpose"],
        arguments_json=None if arguments is None else encode(arguments),
        digest=document["digest"],
        state=document["state"],
        requested_at=timestamp(document["requested_at"]),
        expires_at=timestamp(document["expires_at"]),
        decided_at=timestamp(document["decided_at"]),
        decided_by=document["decided_by"],
    )


def dead_letter_to_proto(document: Mapping[str, Any]) -> gateway_pb2.DeadLetter:
    return gateway_pb2.DeadLetter(
        call_id=document["call_id"],
        tool=document["tool"],
        version=document["version"],
        tenant=document["tenant"],
        agent=document["agent"],
        task=document["task"],
        state=document["state"],
        error=failure_to_proto(document["error"]),
        effect=document["effect"],
        received_at=timestamp(document["received_at"]),
        finished_at=timestamp(document["finished_at"]),
        attempts=[
            gateway_pb2.CallAttempt(
                attempt=step["attempt"], at=timestamp(step["at"]), state=step["state"], reason=step["reason"]
            )
            for step in document["attempts"]
        ],
        redrivable=document["redrivable"],
        follows=document["follows"],
    )
