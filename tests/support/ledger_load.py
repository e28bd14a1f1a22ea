"""A gateway's ledger under load, as a process that a test can kill: `ledger_load.py LEDGER KEY CLAIMERS`.

Prints `ready`, then the id of each call whose intent, or whose end, was acknowledged.
"""

import asyncio
import sys
from pathlib import Path

from callgate_server.backends.sqlite.files import load_or_create_key
from callgate_server.backends.sqlite.ledger import SqliteLedger
from support.records import intent, success


async def claim_for_ever(ledger: SqliteLedger) -> None:
    while True:
        new = intent()
        await ledger.claim(new)
        print("claimed", new.call_id, flush=True)
        await ledger.complete(success(new.call_id))
        print("ended", new.call_id, flush=True)


async def main(path: Path, key: Path, claimers: int) -> None:
    ledger = SqliteLedger.open(path, load_or_create_key(key))
    print("ready", flush=True)
    async with asyncio.TaskGroup() as group:
        for _ in range(claimers):
            group.create_task(claim_for_ever(ledger))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
