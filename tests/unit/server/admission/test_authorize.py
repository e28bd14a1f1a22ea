import pytest

from callgate_server.admission.authorize import refuse_unless_allowed
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.verdict import Ruling, Verdict


def refusal(verdict: Verdict) -> CallError:
    with pytest.raises(CallError) as caught:
        refuse_unless_allowed(verdict)
    return caught.value


def test_allow_lets_the_call_pass() -> None:
    refuse_unless_allowed(Verdict(Ruling.ALLOW, ("p",), "v"))


@pytest.mark.parametrize(
    ("ruling", "reason"),
    [
        (Ruling.DENY, Reason.POLICY_DENIED),
        (Ruling.ERROR, Reason.POLICY_ERROR),
        (Ruling.NEEDS_APPROVAL, Reason.APPROVAL_REQUIRED),
    ],
)
def test_every_other_ruling_is_its_refusal_with_the_policies_that_decided(ruling: Ruling, reason: Reason) -> None:
    error = refusal(Verdict(ruling, ("a", "b"), "v", "operators"))
    assert (error.reason, error.policies) == (reason, ("a", "b"))


def test_only_allow_passes() -> None:
    for ruling in set(Ruling) - {Ruling.ALLOW}:
        refusal(Verdict(ruling, (), "v"))


def test_forbid_is_named() -> None:
    assert refusal(Verdict(Ruling.DENY, ("no-rm",), "v")).message == "Forbidden by policy no-rm."


def test_absence_of_a_permit_is_said() -> None:
    assert refusal(Verdict(Ruling.DENY, (), "v")).message == "No policy permits this call."


def test_group_of_approvers_is_named() -> None:
    message = refusal(Verdict(Ruling.NEEDS_APPROVAL, ("ask",), "v", "operators")).message
    assert "ask" in message
    assert "operators" in message


def test_failed_evaluation_says_nothing_of_the_failure() -> None:
    assert "operator has been alerted" in refusal(Verdict(Ruling.ERROR, ("failing",), "v")).message
