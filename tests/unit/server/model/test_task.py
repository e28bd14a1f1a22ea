from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from callgate_server.model.call import Caller
from callgate_server.model.identifiers import PRINCIPAL_NAME
from callgate_server.model.spending import Budget
from callgate_server.model.task import Task, is_task_of_ours, new_task_id

NOW = datetime(2026, 11, 28, tzinfo=UTC)


def test_a_new_id_is_of_ours_and_may_stand_wherever_a_task_may():
    task_id = new_task_id()
    assert is_task_of_ours(task_id)
    assert PRINCIPAL_NAME.fullmatch(task_id)


@pytest.mark.parametrize("label", [None, "", "task-1", "nightly", f"x{new_task_id()}", f"{new_task_id()}x"])
def test_a_label_of_an_identity_provider_is_not(label):
    assert not is_task_of_ours(label)


def test_a_task_is_over_when_it_was_ended_or_its_time_has_passed():
    task = Task(new_task_id(), Caller("acme", "bot"), "x", {}, Budget(), NOW, NOW + timedelta(seconds=5))
    assert not task.is_over(NOW)
    assert task.is_over(NOW + timedelta(seconds=5))
    assert replace(task, ended_at=NOW).is_over(NOW)
