import asyncio
import copy
import dataclasses
import json
import logging
import pickle
import pprint
import traceback

import orjson
import pytest

from callgate_server.model.sealed import Sealed

SECRET = b"hunter2-hunter2"


@dataclasses.dataclass(frozen=True)
class Holder:
    value: Sealed


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        format,
        lambda sealed: f"{sealed}",
        lambda sealed: f"{sealed!r:>40}",
        lambda sealed: f"{sealed:>40}",
        lambda sealed: f"{[sealed]}",
        lambda sealed: "%s %r" % (sealed, sealed),  # noqa: UP031  # the old way must not leak either
        lambda sealed: str(Holder(sealed)),
        lambda sealed: pprint.pformat({"key": Holder(sealed)}),
        lambda sealed: str(ValueError(sealed)),
    ],
)
def test_no_way_of_printing_shows_the_value(show):
    assert "hunter2" not in show(Sealed(SECRET))


@pytest.mark.parametrize(
    "serialise",
    [
        pickle.dumps,
        copy.copy,
        copy.deepcopy,
        json.dumps,
        orjson.dumps,
        bytes,
        list,
        len,
        vars,
        hash,
        lambda sealed: dataclasses.asdict(Holder(sealed)),
        lambda sealed: sealed == sealed,
        lambda sealed: sealed != SECRET,
        lambda sealed: sealed in [SECRET, b""],
    ],
)
def test_it_is_not_serialised_copied_or_compared(serialise):
    with pytest.raises(TypeError) as refusal:
        serialise(Sealed(SECRET))
    assert "hunter2" not in "".join(traceback.format_exception(refusal.value))


def test_it_cannot_be_logged(caplog):
    logging.getLogger("test").warning("value %s", Sealed(SECRET), extra={"sealed": Sealed(SECRET)})
    assert "hunter2" not in caplog.text


async def test_it_does_not_show_in_a_task_that_failed_with_it():
    async def fail(sealed):
        raise RuntimeError(sealed)

    with pytest.raises(RuntimeError) as failure:
        await asyncio.create_task(fail(Sealed(SECRET)))
    shown = "".join(traceback.TracebackException.from_exception(failure.value, capture_locals=True).format())
    assert "hunter2" not in shown


def test_reveal_is_the_way_to_the_bytes():
    assert Sealed(SECRET).reveal() == SECRET


def test_nothing_can_be_attached_to_it():
    with pytest.raises(AttributeError):
        Sealed(SECRET).note = "x"
