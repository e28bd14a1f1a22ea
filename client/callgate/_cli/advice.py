"""What to do next about a refusal. It depends on the reason, and on what the command was about.

What the gateway's message says already is not said again: nothing here claims a cause.
"""

from collections.abc import Mapping
from typing import Final, Literal

from callgate._cli.times import duration
from callgate.errors import CallRefused

About = Literal["calls", "approvals", "dead-letters", "tasks", "stops", "breakers"]

_NEXT: Final[Mapping[str, str]] = {
    "unauthenticated": "Give a credential with --token-file, CALLGATE_TOKEN_FILE or CALLGATE_TOKEN.",
    "unknown_tool": "List the tools you may call: callgate tools",
    "invalid_arguments": "Show what a tool takes: callgate tools NAME",
    "policy_denied": "Ask the gateway's operator.",
    "policy_error": "Tell the gateway's operator: the policies need mending.",
    "approval_required": "Make the call again: it now waits for an approval.",
    "approval_denied": "Somebody denied this call; talk to them before you make it again.",
    "approval_expired": "Nobody decided in time. Make the call again, and tell the group that approves it.",
    "approval_void": "Make the call again.",
    "budget_exceeded": "Ask whoever set the budget for more; until then this is refused.",
    "loop_stopped": "The same call failed again and again. Change its arguments or find out why: callgate calls",
    "stopped": "Ask an administrator of the tenant why.",
    "unknown_task": "Check the id after --task: it must be a task of the agent whose credential this is.",
    "task_ended": "Use another task, or none; this one takes no more calls.",
    "outside_grant": "The task's grant does not cover this. Use another task, or ask for a wider grant.",
    "rate_limited": "Make fewer calls at a time.",
    "idempotency_conflict": "Use another --idempotency-key for other arguments.",
}
_UNKNOWN: Final[Mapping[About, str]] = {
    "calls": "List your calls: callgate calls",
    "approvals": "List what waits for you: callgate approvals",
    "dead-letters": "List the dead letters: callgate dead-letters",
    "tasks": "List your tasks: callgate tasks",
    "stops": "List what is stopped: callgate stops",
    "breakers": "List the breakers: callgate breakers; and the tools: callgate tools",
}
_OF_A_COMMAND: Final[Mapping[tuple[str, About], str]] = {
    **{("unknown_call", about): text for about, text in _UNKNOWN.items()},
    **{("not_possible", about): text for about, text in _UNKNOWN.items()},
    ("not_possible", "calls"): "Look at the state it is in: callgate calls ID",
    ("not_possible", "approvals"): "Look at the state it is in: callgate approvals ID",
    ("approval_void", "approvals"): "Look at what is to be approved now: callgate approvals ID",
    ("unknown_task", "tasks"): _UNKNOWN["tasks"],
}
# What the operator finds more about under the id of a call.
_RECORDED: Final = frozenset({"policy_denied", "policy_error"})


def advice(refusal: CallRefused, about: About) -> str | None:
    """Return what to do next, or None where there is nothing to say."""
    text = _OF_A_COMMAND.get((refusal.reason, about), _NEXT.get(refusal.reason))
    if text is not None and refusal.reason in _RECORDED and refusal.call_id is not None:
        text += " The call's id tells them more."
    if not refusal.retryable:
        return text
    wait = f" in {duration(refusal.retry_after_ms)}" if refusal.retry_after_ms else ""
    return f"Try again{wait}." if text is None else f"Try again{wait}. {text}"
