"""Callgate's Python SDK: typed tool calls through a gateway, sync and async.

`Callgate` and `AsyncCallgate` are the same client; the values they return and the exceptions they raise are
here too. A refused call raises, a call that ran returns an answer.

Example::

    with Callgate("127.0.0.1:9090", token=token) as gateway:
        for tool in gateway.tools():
            print(tool.tool, "-", tool.summary)
        answer = gateway.call("python.run", {"code": "print(6 * 7)"})
        print(answer.stdout.text)
"""

from callgate._async.client import AsyncCallgate
from callgate._sync.client import Callgate
from callgate.approval import Approval, CallApproval
from callgate.dead_letter import CallAttempt, DeadLetter, DeadLetters
from callgate.errors import CallFailed, CallgateError, CallPending, CallRefused, GatewayUnreachable
from callgate.failure import Failure, Violation
from callgate.operating import Breaker, Stop, Stopped
from callgate.task import Amounts, NewTask, Task
from callgate.types import (
    Accepted,
    Answer,
    Answered,
    Artifact,
    CallSummary,
    Decision,
    Event,
    Exit,
    Limits,
    OnDisconnect,
    Output,
    OutputChunk,
    Sandbox,
    Tool,
    Usage,
    Waiting,
)

__all__ = [
    "Accepted",
    "Amounts",
    "Answer",
    "Answered",
    "Approval",
    "Artifact",
    "AsyncCallgate",
    "Breaker",
    "CallApproval",
    "CallAttempt",
    "CallFailed",
    "CallPending",
    "CallRefused",
    "CallSummary",
    "Callgate",
    "CallgateError",
    "DeadLetter",
    "DeadLetters",
    "Decision",
    "Event",
    "Exit",
    "Failure",
    "GatewayUnreachable",
    "Limits",
    "NewTask",
    "OnDisconnect",
    "Output",
    "OutputChunk",
    "Sandbox",
    "Stop",
    "Stopped",
    "Task",
    "Tool",
    "Usage",
    "Violation",
    "Waiting",
]
