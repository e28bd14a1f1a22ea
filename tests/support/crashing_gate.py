"""A gateway whose way out crashes in the middle of some transfers: `crashing_gate.py serve --config FILE`.

What reads from an upstream ends with a defect as soon as it comes to the word CRASH-HERE.
"""

from callgate_server.backends.egress.dialler import Link
from callgate_server.cli.main import main

WORD = b"CRASH-HERE"


def _arm() -> None:
    original = Link.read

    async def read(self: Link) -> bytes:
        data = await original(self)
        if WORD in data:
            raise RuntimeError("the gate crashes")
        return data

    Link.read = read  # type: ignore[method-assign]


if __name__ == "__main__":
    _arm()
    main()
