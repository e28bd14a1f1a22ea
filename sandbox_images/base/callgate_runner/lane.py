"""The runner of a lane: one session after another over the same wire, each with a cell of its own.

A session is what a single call is elsewhere: hello, secrets, call, output, exit, bye. Hello is said when the next
cell is closed and waiting, so that a gateway which has heard it waits for nothing more. At the first irregularity
(a tool that was killed or left somebody behind, a kill for memory, a cell that cannot be made) the runner says
what there is to say and ends, and the lane with it.

This process sees every call's secrets as they pass, and is never forked again once the first hello after the
order is out: the zygote is older than any of them.
"""

import os
import select
import sys
import time

from callgate_runner import cell, limits, wire
from callgate_runner.call import Call, read_secret
from callgate_runner.cell import Cell, CellError
from callgate_runner.fault import STATUS
from callgate_runner.order import Order
from callgate_runner.run import Run
from callgate_runner.zygote import Unshareable, Zygote

# The host does not let a cell be made. The gateway knows this status.
REFUSED = 72
_CELL_S = 5.0
# The gateway waits for both together: imports that take longer are done in every call instead.
_WARM_S = 12.0
_FRAMES_S = 30.0
_TICK_S = 5.0
# How long after a call's last word, or until the gateway speaks. That word is on its way through the engine to the
# gateway, which records the answer and sends it: what the next cell takes of the processors, it would take from these.
_REST_S = 0.003
_IN_COMMON = ("function", "command", "result_from_stdout", "artifacts", "memory_bytes", "pids", "open_files")


def serve(link: wire.Wire, waking: int, frames: list[tuple[int, bytes]]) -> int:
    """Serve calls until the gateway ends the lane, or the lane itself. Returns the exit status.

    Raises:
        ConnectionError: the gateway is gone.
        TimeoutError: nothing was asked of the lane for as long as the gateway said it may idle.
        ValueError: the gateway broke the protocol.
    """
    if len(frames) > 1:
        raise ValueError("a frame after the order, before it was answered")
    order = Order(frames[0][1])
    watch = limits.Watch(order.memory_bytes, order.pids)
    if watch.needed:
        return _give_up("no cgroup holds the limits of a lane", REFUSED)
    try:
        zygote, ready, cold = _open(order)
        lane = _Lane(link, waking, order, zygote, watch, cold)
        while ready is not None:
            ready = lane.session(ready)
    except CellError as error:
        return _give_up(str(error), REFUSED if error.refused else STATUS)
    return 0


def _give_up(text: str, status: int) -> int:
    sys.stderr.write(f"callgate_runner: {text}\n")
    sys.stderr.flush()
    return status


def _open(order: Order) -> tuple[Zygote, Cell | None, str | None]:
    """Start the zygote and have the first cell made, without warm imports where they cannot be shared; and why."""
    zygote = Zygote(order, warm=True)
    try:
        return zygote, zygote.make_cell(time.monotonic() + _WARM_S), None
    except Unshareable as reason:
        zygote.end()
        zygote = Zygote(order, warm=False)
        return zygote, zygote.make_cell(time.monotonic() + _CELL_S), str(reason)


class _Lane:
    """What stays the same from session to session."""

    def __init__(
        self, link: wire.Wire, waking: int, order: Order, zygote: Zygote, watch: limits.Watch, cold: str | None
    ) -> None:
        self._hello: dict[str, object] = {"wire": wire.VERSION} | ({} if cold is None else {"cold": cold})
        self._link = link
        self._waking = waking
        self._order = order
        self._zygote = zygote
        self._watch = watch

    def session(self, ready: Cell) -> Cell | None:
        """Serve one call in `ready`; return the next cell, or None when the lane has to end."""
        self._link.queue(wire.encode_document(wire.HELLO, self._hello))
        self._link.flush(time.monotonic() + _FRAMES_S)
        call, files, secrets, deadline = self._receive_call(ready)
        stdin = cell.opening(call.names, files) + call.stdin(secrets)
        run = Run(self._link, call, stdin, self._waking, deadline, lambda: ready, self._watch)
        run.supervise()
        run.account()
        self._link.has_news(_REST_S)
        buried = ready.bury()
        if not (run.regular and ready.left_nothing and buried):
            return None
        return self._zygote.make_cell(time.monotonic() + _CELL_S)

    def _receive_call(self, ready: Cell) -> tuple[Call, list[bytes], dict[str, str], float]:
        """Return the call, its secrets for files and for standard input, and its deadline in monotonic time."""
        files: list[bytes] = []
        secrets: dict[str, str] = {}
        frames = self._first_frames(ready)
        while True:
            for number, (kind, payload) in enumerate(frames, start=1):
                if kind == wire.SECRET:
                    name, deliver, value = read_secret(payload)
                    if deliver == "stdin":
                        secrets[name] = value.decode()
                    else:
                        files.append(payload)
                elif kind == wire.CALL and number == len(frames):
                    call = self._checked(Call(payload))
                    return call, files, secrets, time.monotonic() + call.deadline_s
                else:
                    raise ValueError("a frame that may not precede the tool")
            frames = self._link.next_frames()

    def _checked(self, call: Call) -> Call:
        """Return the call if it is one that this lane was opened for: its cells are made for no other."""
        if any(getattr(call, name) != getattr(self._order, name) for name in _IN_COMMON):
            raise ValueError("a call that is not of this lane")
        if call.egress is not None:
            raise ValueError("a call with egress, which a lane does not have")
        return call

    def _first_frames(self, ready: Cell) -> list[tuple[int, bytes]]:
        """Wait for a session to begin, for as long as the lane may idle and lives."""
        until = time.monotonic() + self._order.idle_s
        poll = select.poll()
        poll.register(self._link.source, select.POLLIN)
        poll.register(self._waking, select.POLLIN)
        while time.monotonic() < until:
            for fd, _ in poll.poll(_TICK_S * 1000):
                if fd == self._waking:
                    _drain(fd)
                elif frames := self._link.receive():
                    return frames
            if ready.is_dead() or self._zygote.is_dead():
                raise RuntimeError("a process of the idle lane died")
        raise TimeoutError("the lane was idle for too long")


def _drain(fd: int) -> None:
    try:
        os.read(fd, wire.CHUNK)
    except BlockingIOError:
        return
