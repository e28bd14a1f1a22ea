"""Tokens of an identity provider: JWTs signed with a key of its published set.

Decides which tokens are believed: signed with an allowed asymmetric algorithm by a key of the set, not expired,
for this audience and from this issuer, with names that are names. Where the keys come from is `Jwks`' matter;
no key means that nobody is believed. A token that is wrong in whatever way gets one and the same answer.
"""

import re
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import jwt

from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.identifiers import PRINCIPAL_NAME
from callgate_server.model.strict_json import Json

# Asymmetric only: with HS* whoever can check a token can make one, and `none` is no signature at all.
Algorithm = Literal["RS256", "PS256", "ES256", "EdDSA"]
MAX_TOKEN_BYTES: Final = 8 * 1024
MAX_ROLES: Final = 64
_LOOKS_LIKE_ONE: Final = re.compile(r"eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*")
# Key type and curve that go with each algorithm (RFC 7518, RFC 8037).
_KEY_KINDS: Final[dict[str, tuple[str, str | None]]] = {
    "RS256": ("RSA", None),
    "PS256": ("RSA", None),
    "ES256": ("EC", "P-256"),
    "EdDSA": ("OKP", "Ed25519"),
}
_MIN_RSA_BITS: Final = 2048


@dataclass(frozen=True, slots=True)
class ClaimNames:
    """Which claim holds what. `roles` and `task` may be absent from a token, `tenant` and `agent` may not."""

    tenant: str = "tenant"
    agent: str = "sub"
    roles: str = "roles"
    task: str = "task"


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a token must satisfy. `leeway_s` is how far the clocks may differ."""

    issuer: str
    audience: str
    algorithms: tuple[Algorithm, ...] = ("RS256", "PS256", "ES256", "EdDSA")
    leeway_s: float = 10
    claims: ClaimNames = ClaimNames()

    def __post_init__(self) -> None:
        if not (self.issuer and self.audience and self.algorithms):
            raise ValueError("tokens need an issuer, an audience and at least one algorithm")
        if set(self.algorithms) - set(_KEY_KINDS):
            raise ValueError(f"the algorithms are {', '.join(_KEY_KINDS)}")
        if not 0 <= self.leeway_s <= 60:
            raise ValueError("the leeway is 0 to 60 seconds")


class Jwks(Protocol):
    """Where the keys come from."""

    async def key(self, key_id: str) -> dict[str, Json] | None:
        """The public key (JWK) with this id, or None when there is none to be had. Never raises."""


class JsonWebTokens:
    """Implements `Authenticator`: recognises what looks like a JWT."""

    def __init__(self, jwks: Jwks, rules: TokenRules) -> None:
        self._jwks = jwks
        self._rules = rules

    async def authenticate(self, token: str) -> Caller | None:
        """See `Authenticator`."""
        if not token.startswith("eyJ") or token.count(".") != 2:
            return None
        if len(token) > MAX_TOKEN_BYTES or not _LOOKS_LIKE_ONE.fullmatch(token):
            raise _refused()
        try:
            return self._caller(await self._verified(token))
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            # Not chained: what these exceptions say comes from the token.
            raise _refused() from None

    async def _verified(self, token: str) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        algorithm, key_id = header.get("alg"), header.get("kid")
        if algorithm not in self._rules.algorithms or not isinstance(key_id, str):
            raise ValueError("algorithm or key id")
        key = await self._jwks.key(key_id)
        if key is None:
            raise ValueError("unknown key")
        return jwt.decode(
            token,
            _public_key(key, algorithm),
            algorithms=[algorithm],
            audience=self._rules.audience,
            issuer=self._rules.issuer,
            leeway=self._rules.leeway_s,
            options={"require": ["exp", "aud", "iss"]},
        )

    def _caller(self, claims: dict[str, Any]) -> Caller:
        names = self._rules.claims
        roles = claims.get(names.roles, [])
        if not isinstance(roles, list) or len(roles) > MAX_ROLES:
            raise ValueError("roles")
        task = claims.get(names.task)
        return Caller(
            tenant=_name(claims.get(names.tenant)),
            agent=_name(claims.get(names.agent)),
            roles=tuple(_name(role) for role in roles),
            task=None if task is None else _name(task),
        )


def _public_key(key: dict[str, Json], algorithm: str) -> jwt.PyJWK:
    """Bind a key to the algorithm of the token.

    Raises:
        ValueError: the key is not made for this.
        jwt.PyJWTError: it is broken.
    """
    kind = (key.get("kty"), key.get("crv"))
    if kind != _KEY_KINDS[algorithm] or key.get("alg", algorithm) != algorithm or key.get("use", "sig") != "sig":
        raise ValueError("the key is of another kind")
    if "d" in key:
        raise ValueError("a set that shows a private key proves nothing")
    bound = jwt.PyJWK(key, algorithm)
    if kind[0] == "RSA" and bound.key.key_size < _MIN_RSA_BITS:
        raise ValueError("the key is too short")
    return bound


def _name(value: object) -> str:
    if not isinstance(value, str) or not PRINCIPAL_NAME.fullmatch(value):
        raise ValueError("a name that is none")
    return value


def _refused() -> CallError:
    return CallError(Reason.UNAUTHENTICATED, "The token is not valid.")
