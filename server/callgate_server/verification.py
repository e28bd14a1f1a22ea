"""Finding out what became of calls whose effect is unknown, where their tool names another one that can tell.

A gateway that died while an `unsafe` tool ran leaves a call that is never run again by itself. If its manifest says
`verify: some.tool`, and the call's arguments are kept, that tool is called for the same caller, and told what was asked
for: `{"call_id": …, "idempotency_key": …, "arguments": {…}}`. It answers `{"happened": true}` or `{"happened": false}`;
any other end of it leaves the call as it is, for a person. It is a call like any other: policy has to permit it.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from callgate_server.execution.running import Running
from callgate_server.ledger.store import Ledger, Parcel, StoredCall
from callgate_server.model.call import Caller, CallRequest
from callgate_server.model.catalog import Catalog
from callgate_server.model.errors import CallError
from callgate_server.model.lifecycle import State
from callgate_server.model.strict_json import decode, encode

ASKED_AT_MOST: Final = 5
_AT_ONCE: Final = 50
_LOOKED_AT: Final = 1000


@dataclass(frozen=True, slots=True)
class Verification:
    """`start` makes a call for a caller, as the pipeline does after it knows who calls."""

    catalog: Catalog
    ledger: Ledger
    start: Callable[[Caller, CallRequest], Awaitable[Running]]
    _asked: Counter[str] = field(default_factory=Counter)

    async def look(self) -> int:
        """Ask about each call that can be asked about and was not asked about too often; return how many are settled.

        Raises:
            CallError: `audit_unavailable`.
        """
        settled = 0
        found = [(call, verify) for call in await self.ledger.unknown(_LOOKED_AT) if (verify := self._verifier(call))]
        for call, verify in found[:_AT_ONCE]:
            self._asked[call.call_id] += 1
            settled += await self._settle(call, verify)
        return settled

    def _verifier(self, call: StoredCall) -> str | None:
        """The tool to ask about it, if there is one that was not asked too often."""
        tool = self.catalog.tools.get(call.tool)
        return tool.manifest.verify if tool is not None and self._asked[call.call_id] < ASKED_AT_MOST else None

    async def _settle(self, call: StoredCall, verify: str) -> bool:
        parcel = await self.ledger.parcel(call.call_id)
        if parcel is None:
            return False
        try:
            running = await self.start(call.caller, CallRequest(verify, _question(call, parcel), "verify"))
            await running.settled()
            if not running.ended:
                running.cancel()  # it needs an approval, and then a person may as well look by himself
            answer = await running.wait()
        except CallError:
            return False  # it is in the record why: policy, no sandbox, no such tool any more
        if answer["fallback"] is not None:
            return False  # the tool that can tell did not
        happened = answer["result"].get("happened") if isinstance(answer["result"], dict) else None
        if answer["state"] != State.SUCCEEDED.value or not isinstance(happened, bool):
            return False
        state = State.SUCCEEDED if happened else State.FAILED
        await self.ledger.settle(call.call_id, state, f"{verify} in call {running.call_id}")
        return True


def _question(call: StoredCall, parcel: Parcel) -> bytes:
    return encode(
        {
            "call_id": call.call_id,
            "idempotency_key": parcel.known_as,
            "arguments": decode(parcel.arguments_json),
        }
    )
