import pytest

from callgate_server.admission.authenticate import Authentication
from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason

CALLER = Caller("acme", "bot")


class Knows:
    """Recognises tokens by their first letter; of those it accepts one."""

    def __init__(self, kind, good, caller=CALLER):
        self.kind, self.good, self.caller = kind, good, caller
        self.asked = []

    async def authenticate(self, token):
        self.asked.append(token)
        if not token.startswith(self.kind):
            return None
        if token != self.good:
            raise CallError(Reason.UNAUTHENTICATED, "Wrong.")
        return self.caller


async def reason_of(authentication, token):
    with pytest.raises(CallError) as refusal:
        await authentication.identify(token)
    assert not token or token not in refusal.value.message
    return refusal.value.reason


@pytest.mark.parametrize("token", [None, "", "anything"])
async def test_without_an_authenticator_everybody_is_refused(token):
    assert await reason_of(Authentication(), token) is Reason.UNAUTHENTICATED


@pytest.mark.parametrize("token", [None, ""])
async def test_no_token_is_refused_without_asking_anybody(token):
    authenticator = Knows("", "")
    assert await reason_of(Authentication(authenticator), token) is Reason.UNAUTHENTICATED
    assert authenticator.asked == []


async def test_the_first_who_recognises_a_token_decides():
    first, second, third = Knows("a", "a1"), Knows("b", "b1", Caller("other", "bot")), Knows("b", "b2")
    authentication = Authentication(first, second, third)
    assert await authentication.identify("a1") == CALLER
    assert await authentication.identify("b1") == Caller("other", "bot")
    assert await reason_of(authentication, "b2") is Reason.UNAUTHENTICATED
    assert third.asked == []


async def test_a_token_that_nobody_recognises_is_refused():
    assert await reason_of(Authentication(Knows("a", "a1"), Knows("b", "b1")), "c1") is Reason.UNAUTHENTICATED


async def test_an_authenticator_that_breaks_lets_nobody_in():
    class Broken:
        async def authenticate(self, token):
            raise RuntimeError("down")

    with pytest.raises(RuntimeError):
        await Authentication(Broken(), Knows("a", "a1")).identify("a1")


async def test_each_refusal_is_told_once_and_no_success_is():
    told = []
    authentication = Authentication(Knows("a", "a-good"), on_refusal=lambda: told.append("refused"))
    for token in (None, "", "stranger", "a-bad"):
        assert await reason_of(authentication, token) is Reason.UNAUTHENTICATED
    assert len(told) == 4
    assert await authentication.identify("a-good") == CALLER
    assert len(told) == 4
