"""A gateway whose wall clock jumps: an hour ahead at SIGUSR1, two hours back at SIGUSR2: `jumping_gateway.py serve …`.

Durations must not come from it. What the product reads of the time of day goes through `datetime` in its modules, which
is replaced there; the monotonic clock goes on.
"""

import signal
import sys
import time
from datetime import datetime, timedelta, tzinfo

from callgate_server.cli.main import main


class Jumping(datetime):
    ahead = timedelta()

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + cls.ahead


def jump(hours: int) -> None:
    Jumping.ahead += timedelta(hours=hours)


if __name__ == "__main__":
    for name, module in list(sys.modules.items()):
        if name.startswith("callgate_server") and getattr(module, "datetime", None) is datetime:
            module.datetime = Jumping  # type: ignore[attr-defined]
    real_time = time.time
    time.time = lambda: real_time() + Jumping.ahead.total_seconds()
    signal.signal(signal.SIGUSR1, lambda *_: jump(1))
    signal.signal(signal.SIGUSR2, lambda *_: jump(-2))
    main()
