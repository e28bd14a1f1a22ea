"""Who is calling. Identity comes from the credential and from nowhere else.

A credential is an opaque token as a transport received it (`Authorization: Bearer …`). Each configured
`Authenticator` either recognises its own kind of token or passes; a token that nobody recognises is refused.
"""

from collections.abc import Callable
from typing import Protocol

from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason


class Authenticator(Protocol):
    async def authenticate(self, token: str) -> Caller | None:
        """Return the caller of `token`, or None when the token is not of this authenticator's kind.

        Raises:
            CallError: `unauthenticated` when the token is of this kind but wrong, expired or revoked.
                The message never says which, and never holds a part of the token.
        """


class Authentication:
    """Asks the configured authenticators in order. None configured: everybody is refused.

    `on_refusal` is told of each refusal: a stranger leaves no trace in the record, so this is the only one.
    """

    def __init__(self, *authenticators: Authenticator, on_refusal: Callable[[], None] = lambda: None) -> None:
        self._authenticators = authenticators
        self._on_refusal = on_refusal

    async def identify(self, token: str | None) -> Caller:
        """Return the caller.

        Raises:
            CallError: `unauthenticated`.
        """
        try:
            return await self._recognised(token)
        except CallError:
            self._on_refusal()
            raise

    async def _recognised(self, token: str | None) -> Caller:
        if token:
            for authenticator in self._authenticators:
                caller = await authenticator.authenticate(token)
                if caller is not None:
                    return caller
        raise CallError(
            Reason.UNAUTHENTICATED,
            "Send a valid credential: `Authorization: Bearer <key>`. `callgated keys create` makes one.",
        )
