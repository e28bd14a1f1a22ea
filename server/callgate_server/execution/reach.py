"""A call's way into a sandbox: into a second one, where the first was gone before the call reached it.

That is so when nothing of the call was sent, and nothing can have run; supervision says it with `sandbox_unavailable`.
A sandbox that cannot be opened is no such case, and a second one that is gone is no accident: both are told.
"""

from collections.abc import Awaitable, Callable

from callgate_server.execution.sandbox import Sandbox
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.run import RunOutcome


async def reach(
    acquire: Callable[[], Awaitable[Sandbox | None]], run: Callable[[Sandbox], Awaitable[RunOutcome]]
) -> tuple[Sandbox, RunOutcome] | None:
    """Return how it ended, and in which sandbox; None where `acquire` gave none.

    Raises:
        CallError: as `acquire` and `run`.
    """
    first = await acquire()
    if first is None:
        return None
    try:
        return first, await run(first)
    except CallError as error:
        if error.reason is not Reason.SANDBOX_UNAVAILABLE:
            raise
    # It still counts as the call's, and there is one for each.
    await first.destroy()
    second = await acquire()
    return None if second is None else (second, await run(second))
