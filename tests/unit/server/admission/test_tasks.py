from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from callgate_server.admission import tasks
from callgate_server.admission.tasks import LiveTask, LiveTasks, TaskCredentials, credential_digest, refuse_tasks
from callgate_server.backends.json_schema import grantable
from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.spending import Budget
from callgate_server.model.task import Task, new_task_id

NOW = datetime(2026, 11, 28, tzinfo=UTC)
BOT = Caller("acme", "bot", ("developer",))
GRANT = {
    "text.diff": {},
    "shell.run": {"properties": {"argv": {"prefixItems": [{"enum": ["jq", "ls"]}]}}, "required": ["argv"]},
}


class Clock:
    now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def live(clock):
    return LiveTasks(clock)


def made(live: LiveTasks, caller: Caller = BOT, grant=GRANT, lifetime_s=60, credential="digest") -> Task:
    task_id = new_task_id()
    owner = replace(caller, task=task_id)
    task = Task(task_id, owner, "x", grant, Budget(), NOW, NOW + timedelta(seconds=lifetime_s))
    live.add(LiveTask.of(task, credential, grantable))
    return task


def reason(action):
    with pytest.raises(CallError) as refused:
        action()
    return refused.value.reason


def test_a_call_names_a_task_and_is_narrowed_to_it(live):
    task = made(live)
    narrowed = live.narrowed(BOT, task.task_id)
    assert narrowed == replace(BOT, task=task.task_id)
    assert live.of(narrowed).task == task


def test_a_label_that_names_no_task_of_ours_stays_a_label(live):
    labelled = replace(BOT, task="nightly")
    assert live.narrowed(labelled, None) == labelled
    assert live.of(labelled) is None
    assert live.may_call(labelled, "any.tool")


def test_a_label_that_names_ours_is_narrowed_by_it(live):
    claimed = replace(BOT, task=made(live).task_id)
    assert live.narrowed(claimed, None) == claimed
    assert live.of(claimed) is not None


@pytest.mark.parametrize("other", [Caller("rival", "bot"), Caller("acme", "other")])
def test_another_agents_task_is_like_none(live, other):
    task = made(live)
    for asked in (
        lambda: live.narrowed(other, task.task_id),
        lambda: live.narrowed(replace(other, task=task.task_id), None),
    ):
        assert reason(asked) is Reason.UNKNOWN_TASK
    assert reason(lambda: live.narrowed(BOT, new_task_id())) is Reason.UNKNOWN_TASK
    assert reason(lambda: live.narrowed(BOT, "anything")) is Reason.UNKNOWN_TASK


def test_a_tasks_credential_cannot_take_another_of_the_same_agents_tasks(live):
    narrow, wide = made(live, credential="a"), made(live, grant={"python.run": {}}, credential="b")
    assert reason(lambda: live.narrowed(narrow.caller, wide.task_id)) is Reason.UNKNOWN_TASK
    assert live.narrowed(narrow.caller, narrow.task_id) == narrow.caller


def test_a_task_that_is_over_is_told_from_none_to_its_agent_alone(live, clock):
    ended, expired = made(live, credential="a"), made(live, credential="b", lifetime_s=5)
    live.end(ended)
    clock.now = NOW + timedelta(seconds=5)
    for task in (ended, expired):
        assert reason(lambda task=task: live.narrowed(BOT, task.task_id)) is Reason.TASK_ENDED
        assert reason(lambda task=task: live.narrowed(Caller("rival", "bot"), task.task_id)) is Reason.UNKNOWN_TASK
    assert live.expire() == [expired]
    assert len(live) == 0
    assert reason(lambda: live.narrowed(BOT, expired.task_id)) is Reason.TASK_ENDED


def test_only_so_many_ended_ones_are_remembered(live, monkeypatch):
    monkeypatch.setattr(tasks, "ENDED_KEPT", 2)
    ended = [made(live, credential=str(number)) for number in range(3)]
    for task in ended:
        live.end(task)
    reasons = [reason(lambda task=task: live.narrowed(BOT, task.task_id)) for task in ended]
    assert reasons == [Reason.UNKNOWN_TASK, Reason.TASK_ENDED, Reason.TASK_ENDED]


def test_live_ones_are_counted_by_agent(live, clock):
    made(live, credential="a")
    made(live, credential="b", lifetime_s=5)
    made(live, Caller("rival", "bot"), credential="c")
    assert live.count(BOT) == 2
    clock.now = NOW + timedelta(seconds=5)
    assert live.count(BOT) == 1


def test_a_grant_has_its_tools_and_no_others(live):
    grant = live.of(made(live).caller)
    grant.confine("text.diff", {"anything": 1})
    with pytest.raises(CallError) as refused:
        grant.confine("python.run", {})
    assert (refused.value.reason, "python.run" in refused.value.message) == (Reason.OUTSIDE_GRANT, True)
    assert live.may_call(live.of(grant.task.caller).task.caller, "text.diff")
    assert not live.may_call(grant.task.caller, "python.run")


def test_arguments_must_fit_the_grant_too_and_no_value_is_told(live):
    grant = live.of(made(live).caller)
    grant.confine("shell.run", {"argv": ["jq", "."]})
    with pytest.raises(CallError) as refused:
        grant.confine("shell.run", {"argv": ["secret-program"]})
    error = refused.value
    assert [(violation.path, violation.rule) for violation in error.violations] == [("/argv/0", "enum")]
    assert "/argv/0" in error.message
    told = error.message + "".join(violation.message for violation in error.violations)
    assert "secret-program" not in told
    assert "jq" not in told


def test_a_schema_that_no_grant_may_have_is_none(live):
    with pytest.raises(ValueError, match=r"schema for text\.diff: at /\$ref: not a keyword"):
        made(live, grant={"text.diff": {"$ref": "https://evil.example/schema"}})


async def test_a_credential_is_its_agents_until_the_task_is_over(live):
    def digest(data: bytes) -> str:
        return data.hex()

    task = made(live, credential=credential_digest(digest, "cgt_abc"))
    credentials = TaskCredentials(live, digest)
    assert await credentials.authenticate("cgt_abc") == task.caller
    assert await credentials.authenticate("cg_abc") is None
    with pytest.raises(CallError) as wrong:
        await credentials.authenticate("cgt_abd")
    live.end(task)
    with pytest.raises(CallError) as ended:
        await credentials.authenticate("cgt_abc")
    assert wrong.value.reason is ended.value.reason is Reason.UNAUTHENTICATED
    assert wrong.value.message == ended.value.message


async def test_an_expired_ones_credential_is_worthless_before_anybody_sweeps(live, clock):
    made(live, credential=credential_digest(bytes.hex, "cgt_abc"), lifetime_s=5)
    clock.now = NOW + timedelta(seconds=6)
    with pytest.raises(CallError):
        await TaskCredentials(live, bytes.hex).authenticate("cgt_abc")


class Keys:
    """The roles of keys by their ids."""

    def __init__(self, **roles) -> None:
        self.roles = roles

    def __call__(self, caller: Caller):
        roles = self.roles.get(caller.key)
        return None if roles is None else tuple(role for role in caller.roles if role in roles)


async def test_a_task_is_worth_no_more_than_the_key_that_made_it(clock):
    keys = Keys(first=("developer",), second=("developer",))
    live = LiveTasks(clock, keys)
    owner = replace(BOT, roles=("developer", "operator"), key="first")
    task = made(live, owner, credential=credential_digest(bytes.hex, "cgt_abc"))
    credentials = TaskCredentials(live, bytes.hex)
    assert await credentials.authenticate("cgt_abc") == replace(task.caller, roles=("developer",))
    again = replace(BOT, key="second")
    assert live.narrowed(again, task.task_id).roles == ("developer",)
    # Of a call that waited since the key had both.
    assert live.narrowed(task.caller, None).roles == ("developer",)
    del keys.roles["first"]
    with pytest.raises(CallError, match="key that made this task was revoked") as refused:
        await credentials.authenticate("cgt_abc")
    assert refused.value.reason is Reason.UNAUTHENTICATED
    for asked in (lambda: live.narrowed(again, task.task_id), lambda: live.narrowed(task.caller, None)):
        assert reason(asked) is Reason.UNAUTHENTICATED
    assert reason(lambda: live.narrowed(Caller("acme", "other"), task.task_id)) is Reason.UNKNOWN_TASK


def test_where_no_keys_are_known_a_task_that_a_key_made_is_worthless_and_others_are_not(live):
    assert reason(lambda: live.narrowed(BOT, made(live, replace(BOT, key="first")).task_id)) is Reason.UNAUTHENTICATED
    assert live.narrowed(BOT, made(live, credential="of a token").task_id)


def test_what_a_task_cannot_do_an_agent_and_its_labels_can(live):
    assert reason(lambda: refuse_tasks(made(live).caller, "approve")) is Reason.OUTSIDE_GRANT
    refuse_tasks(BOT, "approve")
    refuse_tasks(replace(BOT, task="nightly"), "approve")
