"""What the pipeline tells an operator: names, counts and durations; never arguments, results or secrets."""

from collections.abc import Mapping
from typing import Protocol

from callgate_server.model.answer import Usage
from callgate_server.model.errors import Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.strict_json import Json


class Watch(Protocol):
    """Implementations never raise: watching must not change what is watched."""

    def refused(self, tool: str, reason: Reason, phases_ms: Mapping[str, float]) -> None:
        """A call ended before its tool started. `tool` is a name of the catalog, or empty."""

    def started(self, call_id: str, tool: str, sandbox: str) -> None:
        """A call has its sandbox; `sandbox` is the backend's own name for it."""

    def finished(self, tool: str, state: State, usage: Usage, phases_ms: Mapping[str, float]) -> None:
        """A call's tool was started, and the call has ended. `phases_ms` has one more than `usage`: the record's."""

    def retried(self, tool: str, reason: Reason) -> None:
        """A call is attempted again, after an attempt that ended with `reason`."""

    def fell_back(self, tool: str, kind: str, reason: Reason) -> None:
        """A call whose own tool ended with `reason` is answered by its fallback."""

    def egress(self, tool: str, event: str, body: Mapping[str, Json]) -> None:
        """An event of a call's connections is in the record: `egress_allowed`, `egress_refused`, `egress_closed`."""

    def unexpected(self, call_id: str, error: BaseException) -> None:
        """A defect of ours. The text of the error stays in the operator's log."""
