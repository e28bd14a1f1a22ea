import dataclasses

import pytest

from callgate_server.model.verdict import Ruling, Verdict


def test_a_verdict_cannot_be_changed_after_it_was_given():
    verdict = Verdict(Ruling.DENY, (), "v1")
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict.ruling = Ruling.ALLOW


def test_a_failed_evaluation_is_told_apart_from_a_denial_and_from_an_allow():
    assert len({Ruling.ALLOW, Ruling.DENY, Ruling.NEEDS_APPROVAL, Ruling.ERROR}) == len(Ruling) == 4
