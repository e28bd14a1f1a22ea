import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OnDisconnect(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ON_DISCONNECT_UNSPECIFIED: _ClassVar[OnDisconnect]
    ON_DISCONNECT_DETACH: _ClassVar[OnDisconnect]
    ON_DISCONNECT_CANCEL: _ClassVar[OnDisconnect]
ON_DISCONNECT_UNSPECIFIED: OnDisconnect
ON_DISCONNECT_DETACH: OnDisconnect
ON_DISCONNECT_CANCEL: OnDisconnect

class CallRequest(_message.Message):
    __slots__ = ("tool", "arguments_json", "idempotency_key", "deadline_ms", "on_disconnect", "content_text", "asynchronous", "priority", "task", "purpose")
    TOOL_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    ON_DISCONNECT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TEXT_FIELD_NUMBER: _ClassVar[int]
    ASYNCHRONOUS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    tool: str
    arguments_json: bytes
    idempotency_key: str
    deadline_ms: int
    on_disconnect: OnDisconnect
    content_text: bool
    asynchronous: bool
    priority: int
    task: str
    purpose: str
    def __init__(self, tool: _Optional[str] = ..., arguments_json: _Optional[bytes] = ..., idempotency_key: _Optional[str] = ..., deadline_ms: _Optional[int] = ..., on_disconnect: _Optional[_Union[OnDisconnect, str]] = ..., content_text: _Optional[bool] = ..., asynchronous: _Optional[bool] = ..., priority: _Optional[int] = ..., task: _Optional[str] = ..., purpose: _Optional[str] = ...) -> None: ...

class CallResponse(_message.Message):
    __slots__ = ("answer", "summary")
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    answer: Answer
    summary: CallSummary
    def __init__(self, answer: _Optional[_Union[Answer, _Mapping]] = ..., summary: _Optional[_Union[CallSummary, _Mapping]] = ...) -> None: ...

class FollowCallRequest(_message.Message):
    __slots__ = ("call_id", "after", "content_text")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TEXT_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    after: int
    content_text: bool
    def __init__(self, call_id: _Optional[str] = ..., after: _Optional[int] = ..., content_text: _Optional[bool] = ...) -> None: ...

class FollowCallResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: StreamCallResponse
    def __init__(self, event: _Optional[_Union[StreamCallResponse, _Mapping]] = ...) -> None: ...

class StreamCallRequest(_message.Message):
    __slots__ = ("call",)
    CALL_FIELD_NUMBER: _ClassVar[int]
    call: CallRequest
    def __init__(self, call: _Optional[_Union[CallRequest, _Mapping]] = ...) -> None: ...

class StreamCallResponse(_message.Message):
    __slots__ = ("seq", "accepted", "output", "answer", "error", "waiting")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    seq: int
    accepted: Accepted
    output: OutputChunk
    answer: Answer
    error: Error
    waiting: Waiting
    def __init__(self, seq: _Optional[int] = ..., accepted: _Optional[_Union[Accepted, _Mapping]] = ..., output: _Optional[_Union[OutputChunk, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., waiting: _Optional[_Union[Waiting, _Mapping]] = ...) -> None: ...

class GetCallRequest(_message.Message):
    __slots__ = ("call_id", "content_text")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TEXT_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    content_text: bool
    def __init__(self, call_id: _Optional[str] = ..., content_text: _Optional[bool] = ...) -> None: ...

class GetCallResponse(_message.Message):
    __slots__ = ("answer", "summary")
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    answer: Answer
    summary: CallSummary
    def __init__(self, answer: _Optional[_Union[Answer, _Mapping]] = ..., summary: _Optional[_Union[CallSummary, _Mapping]] = ...) -> None: ...

class CancelCallRequest(_message.Message):
    __slots__ = ("call_id", "content_text")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TEXT_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    content_text: bool
    def __init__(self, call_id: _Optional[str] = ..., content_text: _Optional[bool] = ...) -> None: ...

class CancelCallResponse(_message.Message):
    __slots__ = ("answer", "summary")
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    answer: Answer
    summary: CallSummary
    def __init__(self, answer: _Optional[_Union[Answer, _Mapping]] = ..., summary: _Optional[_Union[CallSummary, _Mapping]] = ...) -> None: ...

class ListCallsRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class ListCallsResponse(_message.Message):
    __slots__ = ("calls",)
    CALLS_FIELD_NUMBER: _ClassVar[int]
    calls: _containers.RepeatedCompositeFieldContainer[CallSummary]
    def __init__(self, calls: _Optional[_Iterable[_Union[CallSummary, _Mapping]]] = ...) -> None: ...

class ListToolsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListToolsResponse(_message.Message):
    __slots__ = ("tools",)
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    tools: _containers.RepeatedCompositeFieldContainer[Tool]
    def __init__(self, tools: _Optional[_Iterable[_Union[Tool, _Mapping]]] = ...) -> None: ...

class GetToolRequest(_message.Message):
    __slots__ = ("tool",)
    TOOL_FIELD_NUMBER: _ClassVar[int]
    tool: str
    def __init__(self, tool: _Optional[str] = ...) -> None: ...

class GetToolResponse(_message.Message):
    __slots__ = ("tool",)
    TOOL_FIELD_NUMBER: _ClassVar[int]
    tool: Tool
    def __init__(self, tool: _Optional[_Union[Tool, _Mapping]] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("call_id",)
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    def __init__(self, call_id: _Optional[str] = ...) -> None: ...

class Waiting(_message.Message):
    __slots__ = ("call_id", "state", "group", "expires_at")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    state: str
    group: str
    expires_at: _timestamp_pb2.Timestamp
    def __init__(self, call_id: _Optional[str] = ..., state: _Optional[str] = ..., group: _Optional[str] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class OutputChunk(_message.Message):
    __slots__ = ("stream", "text")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    stream: str
    text: str
    def __init__(self, stream: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("call_id", "failure", "policies", "violations")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    failure: Failure
    policies: _containers.RepeatedScalarFieldContainer[str]
    violations: _containers.RepeatedCompositeFieldContainer[Violation]
    def __init__(self, call_id: _Optional[str] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., policies: _Optional[_Iterable[str]] = ..., violations: _Optional[_Iterable[_Union[Violation, _Mapping]]] = ...) -> None: ...

class Violation(_message.Message):
    __slots__ = ("path", "rule", "message")
    PATH_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    path: str
    rule: str
    message: str
    def __init__(self, path: _Optional[str] = ..., rule: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("call_id", "tool", "version", "state", "result_json", "error", "exit", "stdout", "stderr", "artifacts", "untrusted", "replayed", "usage", "sandbox", "decision", "content", "fallback", "attempt")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RESULT_JSON_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    EXIT_FIELD_NUMBER: _ClassVar[int]
    STDOUT_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    UNTRUSTED_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    SANDBOX_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    tool: str
    version: str
    state: str
    result_json: bytes
    error: Failure
    exit: Exit
    stdout: Output
    stderr: Output
    artifacts: _containers.RepeatedCompositeFieldContainer[Artifact]
    untrusted: bool
    replayed: bool
    usage: Usage
    sandbox: Sandbox
    decision: Decision
    content: Content
    fallback: Fallback
    attempt: int
    def __init__(self, call_id: _Optional[str] = ..., tool: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[str] = ..., result_json: _Optional[bytes] = ..., error: _Optional[_Union[Failure, _Mapping]] = ..., exit: _Optional[_Union[Exit, _Mapping]] = ..., stdout: _Optional[_Union[Output, _Mapping]] = ..., stderr: _Optional[_Union[Output, _Mapping]] = ..., artifacts: _Optional[_Iterable[_Union[Artifact, _Mapping]]] = ..., untrusted: _Optional[bool] = ..., replayed: _Optional[bool] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., sandbox: _Optional[_Union[Sandbox, _Mapping]] = ..., decision: _Optional[_Union[Decision, _Mapping]] = ..., content: _Optional[_Union[Content, _Mapping]] = ..., fallback: _Optional[_Union[Fallback, _Mapping]] = ..., attempt: _Optional[int] = ...) -> None: ...

class Fallback(_message.Message):
    __slots__ = ("kind", "error", "tool", "call_id", "age_s")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    kind: str
    error: Failure
    tool: str
    call_id: str
    age_s: float
    def __init__(self, kind: _Optional[str] = ..., error: _Optional[_Union[Failure, _Mapping]] = ..., tool: _Optional[str] = ..., call_id: _Optional[str] = ..., age_s: _Optional[float] = ...) -> None: ...

class Content(_message.Message):
    __slots__ = ("nonce", "untrusted", "text")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    UNTRUSTED_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    untrusted: bool
    text: str
    def __init__(self, nonce: _Optional[str] = ..., untrusted: _Optional[bool] = ..., text: _Optional[str] = ...) -> None: ...

class CallSummary(_message.Message):
    __slots__ = ("call_id", "tool", "version", "state", "error", "received_at", "finished_at", "policies", "approval", "task", "attempt", "follows")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FOLLOWS_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    tool: str
    version: str
    state: str
    error: Failure
    received_at: _timestamp_pb2.Timestamp
    finished_at: _timestamp_pb2.Timestamp
    policies: _containers.RepeatedScalarFieldContainer[str]
    approval: CallApproval
    task: str
    attempt: int
    follows: str
    def __init__(self, call_id: _Optional[str] = ..., tool: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[str] = ..., error: _Optional[_Union[Failure, _Mapping]] = ..., received_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finished_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., policies: _Optional[_Iterable[str]] = ..., approval: _Optional[_Union[CallApproval, _Mapping]] = ..., task: _Optional[str] = ..., attempt: _Optional[int] = ..., follows: _Optional[str] = ...) -> None: ...

class CallApproval(_message.Message):
    __slots__ = ("group", "expires_at", "decided_by")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    DECIDED_BY_FIELD_NUMBER: _ClassVar[int]
    group: str
    expires_at: _timestamp_pb2.Timestamp
    decided_by: str
    def __init__(self, group: _Optional[str] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., decided_by: _Optional[str] = ...) -> None: ...

class Approval(_message.Message):
    __slots__ = ("call_id", "tool", "version", "summary", "effect", "tenant", "agent", "task", "group", "policies", "purpose", "arguments_json", "digest", "state", "requested_at", "expires_at", "decided_at", "decided_by")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REQUESTED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    DECIDED_AT_FIELD_NUMBER: _ClassVar[int]
    DECIDED_BY_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    tool: str
    version: str
    summary: str
    effect: str
    tenant: str
    agent: str
    task: str
    group: str
    policies: _containers.RepeatedScalarFieldContainer[str]
    purpose: str
    arguments_json: bytes
    digest: str
    state: str
    requested_at: _timestamp_pb2.Timestamp
    expires_at: _timestamp_pb2.Timestamp
    decided_at: _timestamp_pb2.Timestamp
    decided_by: str
    def __init__(self, call_id: _Optional[str] = ..., tool: _Optional[str] = ..., version: _Optional[str] = ..., summary: _Optional[str] = ..., effect: _Optional[str] = ..., tenant: _Optional[str] = ..., agent: _Optional[str] = ..., task: _Optional[str] = ..., group: _Optional[str] = ..., policies: _Optional[_Iterable[str]] = ..., purpose: _Optional[str] = ..., arguments_json: _Optional[bytes] = ..., digest: _Optional[str] = ..., state: _Optional[str] = ..., requested_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., decided_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., decided_by: _Optional[str] = ...) -> None: ...

class ListApprovalsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListApprovalsResponse(_message.Message):
    __slots__ = ("approvals",)
    APPROVALS_FIELD_NUMBER: _ClassVar[int]
    approvals: _containers.RepeatedCompositeFieldContainer[Approval]
    def __init__(self, approvals: _Optional[_Iterable[_Union[Approval, _Mapping]]] = ...) -> None: ...

class GetApprovalRequest(_message.Message):
    __slots__ = ("call_id",)
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    def __init__(self, call_id: _Optional[str] = ...) -> None: ...

class GetApprovalResponse(_message.Message):
    __slots__ = ("approval",)
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    approval: Approval
    def __init__(self, approval: _Optional[_Union[Approval, _Mapping]] = ...) -> None: ...

class DecideApprovalRequest(_message.Message):
    __slots__ = ("call_id", "digest", "approve")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    APPROVE_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    digest: str
    approve: bool
    def __init__(self, call_id: _Optional[str] = ..., digest: _Optional[str] = ..., approve: _Optional[bool] = ...) -> None: ...

class DecideApprovalResponse(_message.Message):
    __slots__ = ("approval",)
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    approval: Approval
    def __init__(self, approval: _Optional[_Union[Approval, _Mapping]] = ...) -> None: ...

class DeadLetter(_message.Message):
    __slots__ = ("call_id", "tool", "version", "tenant", "agent", "task", "state", "error", "effect", "received_at", "finished_at", "attempts", "redrivable", "follows")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    REDRIVABLE_FIELD_NUMBER: _ClassVar[int]
    FOLLOWS_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    tool: str
    version: str
    tenant: str
    agent: str
    task: str
    state: str
    error: Failure
    effect: str
    received_at: _timestamp_pb2.Timestamp
    finished_at: _timestamp_pb2.Timestamp
    attempts: _containers.RepeatedCompositeFieldContainer[CallAttempt]
    redrivable: bool
    follows: str
    def __init__(self, call_id: _Optional[str] = ..., tool: _Optional[str] = ..., version: _Optional[str] = ..., tenant: _Optional[str] = ..., agent: _Optional[str] = ..., task: _Optional[str] = ..., state: _Optional[str] = ..., error: _Optional[_Union[Failure, _Mapping]] = ..., effect: _Optional[str] = ..., received_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finished_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., attempts: _Optional[_Iterable[_Union[CallAttempt, _Mapping]]] = ..., redrivable: _Optional[bool] = ..., follows: _Optional[str] = ...) -> None: ...

class CallAttempt(_message.Message):
    __slots__ = ("attempt", "at", "state", "reason")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    at: _timestamp_pb2.Timestamp
    state: str
    reason: str
    def __init__(self, attempt: _Optional[int] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ListDeadLettersRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class ListDeadLettersResponse(_message.Message):
    __slots__ = ("dead_letters", "total")
    DEAD_LETTERS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    dead_letters: _containers.RepeatedCompositeFieldContainer[DeadLetter]
    total: int
    def __init__(self, dead_letters: _Optional[_Iterable[_Union[DeadLetter, _Mapping]]] = ..., total: _Optional[int] = ...) -> None: ...

class GetDeadLetterRequest(_message.Message):
    __slots__ = ("call_id",)
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    def __init__(self, call_id: _Optional[str] = ...) -> None: ...

class GetDeadLetterResponse(_message.Message):
    __slots__ = ("dead_letter",)
    DEAD_LETTER_FIELD_NUMBER: _ClassVar[int]
    dead_letter: DeadLetter
    def __init__(self, dead_letter: _Optional[_Union[DeadLetter, _Mapping]] = ...) -> None: ...

class RedriveDeadLetterRequest(_message.Message):
    __slots__ = ("call_id",)
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    def __init__(self, call_id: _Optional[str] = ...) -> None: ...

class RedriveDeadLetterResponse(_message.Message):
    __slots__ = ("call",)
    CALL_FIELD_NUMBER: _ClassVar[int]
    call: CallSummary
    def __init__(self, call: _Optional[_Union[CallSummary, _Mapping]] = ...) -> None: ...

class DiscardDeadLetterRequest(_message.Message):
    __slots__ = ("call_id",)
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    def __init__(self, call_id: _Optional[str] = ...) -> None: ...

class DiscardDeadLetterResponse(_message.Message):
    __slots__ = ("call",)
    CALL_FIELD_NUMBER: _ClassVar[int]
    call: CallSummary
    def __init__(self, call: _Optional[_Union[CallSummary, _Mapping]] = ...) -> None: ...

class SettleCallRequest(_message.Message):
    __slots__ = ("call_id", "happened")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    HAPPENED_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    happened: bool
    def __init__(self, call_id: _Optional[str] = ..., happened: _Optional[bool] = ...) -> None: ...

class SettleCallResponse(_message.Message):
    __slots__ = ("call",)
    CALL_FIELD_NUMBER: _ClassVar[int]
    call: CallSummary
    def __init__(self, call: _Optional[_Union[CallSummary, _Mapping]] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("tools_json",)
    class ToolsJsonEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    TOOLS_JSON_FIELD_NUMBER: _ClassVar[int]
    tools_json: _containers.ScalarMap[str, bytes]
    def __init__(self, tools_json: _Optional[_Mapping[str, bytes]] = ...) -> None: ...

class Budget(_message.Message):
    __slots__ = ("calls", "cpu_s", "egress_bytes", "cost")
    CALLS_FIELD_NUMBER: _ClassVar[int]
    CPU_S_FIELD_NUMBER: _ClassVar[int]
    EGRESS_BYTES_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    calls: int
    cpu_s: float
    egress_bytes: int
    cost: float
    def __init__(self, calls: _Optional[int] = ..., cpu_s: _Optional[float] = ..., egress_bytes: _Optional[int] = ..., cost: _Optional[float] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("task_id", "name", "agent", "grant", "budget", "spent", "created_at", "expires_at", "ended_at")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    name: str
    agent: str
    grant: Grant
    budget: Budget
    spent: Budget
    created_at: _timestamp_pb2.Timestamp
    expires_at: _timestamp_pb2.Timestamp
    ended_at: _timestamp_pb2.Timestamp
    def __init__(self, task_id: _Optional[str] = ..., name: _Optional[str] = ..., agent: _Optional[str] = ..., grant: _Optional[_Union[Grant, _Mapping]] = ..., budget: _Optional[_Union[Budget, _Mapping]] = ..., spent: _Optional[_Union[Budget, _Mapping]] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ended_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class CreateTaskRequest(_message.Message):
    __slots__ = ("name", "grant", "budget", "lifetime_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    grant: Grant
    budget: Budget
    lifetime_s: float
    def __init__(self, name: _Optional[str] = ..., grant: _Optional[_Union[Grant, _Mapping]] = ..., budget: _Optional[_Union[Budget, _Mapping]] = ..., lifetime_s: _Optional[float] = ...) -> None: ...

class CreateTaskResponse(_message.Message):
    __slots__ = ("task", "token")
    TASK_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    task: Task
    token: str
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ..., token: _Optional[str] = ...) -> None: ...

class ListTasksRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class ListTasksResponse(_message.Message):
    __slots__ = ("tasks",)
    TASKS_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[Task]
    def __init__(self, tasks: _Optional[_Iterable[_Union[Task, _Mapping]]] = ...) -> None: ...

class GetTaskRequest(_message.Message):
    __slots__ = ("task_id",)
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    def __init__(self, task_id: _Optional[str] = ...) -> None: ...

class GetTaskResponse(_message.Message):
    __slots__ = ("task",)
    TASK_FIELD_NUMBER: _ClassVar[int]
    task: Task
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ...) -> None: ...

class EndTaskRequest(_message.Message):
    __slots__ = ("task_id",)
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    def __init__(self, task_id: _Optional[str] = ...) -> None: ...

class EndTaskResponse(_message.Message):
    __slots__ = ("task",)
    TASK_FIELD_NUMBER: _ClassVar[int]
    task: Task
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ...) -> None: ...

class Breaker(_message.Message):
    __slots__ = ("name", "state", "calls", "failures", "slow", "retry_after_ms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    SLOW_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    calls: int
    failures: int
    slow: int
    retry_after_ms: int
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., calls: _Optional[int] = ..., failures: _Optional[int] = ..., slow: _Optional[int] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class ListBreakersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListBreakersResponse(_message.Message):
    __slots__ = ("breakers",)
    BREAKERS_FIELD_NUMBER: _ClassVar[int]
    breakers: _containers.RepeatedCompositeFieldContainer[Breaker]
    def __init__(self, breakers: _Optional[_Iterable[_Union[Breaker, _Mapping]]] = ...) -> None: ...

class SetBreakerRequest(_message.Message):
    __slots__ = ("name", "open")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    open: bool
    def __init__(self, name: _Optional[str] = ..., open: _Optional[bool] = ...) -> None: ...

class SetBreakerResponse(_message.Message):
    __slots__ = ("breaker",)
    BREAKER_FIELD_NUMBER: _ClassVar[int]
    breaker: Breaker
    def __init__(self, breaker: _Optional[_Union[Breaker, _Mapping]] = ...) -> None: ...

class Stopped(_message.Message):
    __slots__ = ("agent", "reason", "at", "by")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    agent: str
    reason: str
    at: _timestamp_pb2.Timestamp
    by: str
    def __init__(self, agent: _Optional[str] = ..., reason: _Optional[str] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., by: _Optional[str] = ...) -> None: ...

class ListStopsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListStopsResponse(_message.Message):
    __slots__ = ("stops",)
    STOPS_FIELD_NUMBER: _ClassVar[int]
    stops: _containers.RepeatedCompositeFieldContainer[Stopped]
    def __init__(self, stops: _Optional[_Iterable[_Union[Stopped, _Mapping]]] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ("agent", "reason")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    agent: str
    reason: str
    def __init__(self, agent: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class StopResponse(_message.Message):
    __slots__ = ("stopped", "cancelled")
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    stopped: Stopped
    cancelled: int
    def __init__(self, stopped: _Optional[_Union[Stopped, _Mapping]] = ..., cancelled: _Optional[int] = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ("agent",)
    AGENT_FIELD_NUMBER: _ClassVar[int]
    agent: str
    def __init__(self, agent: _Optional[str] = ...) -> None: ...

class ResumeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Failure(_message.Message):
    __slots__ = ("reason", "code", "message", "retryable", "retry_after_ms")
    REASON_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    code: str
    message: str
    retryable: bool
    retry_after_ms: int
    def __init__(self, reason: _Optional[str] = ..., code: _Optional[str] = ..., message: _Optional[str] = ..., retryable: _Optional[bool] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class Exit(_message.Message):
    __slots__ = ("code", "signal")
    CODE_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    code: int
    signal: int
    def __init__(self, code: _Optional[int] = ..., signal: _Optional[int] = ...) -> None: ...

class Output(_message.Message):
    __slots__ = ("text", "data", "total_bytes", "truncated")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    text: str
    data: bytes
    total_bytes: int
    truncated: bool
    def __init__(self, text: _Optional[str] = ..., data: _Optional[bytes] = ..., total_bytes: _Optional[int] = ..., truncated: _Optional[bool] = ...) -> None: ...

class Artifact(_message.Message):
    __slots__ = ("name", "size_bytes", "sha256", "data", "rejected")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    sha256: str
    data: bytes
    rejected: str
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., data: _Optional[bytes] = ..., rejected: _Optional[str] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("queue_ms", "wall_ms", "cpu_ms", "max_rss_kb", "egress_bytes", "phases_ms")
    class PhasesMsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    WALL_MS_FIELD_NUMBER: _ClassVar[int]
    CPU_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_RSS_KB_FIELD_NUMBER: _ClassVar[int]
    EGRESS_BYTES_FIELD_NUMBER: _ClassVar[int]
    PHASES_MS_FIELD_NUMBER: _ClassVar[int]
    queue_ms: float
    wall_ms: float
    cpu_ms: float
    max_rss_kb: int
    egress_bytes: int
    phases_ms: _containers.ScalarMap[str, float]
    def __init__(self, queue_ms: _Optional[float] = ..., wall_ms: _Optional[float] = ..., cpu_ms: _Optional[float] = ..., max_rss_kb: _Optional[int] = ..., egress_bytes: _Optional[int] = ..., phases_ms: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Sandbox(_message.Message):
    __slots__ = ("backend", "runtime", "isolation")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    ISOLATION_FIELD_NUMBER: _ClassVar[int]
    backend: str
    runtime: str
    isolation: str
    def __init__(self, backend: _Optional[str] = ..., runtime: _Optional[str] = ..., isolation: _Optional[str] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("id", "policies")
    ID_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    id: str
    policies: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., policies: _Optional[_Iterable[str]] = ...) -> None: ...

class Tool(_message.Message):
    __slots__ = ("tool", "version", "summary", "effect", "isolation", "input_json", "output_json", "limits", "digest")
    TOOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    ISOLATION_FIELD_NUMBER: _ClassVar[int]
    INPUT_JSON_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_JSON_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    tool: str
    version: str
    summary: str
    effect: str
    isolation: str
    input_json: bytes
    output_json: bytes
    limits: Limits
    digest: str
    def __init__(self, tool: _Optional[str] = ..., version: _Optional[str] = ..., summary: _Optional[str] = ..., effect: _Optional[str] = ..., isolation: _Optional[str] = ..., input_json: _Optional[bytes] = ..., output_json: _Optional[bytes] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., digest: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("wall_s", "cpu", "memory_mb", "pids", "output_kb", "result_kb", "scratch_mb", "scratch_files", "open_files", "artifacts", "artifacts_kb", "egress_kb", "egress_connections", "egress_requests")
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    CPU_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MB_FIELD_NUMBER: _ClassVar[int]
    PIDS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_KB_FIELD_NUMBER: _ClassVar[int]
    RESULT_KB_FIELD_NUMBER: _ClassVar[int]
    SCRATCH_MB_FIELD_NUMBER: _ClassVar[int]
    SCRATCH_FILES_FIELD_NUMBER: _ClassVar[int]
    OPEN_FILES_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_KB_FIELD_NUMBER: _ClassVar[int]
    EGRESS_KB_FIELD_NUMBER: _ClassVar[int]
    EGRESS_CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    EGRESS_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    wall_s: float
    cpu: float
    memory_mb: int
    pids: int
    output_kb: int
    result_kb: int
    scratch_mb: int
    scratch_files: int
    open_files: int
    artifacts: int
    artifacts_kb: int
    egress_kb: int
    egress_connections: int
    egress_requests: int
    def __init__(self, wall_s: _Optional[float] = ..., cpu: _Optional[float] = ..., memory_mb: _Optional[int] = ..., pids: _Optional[int] = ..., output_kb: _Optional[int] = ..., result_kb: _Optional[int] = ..., scratch_mb: _Optional[int] = ..., scratch_files: _Optional[int] = ..., open_files: _Optional[int] = ..., artifacts: _Optional[int] = ..., artifacts_kb: _Optional[int] = ..., egress_kb: _Optional[int] = ..., egress_connections: _Optional[int] = ..., egress_requests: _Optional[int] = ...) -> None: ...
