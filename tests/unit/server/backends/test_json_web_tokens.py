import base64
import hashlib
import hmac
import json
import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from callgate_server.backends.json_web_tokens import MAX_TOKEN_BYTES, ClaimNames, JsonWebTokens, TokenRules
from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason

RSA_KEY = rsa.generate_private_key(65537, 2048)
SHORT_RSA_KEY = rsa.generate_private_key(65537, 1024)  # noqa: S505  # that is the point
EC_KEY = ec.generate_private_key(ec.SECP256R1())
P384_KEY = ec.generate_private_key(ec.SECP384R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
RULES = TokenRules(issuer="https://id.example", audience="callgate")


def public(key, **extra):
    kind = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    algorithm = next((value for base, value in kind.items() if isinstance(key, base)), OKPAlgorithm)
    return algorithm.to_jwk(key.public_key(), as_dict=True) | extra


KEYS = {
    "rsa": public(RSA_KEY),
    "ec": public(EC_KEY, use="sig"),
    "ed": public(ED_KEY),
    "pss": public(RSA_KEY, alg="PS256"),
    "encryption": public(RSA_KEY, use="enc"),
    "short": public(SHORT_RSA_KEY),
    "p384": public(P384_KEY),
    "private": RSAAlgorithm.to_jwk(RSA_KEY, as_dict=True),
    "secret": {"kty": "oct", "k": base64.urlsafe_b64encode(b"k" * 32).decode(), "alg": "HS256"},
    "broken": {"kty": "RSA", "n": "!", "e": "AQAB"},
}
SIGNERS = {"rsa": (RSA_KEY, "RS256"), "pss": (RSA_KEY, "PS256"), "ec": (EC_KEY, "ES256"), "ed": (ED_KEY, "EdDSA")}


class Known:
    async def key(self, key_id):
        return KEYS.get(key_id)


def claims(**changes):
    now = int(time.time())
    known = {"iss": "https://id.example", "aud": "callgate", "exp": now + 60, "sub": "bot", "tenant": "acme"}
    return {name: value for name, value in (known | changes).items() if value is not None}


def sign(payload, key, algorithm, headers):
    # Below jwt.encode, which does not sign what no honest provider would.
    return jwt.api_jws.encode(json.dumps(payload).encode(), key, algorithm, headers=headers)


def token(key_id="rsa", *, signer=None, headers=None, **changes):
    key, algorithm = signer or SIGNERS[key_id]
    return sign(claims(**changes), key, algorithm, {"kid": key_id} | (headers or {}))


async def authenticate(text, rules=RULES):
    return await JsonWebTokens(Known(), rules).authenticate(text)


async def refused(text, rules=RULES):
    with pytest.raises(CallError) as refusal:
        await authenticate(text, rules)
    assert (refusal.value.reason, refusal.value.message) == (Reason.UNAUTHENTICATED, "The token is not valid.")
    assert refusal.value.__cause__ is None


@pytest.mark.parametrize("key_id", sorted(SIGNERS))
async def test_a_token_of_each_algorithm_names_its_caller(key_id):
    assert await authenticate(token(key_id)) == Caller("acme", "bot")


async def test_roles_and_task_are_taken_when_they_are_there():
    assert await authenticate(token(roles=["analyst", "ops"], task="t-1")) == Caller(
        "acme", "bot", ("analyst", "ops"), "t-1"
    )


async def test_the_operator_says_which_claim_holds_what():
    rules = TokenRules("https://id.example", "callgate", claims=ClaimNames("org", "client_id", "groups", "job"))
    text = token(sub="https://not-a-name", tenant=None, org="o", client_id="c", groups=["g"], job="j")
    assert await authenticate(text, rules) == Caller("o", "c", ("g",), "j")


@pytest.mark.parametrize("other", ["cg_000000000000_x", "", "abc", "a.b.c", "eyJhbGciOiJub25lIn0", "eyJ.a.b.c"])
async def test_what_does_not_look_like_a_jwt_is_left_to_others(other):
    assert await authenticate(other) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": int(time.time()) - 11},
        {"exp": None},
        {"exp": "soon"},
        {"exp": True, "iat": "x"},
        {"nbf": int(time.time()) + 3600},
        {"iat": int(time.time()) + 7200},
        {"iss": "https://other.example"},
        {"iss": None},
        {"iss": ["https://id.example"]},
        {"aud": "other"},
        {"aud": None},
        {"aud": []},
        {"aud": {"callgate": 1}},
        {"sub": None},
        {"sub": "Bot"},
        {"sub": "a/b"},
        {"sub": 7},
        {"tenant": None},
        {"tenant": "../other"},
        {"tenant": ["acme"]},
        {"tenant": "acme\n"},
        {"roles": "admin"},
        {"roles": ["Admin"]},
        {"roles": [1]},
        {"roles": {"admin": True}},
        {"roles": ["r"] * 65},
        {"task": "a b"},
        {"task": 1},
    ],
)
async def test_claims_that_do_not_fit_are_refused(changes):
    await refused(token(**changes))


async def test_clocks_may_differ_by_the_leeway_and_not_more():
    await authenticate(token(exp=int(time.time()) - 2))
    await refused(token(exp=int(time.time()) - 2), TokenRules("https://id.example", "callgate", leeway_s=0))


async def test_an_audience_among_several_is_enough():
    assert await authenticate(token(aud=["other", "callgate"])) is not None


def unsigned(algorithm, signature=b"", kid="rsa"):
    def part(value):
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    body = part(json.dumps({"alg": algorithm, "kid": kid}).encode()) + b"." + part(json.dumps(claims()).encode())
    return body, (body + b"." + part(signature)).decode()


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", "HS256", None, 1, ["RS256"]])
async def test_a_token_without_a_signature_is_refused(algorithm):
    await refused(unsigned(algorithm)[1])


async def test_a_public_key_is_not_taken_for_a_shared_secret():
    pem = json.dumps(KEYS["rsa"]).encode()
    for kid, secret in (("rsa", pem), ("secret", b"k" * 32)):
        body, _ = unsigned("HS256", kid=kid)
        await refused(unsigned("HS256", hmac.new(secret, body, hashlib.sha256).digest(), kid)[1])


@pytest.mark.parametrize(
    ("key_id", "signer"),
    [
        ("rsa", (rsa.generate_private_key(65537, 2048), "RS256")),
        ("pss", (RSA_KEY, "RS256")),
        ("ec", (RSA_KEY, "RS256")),
        ("encryption", (RSA_KEY, "RS256")),
        ("short", (SHORT_RSA_KEY, "RS256")),
        ("p384", (P384_KEY, "ES384")),
        ("private", (RSA_KEY, "RS256")),
        ("broken", (RSA_KEY, "RS256")),
        ("unknown", (RSA_KEY, "RS256")),
        ("rsa", (RSA_KEY, "RS512")),
    ],
)
@pytest.mark.filterwarnings("ignore::jwt.InsecureKeyLengthWarning")
async def test_a_key_that_is_not_for_this_token_is_refused(key_id, signer):
    await refused(token(key_id, signer=signer))


async def test_an_algorithm_that_the_operator_did_not_allow_is_refused():
    await refused(token("ec"), TokenRules("https://id.example", "callgate", algorithms=("RS256",)))


@pytest.mark.parametrize(
    "headers", [{}, {"kid": "rsa", "crit": ["x"], "x": 1}, {"kid": "rsa", "b64": False, "crit": ["b64"]}]
)
async def test_headers_that_change_the_rules_are_refused(headers):
    key, algorithm = SIGNERS["rsa"]
    await refused(sign(claims(), key, algorithm, headers))


async def test_keys_that_a_token_brings_along_are_not_used():
    other = rsa.generate_private_key(65537, 2048)
    await refused(token(signer=(other, "RS256"), headers={"jwk": public(other), "jku": "https://evil.example"}))


async def test_a_changed_token_is_refused():
    header, payload, signature = token().split(".")
    forged = base64.urlsafe_b64encode(json.dumps(claims(tenant="other")).encode()).rstrip(b"=").decode()
    for text in (
        f"{header}.{forged}.{signature}",
        f"{header}.{payload}.",
        f"{header}.{payload}.AAAA",
        f"{header}..",
        "eyJ..",
    ):
        await refused(text)


@pytest.mark.parametrize("payload", [b"[]", b"1", b"null", b"\xff", b"[" * 2000])
async def test_a_signed_payload_that_is_no_object_is_refused(payload):
    await refused(jwt.api_jws.encode(payload, RSA_KEY, "RS256", headers={"kid": "rsa"}))


async def test_a_huge_token_is_refused_before_it_is_read():
    await refused(token(padding="x" * MAX_TOKEN_BYTES))


@pytest.mark.parametrize(
    "rules",
    [
        {"issuer": ""},
        {"audience": ""},
        {"algorithms": ()},
        {"algorithms": ("HS256",)},
        {"algorithms": ("none",)},
        {"leeway_s": -1},
        {"leeway_s": 3600},
    ],
)
def test_rules_that_would_let_anybody_in_are_refused(rules):
    with pytest.raises(ValueError, match=r"tokens need|the algorithms are|the leeway is"):
        TokenRules(**({"issuer": "i", "audience": "a"} | rules))
