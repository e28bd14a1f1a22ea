import pytest

from callgate_server.backends.sqlite.files import LedgerFiles, check_readable, load_key, load_or_create_key


def test_the_first_start_makes_a_key_and_later_ones_find_it(tmp_path):
    path = tmp_path / "state" / "ledger.key"
    key = load_or_create_key(path)
    assert len(key.reveal()) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_create_key(path).reveal() == key.reveal() == load_key(path).reveal()
    assert load_or_create_key(tmp_path / "other.key").reveal() != key.reveal()


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33, b"x" * 4096])
def test_what_is_no_key_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ValueError, match="key"):
        load_or_create_key(path)
    assert path.read_bytes() == content


def test_a_key_that_others_can_read_or_that_is_a_link_is_refused(tmp_path):
    path = tmp_path / "key"
    load_or_create_key(path)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(PermissionError, match="symbolic link"):
        load_or_create_key(tmp_path / "link")
    path.chmod(0o640)
    with pytest.raises(PermissionError, match="chmod 600"):
        load_or_create_key(path)


def test_an_absent_key_is_not_made_by_who_only_reads(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_key(tmp_path / "key")
    assert not (tmp_path / "key").exists()


def test_a_ledger_is_made_closed_to_others(tmp_path):
    path = tmp_path / "state" / "ledger.db"
    files = LedgerFiles.hold(path)
    files.check()
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600
    files.release()


def test_a_ledger_has_one_holder(tmp_path):
    path = tmp_path / "ledger.db"
    files = LedgerFiles.hold(path)
    with pytest.raises(BlockingIOError, match="another gateway holds"):
        LedgerFiles.hold(path)
    files.release()
    LedgerFiles.hold(path).release()


def test_a_ledger_or_folder_open_to_others_is_refused_and_not_kept_locked(tmp_path):
    path = tmp_path / "state" / "ledger.db"
    LedgerFiles.hold(path).release()
    path.chmod(0o644)
    with pytest.raises(PermissionError, match="chmod 600"):
        LedgerFiles.hold(path)
    with pytest.raises(PermissionError, match="chmod 600"):
        check_readable(path)
    path.chmod(0o600)
    path.parent.chmod(0o755)
    with pytest.raises(PermissionError, match="chmod 700"):
        LedgerFiles.hold(path)
    path.parent.chmod(0o700)
    LedgerFiles.hold(path).release()
    check_readable(path)


def test_a_ledger_that_went_away_or_was_replaced_is_noticed(tmp_path):
    path = tmp_path / "ledger.db"
    files = LedgerFiles.hold(path)
    away = path.rename(tmp_path / "away.db")
    with pytest.raises(FileNotFoundError):
        files.check()
    path.write_bytes(b"")
    path.chmod(0o600)
    with pytest.raises(FileNotFoundError, match="was replaced"):
        files.check()
    away.rename(path)
    files.check()
    path.chmod(0o604)
    with pytest.raises(PermissionError):
        files.check()
    files.release()
