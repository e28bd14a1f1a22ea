"""Process 1 of a sandbox: become untouchable, receive one call, run it, account for it, end.

Whatever goes wrong here ends this process, and with it every process of the sandbox: the kernel kills a pid
namespace whose process 1 is gone. The gateway takes an end without farewell for a loss, never for a success.
"""

import os
import sys
import time

from callgate_runner import kernel, python_tool, wire
from callgate_runner.call import Call, accept_secret
from callgate_runner.child import Child
from callgate_runner.fault import STATUS, describe
from callgate_runner.run import Run

# How long the greeting may take to leave. For its call the runner waits as long as the wire is held: a sandbox
# may be started long before there is a call for it, and the end of the wire ends it.
_GREETING_S = 60.0
# How long a call must be away before the time until then is used for imports.
_IDLE_S = 0.1
_GATEWAY_GONE = 71


def main() -> None:
    """Serve one call. Does not return."""
    if os.getpid() != 1:
        sys.exit("callgate_runner: this is process 1 of a sandbox, and kills every process it can see; not here.")
    status = STATUS
    try:
        status = _serve()
    except (ConnectionError, TimeoutError):
        status = _GATEWAY_GONE
    except BaseException as error:
        _report(error)
    finally:
        os._exit(status)


def _serve() -> int:
    # Before anything arrives that the tool must not reach.
    kernel.set_dumpable(dumpable=False)
    link = wire.Wire.take_over()
    waking = kernel.ignore_signals()
    link.queue(wire.encode_document(wire.HELLO, {"wire": wire.VERSION}))
    link.flush(time.monotonic() + _GREETING_S)
    _preload(link)
    frames = link.next_frames()
    if frames[0][0] == wire.LANE:
        # Only here: a call with a container of its own does not pay for these imports.
        from callgate_runner import lane

        return lane.serve(link, waking, frames)
    call, secrets, deadline = _receive_call(link, frames)
    run = Run(link, call, call.stdin(secrets), waking, deadline, lambda: Child(call))
    run.supervise()
    run.account()
    return 0


def _preload(link: wire.Wire) -> None:
    """Import, while nobody waits, what practically every Python tool imports: a fork of this process has it then.

    Where calls come as fast as sandboxes do, nothing is imported but what a call needs.

    Only ever modules of the standard library, which this process is made of anyway: not a line of a tool or of a
    package that it brings may run here.
    """
    if link.has_news(_IDLE_S):
        return
    for name in python_tool.COMMON_IMPORTS:
        __import__(name)
        if link.has_news(0):
            return


def _receive_call(link: wire.Wire, frames: list[tuple[int, bytes]]) -> tuple[Call, dict[str, str], float]:
    """Return the call, the secrets for its standard input, and its deadline in monotonic time.

    `frames` are the first, which have come in already.
    """
    secrets: dict[str, str] = {}
    while True:
        for number, (kind, payload) in enumerate(frames, start=1):
            if kind == wire.SECRET:
                accept_secret(payload, secrets)
            elif kind == wire.CALL and number == len(frames):
                call = Call(payload)
                return call, secrets, time.monotonic() + call.deadline_s
            else:
                raise ValueError("a frame that may not precede the tool")
        frames = link.next_frames()


def _report(error: BaseException) -> None:
    sys.stderr.write(f"callgate_runner: {describe(error)}\n")
    sys.stderr.flush()
