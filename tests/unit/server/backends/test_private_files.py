import os
import threading

import pytest

from callgate_server.backends import private_files as files


def mode_of(path):
    return path.stat().st_mode & 0o777


def test_what_is_made_is_closed_to_others_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        files.create_private(tmp_path / "new" / "one", b"x")
        files.replace_private(tmp_path / "two", b"y")
    finally:
        os.umask(before)
    assert [mode_of(tmp_path / name) for name in ("new", "new/one", "two")] == [0o700, 0o600, 0o600]
    assert files.read_private(tmp_path / "new" / "one", 10)[0] == b"x"


def test_a_file_that_exists_is_not_made_again(tmp_path):
    files.create_private(tmp_path / "one", b"first")
    files.create_private(tmp_path / "one", b"second")
    assert (tmp_path / "one").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_replaced_file_is_whole_and_leaves_nothing_behind(tmp_path):
    files.replace_private(tmp_path / "one", b"first")
    files.replace_private(tmp_path / "one", b"second")
    assert (tmp_path / "one").read_bytes() == b"second"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_failed_replacement_leaves_the_old_file_and_no_draft(tmp_path):
    (tmp_path / "one").mkdir()
    with pytest.raises(OSError, match="one"):
        files.replace_private(tmp_path / "one", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_file_open_to_others_is_refused_with_what_mends_it(tmp_path, mode):
    path = tmp_path / "one"
    path.write_bytes(b"x")
    path.chmod(mode)
    with pytest.raises(PermissionError, match=f"chmod 600 {path}"):
        files.read_private(path, 10)


def test_a_link_is_refused(tmp_path):
    files.create_private(tmp_path / "target", b"x")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(PermissionError, match="symbolic link"):
        files.read_private(tmp_path / "link", 10)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(PermissionError, match="symbolic link"):
        files.open_plain(tmp_path / "dangling", os.O_RDWR | os.O_CREAT)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_plain_file_is_refused_without_waiting(tmp_path, make):
    make(tmp_path / "one")
    with pytest.raises((PermissionError, IsADirectoryError)):
        files.read_private(tmp_path / "one", 10)


def test_a_file_of_another_user_is_refused(tmp_path):
    path = tmp_path / "one"
    files.create_private(path, b"x")
    if os.geteuid() != 0:
        pytest.fail("this test must run as root: only root can give a file away")
    os.chown(path, 12345, -1)
    with pytest.raises(PermissionError, match="belongs to another user"):
        files.read_private(path, 10)
    files.refuse_shared(path.lstat(), path, root_reads_any=True)


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path):
    files.create_private(tmp_path / "one", b"x" * 11)
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        files.read_private(tmp_path / "one", 10)


def test_a_lock_keeps_others_away_until_it_is_given_back(tmp_path):
    lock = files.take_lock(tmp_path / "lock", wait=False)
    with pytest.raises(BlockingIOError):
        files.take_lock(tmp_path / "lock", wait=False)
    os.close(lock)
    with files.locked(tmp_path / "lock"), pytest.raises(BlockingIOError):
        files.take_lock(tmp_path / "lock", wait=False)


def test_who_waits_gets_the_lock_next(tmp_path):
    lock = files.take_lock(tmp_path / "lock", wait=True)
    entered = threading.Event()

    def enter():
        with files.locked(tmp_path / "lock"):
            entered.set()

    waiter = threading.Thread(target=enter)
    waiter.start()
    assert not entered.is_set()
    os.close(lock)
    assert entered.wait(10)
    waiter.join(10)
