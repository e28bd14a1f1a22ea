"""Each open descriptor has a name by which somebody can tell what was left open."""

import os
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from descriptors import descriptors_of
from host import Holdings


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_connections_are_named_by_the_end_that_stays_the_same(
    held: ExitStack, family: socket.AddressFamily, host: str
) -> None:
    before = descriptors_of(os.getpid())
    server = held.enter_context(socket.create_server((host, 0), family=family))
    port = server.getsockname()[1]
    for _ in range(2):
        held.enter_context(socket.create_connection((host, port)))
        held.enter_context(server.accept()[0])
    assert descriptors_of(os.getpid()) - before == {
        f"listening at {host}:{port}": 1,
        f"connection to {host}:{port}": 2,
        f"connection taken at {host}:{port}": 2,
    }


def test_a_unix_socket_is_named_by_its_path_where_it_has_one(held: ExitStack) -> None:
    # The path of a socket may be no longer than 107 bytes.
    path = Path(held.enter_context(tempfile.TemporaryDirectory())) / "a socket"
    before = descriptors_of(os.getpid())
    server = held.enter_context(socket.socket(socket.AF_UNIX))
    server.bind(str(path))
    server.listen()
    held.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
    assert descriptors_of(os.getpid()) - before == {f"unix socket {path}": 1, "unix socket": 1}


def test_files_pipes_and_what_the_kernel_makes_are_told_apart(held: ExitStack, tmp_path: Path) -> None:
    before = descriptors_of(os.getpid())
    held.enter_context((tmp_path / "a file").open("w"))
    for descriptor in (*os.pipe(), os.eventfd(0)):
        held.callback(os.close, descriptor)
    assert descriptors_of(os.getpid()) - before == {str(tmp_path / "a file"): 1, "pipe": 2, "anon_inode:[eventfd]": 1}


def holding(*descriptors: str) -> Holdings:
    return Holdings(frozenset(), frozenset(), Counter(descriptors), 1, frozenset(), 1)


def test_what_was_closed_elsewhere_does_not_hide_what_was_left_open() -> None:
    before, after = holding("a file", "pipe", "pipe"), holding("pipe", "pipe", "pipe")
    assert after.descriptors_beyond(before) == {"pipe": 1}
    assert after.more_than(before)["descriptors left"] == 1
    assert before.more_than(before)["descriptors left"] == 0
