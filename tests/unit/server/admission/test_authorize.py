import pytest

from callgate_server.admission.authorize import (
    Administration,
    is_administrator,
    refuse_unless_allowed,
    refuse_unless_still_allowed,
)
from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.verdict import Ruling, Verdict
from support.stages import Rulings


def refusal(verdict: Verdict) -> CallError:
    with pytest.raises(CallError) as caught:
        refuse_unless_allowed(verdict)
    return caught.value


def test_allow_lets_the_call_pass() -> None:
    refuse_unless_allowed(Verdict(Ruling.ALLOW, ("p",), "v"))


@pytest.mark.parametrize(
    ("ruling", "reason"),
    [(Ruling.DENY, Reason.POLICY_DENIED), (Ruling.ERROR, Reason.POLICY_ERROR)],
)
def test_every_other_ruling_is_its_refusal_with_the_policies_that_decided(ruling: Ruling, reason: Reason) -> None:
    error = refusal(Verdict(ruling, ("a", "b"), "v", "operators"))
    assert (error.reason, error.policies) == (reason, ("a", "b"))


def test_only_allow_passes_and_what_somebody_can_approve() -> None:
    for ruling in set(Ruling) - {Ruling.ALLOW}:
        if ruling is not Ruling.NEEDS_APPROVAL:
            refusal(Verdict(ruling, (), "v", "operators"))
    refuse_unless_allowed(Verdict(Ruling.NEEDS_APPROVAL, ("ask",), "v", "operators"))


def test_an_approval_by_nobody_is_a_denial() -> None:
    assert refusal(Verdict(Ruling.NEEDS_APPROVAL, ("ask",), "v", None)).reason is Reason.POLICY_DENIED


@pytest.mark.parametrize("approved_by", [None, "operators"])
def test_what_policy_allows_by_now_needs_no_approval(approved_by: str | None) -> None:
    refuse_unless_still_allowed(Verdict(Ruling.ALLOW, ("p",), "v"), approved_by)


def test_what_its_group_approved_may_run() -> None:
    refuse_unless_still_allowed(Verdict(Ruling.NEEDS_APPROVAL, ("ask",), "v", "operators"), "operators")


@pytest.mark.parametrize(
    ("verdict", "approved_by", "reason"),
    [
        (Verdict(Ruling.NEEDS_APPROVAL, ("ask",), "v", "operators"), None, Reason.APPROVAL_REQUIRED),
        (Verdict(Ruling.NEEDS_APPROVAL, ("ask",), "v", "operators"), "finance", Reason.APPROVAL_VOID),
        (Verdict(Ruling.DENY, ("no",), "v"), "finance", Reason.POLICY_DENIED),
        (Verdict(Ruling.ERROR, (), "v"), "finance", Reason.POLICY_ERROR),
    ],
)
def test_an_approval_does_not_outlive_the_policy_that_asked_for_it(
    verdict: Verdict, approved_by: str | None, reason: Reason
) -> None:
    with pytest.raises(CallError) as caught:
        refuse_unless_still_allowed(verdict, approved_by)
    assert caught.value.reason is reason


def test_forbid_is_named() -> None:
    assert refusal(Verdict(Ruling.DENY, ("no-rm",), "v")).message == "Forbidden by policy no-rm."


def test_absence_of_a_permit_is_said() -> None:
    assert refusal(Verdict(Ruling.DENY, (), "v")).message == "No policy permits this call."


def test_failed_evaluation_says_nothing_of_the_failure() -> None:
    assert "operator has been alerted" in refusal(Verdict(Ruling.ERROR, ("failing",), "v")).message


class Remarks:
    def __init__(self) -> None:
        self.made: list[tuple[str, dict[str, object]]] = []

    async def __call__(self, kind: str, body: object) -> None:
        self.made.append((kind, dict(body)))  # type: ignore[call-overload]


async def administer(ruling: Ruling, caller: Caller) -> tuple[CallError | None, Remarks]:
    policy, remarks = Rulings([]), Remarks()
    policy.ruling = ruling
    try:
        await Administration(policy, remarks).permit(caller, "stop")
    except CallError as refused:
        return refused, remarks
    return None, remarks


async def test_an_administrator_passes_and_leaves_no_remark() -> None:
    refused, remarks = await administer(Ruling.ALLOW, Caller("acme", "root"))
    assert refused is None
    assert remarks.made == []


@pytest.mark.parametrize(
    ("ruling", "caller", "reason"),
    [
        (Ruling.DENY, Caller("acme", "bot"), Reason.POLICY_DENIED),
        (Ruling.ERROR, Caller("acme", "bot"), Reason.POLICY_ERROR),
        (Ruling.NEEDS_APPROVAL, Caller("acme", "bot"), Reason.POLICY_DENIED),
        (Ruling.ALLOW, Caller("acme", "root", (), "some-task"), Reason.POLICY_DENIED),
    ],
)
async def test_everybody_else_is_refused_and_that_is_recorded(ruling: Ruling, caller: Caller, reason: Reason) -> None:
    refused, remarks = await administer(ruling, caller)
    assert refused is not None
    assert refused.reason is reason
    [(kind, body)] = remarks.made
    assert (kind, body["operation"], body["agent"]) == ("administration_refused", "stop", caller.agent)


def test_an_administrator_is_who_policy_lets_and_no_task() -> None:
    policy = Rulings([])
    assert is_administrator(policy, Caller("acme", "root"), "settle")
    assert not is_administrator(policy, Caller("acme", "root", (), "t"), "settle")
    policy.ruling = Ruling.NEEDS_APPROVAL
    assert not is_administrator(policy, Caller("acme", "root"), "settle")
