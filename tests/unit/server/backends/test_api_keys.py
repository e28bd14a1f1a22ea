import hashlib
import json
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from callgate_server.backends import api_keys
from callgate_server.backends.api_keys import ApiKeys
from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


def make(path, **changes):
    known = {"tenant": "acme", "agent": "bot", "roles": ("analyst",), "purpose": "production", "now": NOW}
    return api_keys.create(path, **(known | changes))


def token(new):
    return new.key.reveal().decode()


async def refusal(keys, text):
    with pytest.raises(CallError) as error:
        await keys.authenticate(text)
    assert error.value.reason is Reason.UNAUTHENTICATED
    return error.value.message


async def test_a_key_names_its_caller(path):
    assert await ApiKeys(path).authenticate(token(make(path))) == Caller("acme", "bot", ("analyst",))


async def test_a_caller_is_known_by_its_key_and_has_the_roles_that_are_left(path):
    new, rival = (
        make(path, roles=("analyst", "operator"), expires_at=NOW + timedelta(hours=1)),
        make(path, agent="other"),
    )
    now = [NOW]
    keys = ApiKeys(path, now=lambda: now[0])
    caller = await keys.authenticate(token(new))
    assert caller.key == new.id
    assert keys.roles_left(caller) == ("analyst", "operator")
    path.write_text(path.read_text().replace('"operator"', '"admin"'))
    assert keys.roles_left(caller) == ("analyst",)
    assert keys.roles_left(replace(caller, key=rival.id)) is None
    assert keys.roles_left(replace(caller, key="0" * 12)) is None
    now[0] += timedelta(hours=1)
    assert keys.roles_left(caller) is None
    now[0] = NOW
    assert keys.roles_left(caller) == ("analyst",)
    api_keys.revoke(path, new.id)
    assert keys.roles_left(caller) is None


async def test_while_the_file_cannot_be_used_no_caller_has_roles_left(path):
    keys = ApiKeys(path)
    caller = await keys.authenticate(token(make(path)))
    path.chmod(0o644)
    assert keys.roles_left(caller) is None


def test_a_key_looks_as_it_should_and_is_not_in_the_file(path):
    new = make(path)
    prefix, key_id, secret = token(new).split("_", 2)
    assert (prefix, key_id, len(secret)) == ("cg", new.id, 43)
    text = path.read_text()
    assert secret not in text
    assert hashlib.sha256(secret.encode()).hexdigest() in text
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("other", ["eyJhbGciOiJSUzI1NiJ9.e30.x", "Bearer", "CG_000000000000_x", "", "sk-123"])
async def test_tokens_of_another_kind_are_left_to_others(path, other):
    assert await ApiKeys(path).authenticate(other) is None


async def test_whatever_is_wrong_with_a_key_the_answer_is_the_same(path):
    good, expired, revoked = make(path), make(path, expires_at=NOW + timedelta(hours=1)), make(path)
    api_keys.revoke(path, revoked.id)
    keys = ApiKeys(path, now=lambda: NOW + timedelta(hours=1))
    wrong = [
        token(expired),
        token(revoked),
        token(good)[:-1] + ("A" if token(good)[-1] != "A" else "B"),
        "cg_" + "0" * 12 + "_" + "A" * 43,
        f"cg_{good.id}_" + token(expired).split("_", 2)[2],
        "cg_",
        "cg_x",
        token(good) + "\n",
        token(good) + "A",
        " ".join([token(good)] * 2),
        "cg_" + "a" * 100_000,
    ]
    messages = {await refusal(keys, text) for text in wrong}
    assert messages == {"The API key is not valid."}
    assert await keys.authenticate(token(good)) is not None


async def test_a_key_expires_at_its_time_and_not_before(path):
    expiring = make(path, expires_at=NOW + timedelta(seconds=10))
    now = NOW + timedelta(seconds=9.999)
    keys = ApiKeys(path, now=lambda: now)
    assert await keys.authenticate(token(expiring)) is not None
    now = NOW + timedelta(seconds=10)
    await refusal(keys, token(expiring))


async def test_an_unknown_id_costs_the_same_hash_and_comparison(path, monkeypatch):
    known, compared = make(path), []
    compare = api_keys.hmac.compare_digest
    monkeypatch.setattr(api_keys.hmac, "compare_digest", lambda *pair: compared.append(pair) or compare(*pair))
    keys = ApiKeys(path)
    await refusal(keys, f"cg_{known.id}_" + "A" * 43)
    await refusal(keys, "cg_" + "0" * 12 + "_" + "A" * 43)
    assert [[len(text) for text in pair] for pair in compared] == [[64, 64], [64, 64]]


async def test_changes_of_the_file_are_followed_at_once(path):
    keys = ApiKeys(path)
    first = make(path)
    assert await keys.authenticate(token(first)) is not None
    second = make(path, tenant="other")
    assert (await keys.authenticate(token(second))).tenant == "other"
    api_keys.revoke(path, first.id)
    await refusal(keys, token(first))
    assert await keys.authenticate(token(second)) is not None


async def test_a_missing_file_refuses_everybody_and_a_restored_one_lets_in_again(path):
    new = make(path)
    keys = ApiKeys(path)
    assert await keys.authenticate(token(new)) is not None
    path.rename(path.with_suffix(".away"))
    await refusal(keys, token(new))
    path.with_suffix(".away").rename(path)
    assert await keys.authenticate(token(new)) is not None


def spoil(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.update(extra=1),
        lambda file: file.update(version=2),
        lambda file: file.update(purpose="testing"),
        lambda file: file.pop("purpose"),
        lambda file: file.update(keys=file["keys"] * 2),
        lambda file: file["keys"][0].update(tenant="../x"),
        lambda file: file["keys"][0].update(roles=["Admin"]),
        lambda file: file["keys"][0].update(secret_sha256="A" * 64),
        lambda file: file["keys"][0].update(id="x"),
        lambda file: file["keys"][0].update(revoked="false"),
        lambda file: file["keys"][0].update(expires_at="2026-01-01T00:00:00"),
        lambda file: file["keys"][0].pop("expires_at"),
    ],
)
async def test_a_broken_file_refuses_everybody(path, change):
    new = make(path)
    keys = ApiKeys(path)
    assert await keys.authenticate(token(new)) is not None
    spoil(path, change)
    await refusal(keys, token(new))
    with pytest.raises(ValueError, match=r"keys\.json"):
        api_keys.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"version":1,"version":1,"purpose":"dev","keys":[]}'])
def test_what_is_no_key_file_is_named_as_such(path, content):
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ValueError, match="is not a key file"):
        api_keys.load(path)


async def test_a_file_that_others_can_read_refuses_everybody_until_it_is_closed(path):
    new = make(path)
    keys = ApiKeys(path)
    path.chmod(0o644)
    await refusal(keys, token(new))
    path.chmod(0o600)
    assert await keys.authenticate(token(new)) is not None


async def test_trouble_with_the_file_is_logged_once_and_holds_no_key(path, caplog):
    new = make(path)
    keys = ApiKeys(path)
    path.chmod(0o644)
    for _ in range(5):
        await refusal(keys, token(new))
    assert len(caplog.records) == 1
    assert token(new) not in caplog.text


@pytest.mark.parametrize("name", ["", "Acme", "a/b", "..", "a b", "x" * 64])
@pytest.mark.parametrize("field", ["tenant", "agent", "roles"])
def test_names_that_are_none_are_refused_at_creation(path, field, name):
    with pytest.raises(ValueError, match="are named with"):
        make(path, **{field: (name,) if field == "roles" else name})
    assert not path.exists()


def test_a_key_that_would_have_expired_is_not_made(path):
    with pytest.raises(ValueError, match="expired already"):
        make(path, expires_at=NOW)


def test_keys_for_production_and_for_development_do_not_share_a_file(path):
    make(path, purpose="dev")
    assert api_keys.load(path).purpose == "dev"
    with pytest.raises(ValueError, match="keep keys for production in a file of their own"):
        make(path, purpose="production")


def test_a_key_that_does_not_exist_cannot_be_revoked(path):
    make(path)
    with pytest.raises(LookupError):
        api_keys.revoke(path, "0" * 12)


def test_keys_made_at_the_same_time_are_all_kept(path):
    threads = [threading.Thread(target=make, args=(path,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(api_keys.load(path).keys) == 8
    assert [item.name for item in path.parent.iterdir() if item.name.startswith(".")] == []
