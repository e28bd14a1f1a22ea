"""Which tasks there are, what their grants leave of a call, and whose credential is a task's.

A grant narrows and never widens: what it allows, policy still decides. Pure bookkeeping; tasks are durable in
the ledger.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from callgate_server.admission.grants import MAX_STEPS, check_grant, steps_left
from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason, Violation
from callgate_server.model.strict_json import Json
from callgate_server.model.task import Task, is_task_of_ours

PREFIX: Final = "cgt_"
# Of tasks that are over only so many are told from those that never were.
ENDED_KEPT: Final = 4096

# To say where something does not fit takes the engine far longer than to say that it does not.
_TOLD_WITHIN: Final = 1000


class Check(Protocol):
    def __call__(self, value: Json, *, detailed: bool) -> Sequence[Violation]:
        """What of a value does not fit a schema; one violation of the whole, where that need not be `detailed`."""


# The roles of a caller that came with an API key that the key still has, or None where the key is worth nothing now.
RolesLeft = Callable[[Caller], tuple[str, ...] | None]
Compile = Callable[[Mapping[str, Any]], Check]


@dataclass(frozen=True, slots=True)
class LiveTask:
    """A task with its grant ready for use, and the keyed digest of its credential."""

    task: Task
    checks: Mapping[str, Check]
    credential: str

    @classmethod
    def of(cls, task: Task, credential: str, compiled: Compile) -> "LiveTask":
        """Prepare a grant.

        Raises:
            ValueError: it is not one that a task may have; names the tool and what is wrong.
        """
        check_grant(task.grant)
        checks: dict[str, Check] = {}
        for tool, schema in task.grant.items():
            try:
                checks[tool] = compiled(schema)
            except ValueError as error:
                raise ValueError(f"the grant's schema for {tool}: {error}") from None
        return cls(task, checks, credential)

    def confine(self, tool: str, arguments: Json) -> None:
        """Refuse a call that the grant does not have.

        Raises:
            CallError: `outside_grant`: names the tool, or the place and the keyword, and never a value.
        """
        check = self.checks.get(tool)
        if check is None:
            raise CallError(Reason.OUTSIDE_GRANT, f"The task's grant does not have {tool}.")
        left = steps_left(self.task.grant[tool], arguments)
        if left < 0:
            raise CallError(
                Reason.OUTSIDE_GRANT,
                f"These arguments of {tool} are too large for what the task's grant asks of them; send less at once.",
            )
        found = [
            Violation(violation.path, violation.rule, f"does not fit `{violation.rule}` of the grant")
            for violation in check(arguments, detailed=MAX_STEPS - left <= _TOLD_WITHIN)
        ]
        if found:
            where = found[0].path or "/"
            raise CallError(
                Reason.OUTSIDE_GRANT,
                f"The task's grant does not have these arguments of {tool}: at {where}: `{found[0].rule}`.",
                violations=found,
            )


class LiveTasks:
    """The tasks that are not over, and lately ended ones by name. One that a key made is worth no more than the key."""

    def __init__(
        self, now: Callable[[], datetime] = lambda: datetime.now(UTC), roles_left: RolesLeft = lambda _: None
    ) -> None:
        self._now = now
        self._roles_left = roles_left
        self._by_id: dict[str, LiveTask] = {}
        self._by_credential: dict[str, LiveTask] = {}
        self._of_agents: dict[tuple[str, str], dict[str, LiveTask]] = {}
        self._ended: OrderedDict[str, tuple[str, str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[LiveTask]:
        return iter(tuple(self._by_id.values()))

    def add(self, live: LiveTask) -> None:
        task = live.task
        self._by_id[task.task_id] = live
        self._by_credential[live.credential] = live
        self._of_agents.setdefault((task.caller.tenant, task.caller.agent), {})[task.task_id] = live

    def end(self, task: Task) -> None:
        """Forget a task but for its name."""
        owner = (task.caller.tenant, task.caller.agent)
        live = self._by_id.pop(task.task_id, None)
        if live is not None:
            del self._by_credential[live.credential]
            del self._of_agents[owner][task.task_id]
            if not self._of_agents[owner]:
                del self._of_agents[owner]
        self.remember(task.caller)

    def remember(self, ended: Caller) -> None:
        """Tell a task that is over from none; this is its agent within it."""
        self._ended[ended.task or ""] = (ended.tenant, ended.agent)
        if len(self._ended) > ENDED_KEPT:
            self._ended.popitem(last=False)

    def expire(self) -> list[Task]:
        """End what is over by now, and return it."""
        over = [live.task for live in self if live.task.is_over(self._now())]
        for task in over:
            self.end(task)
        return over

    def count(self, caller: Caller) -> int:
        """How many tasks of this agent are not over."""
        now = self._now()
        return sum(
            not live.task.is_over(now) for live in self._of_agents.get((caller.tenant, caller.agent), {}).values()
        )

    def holder(self, credential: str) -> Caller | None:
        """Whose the credential with this digest is; None once its task is over.

        Raises:
            CallError: `unauthenticated`: the key that made the task is not valid any more.
        """
        live = self._by_credential.get(credential)
        return None if live is None or live.task.is_over(self._now()) else self._maker(live.task)

    def narrowed(self, caller: Caller, wanted: str | None) -> Caller:
        """The caller as it is within the task that its call names, or its credential.

        A label that an identity provider gave, and that does not look like a task of ours, narrows nothing.

        Raises:
            CallError: `unknown_task` (another agent's task is like none), `task_ended`, `unauthenticated` (the key that
                made it is not valid any more).
        """
        if wanted is None:
            if not is_task_of_ours(caller.task):
                return caller
            # A call may have waited: what was taken from the key since then is not the task's any more.
            left = self._own(caller, caller.task or "").roles
            return replace(caller, roles=tuple(role for role in caller.roles if role in left))
        if is_task_of_ours(caller.task) and caller.task != wanted:
            raise unknown_task()
        self._own(caller, wanted)
        return replace(caller, task=wanted)

    def of(self, caller: Caller) -> LiveTask | None:
        """The task of ours that confines this caller, who was narrowed before."""
        return self._by_id.get(caller.task or "")

    def may_call(self, caller: Caller, tool: str) -> bool:
        """Whether no grant keeps this caller from the tool altogether."""
        if not is_task_of_ours(caller.task):
            return True
        live = self.of(caller)
        return live is not None and _is_by(live.task, caller) and tool in live.checks

    def _own(self, caller: Caller, task_id: str) -> Caller:
        """The agent within one of its tasks."""
        live = self._by_id.get(task_id)
        if live is None:
            if self._ended.get(task_id) != (caller.tenant, caller.agent):
                raise unknown_task()
        elif not _is_by(live.task, caller):
            raise unknown_task()
        elif not live.task.is_over(self._now()):
            return self._maker(live.task)
        raise CallError(Reason.TASK_ENDED, "The task has ended; make a new one.")

    def _maker(self, task: Task) -> Caller:
        """The agent within a task, with the roles that are left of those that it had when it made the task."""
        if task.caller.key is None:
            return task.caller
        roles = self._roles_left(task.caller)
        if roles is None:
            raise CallError(
                Reason.UNAUTHENTICATED,
                "The API key that made this task was revoked or has expired; make a new task with another one.",
            )
        return replace(task.caller, roles=roles)


class TaskCredentials:
    """Implements `Authenticator`: recognises `cgt_…`. `digest` is keyed, and what is stored of a credential."""

    def __init__(self, tasks: LiveTasks, digest: Callable[[bytes], str]) -> None:
        self._tasks = tasks
        self._digest = digest

    async def authenticate(self, token: str) -> Caller | None:
        """See `Authenticator`."""
        if not token.startswith(PREFIX):
            return None
        caller = self._tasks.holder(credential_digest(self._digest, token))
        if caller is None:
            raise CallError(Reason.UNAUTHENTICATED, "The task's credential is not valid, or its task has ended.")
        return caller


def credential_digest(digest: Callable[[bytes], str], token: str) -> str:
    return digest(b"credential of a task\0" + token.encode())


def refuse_tasks(caller: Caller, what: str) -> None:
    """Refuse what a task's credential cannot do, whatever its agent may.

    Raises:
        CallError: `outside_grant`.
    """
    if is_task_of_ours(caller.task):
        raise CallError(Reason.OUTSIDE_GRANT, f"A task's credential cannot {what}; use the agent's own.")


def unknown_task() -> CallError:
    """The refusal of a task that does not exist, and of one that must look as if it did not."""
    return CallError(Reason.UNKNOWN_TASK, "No such task.")


def _is_by(task: Task, caller: Caller) -> bool:
    return (task.caller.tenant, task.caller.agent) == (caller.tenant, caller.agent)
