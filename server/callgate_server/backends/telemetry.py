"""The operator's view: structured logs on standard error and metrics, implementing `observe.watch.Watch`.

Log lines and label values are made of names of the catalog, reasons, states, ids and durations. Arguments,
results and secrets are never passed in; the text of an unexpected exception might quote one, so a line shows
its type and where it was raised, and never its text, at no log level.
"""

import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from callgate_server.model.answer import Usage
from callgate_server.model.errors import Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.strict_json import Json
from callgate_server.observe.phases import PHASES
from callgate_server.observe.refusals import Allowance

_BUCKETS_MS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000)
# Lines about requests that were refused, of one caller at one route. All strangers are one caller.
_LINES: Final = 10
_LINES_PER_S: Final = 60.0
# Neither refused nor failed, beside 1xx to 3xx: served, or its client left.
_WELL: Final = frozenset({"OK", "CANCELLED", "499"})
_FAMILIES: Final = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily}


class _Forwarded(logging.Handler):
    """Takes what modules and libraries say through `logging`, from warnings on.

    Of a library's line only the template is shown, never what was filled in: it may quote a request.
    """

    def __init__(self, telemetry: "Telemetry") -> None:
        super().__init__(logging.WARNING)
        self._telemetry = telemetry

    def emit(self, record: logging.LogRecord) -> None:
        ours = record.name.startswith("callgate_server")
        error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
        text = record.getMessage() if ours else str(record.msg)
        say = self._telemetry.error if record.levelno >= logging.ERROR else self._telemetry.warning
        say(text, logger=record.name, **({"type": error} if error else {}))


class _Lines:
    """Standard error, where a line that cannot be written is lost, and counted: a full disk or a pipe that nobody reads
    any more must end no call, and not keep the record from being written."""

    def __init__(self, lost: Counter) -> None:
        self._file = sys.stderr
        self._lost = lost

    def msg(self, line: str) -> None:
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except (OSError, ValueError):  # ValueError: it has been closed
            self._lost.inc()

    debug = info = warning = error = msg


@dataclass(frozen=True, slots=True)
class Reading:
    """A figure that is kept elsewhere: a `gauge`, or a `counter`, which only grows.

    `values` are by the values of `label`; without a label there is one, under the empty name.
    """

    kind: Literal["gauge", "counter"]
    name: str
    text: str
    values: Mapping[str, float]
    label: str = ""


class _Readings(Collector):
    def __init__(self, read: Callable[[], Iterable[Reading]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        for reading in self._read():
            labels = [reading.label] if reading.label else []
            family = _FAMILIES[reading.kind](f"callgate_{reading.name}", reading.text, labels=labels)
            for value in reading.values:
                family.add_metric([value] if labels else [], reading.values[value])
            yield family


class Telemetry:
    """Logs and metrics of one gateway."""

    def __init__(self, level: str) -> None:
        self.registry = CollectorRegistry()
        self._log = structlog.wrap_logger(
            _Lines(self._counter("log_lines_lost", "Lines of this log that could not be written")),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        )
        self._refusals = self._counter("refusals", "Calls that ended before their tool started", "tool", "reason")
        self._requests = self._counter("requests", "Requests that were handled", "transport", "route", "status")
        self._calls = self._counter("calls", "Calls whose tool was started", "tool", "state")
        self._defects = self._counter("unexpected_errors", "Unexpected errors")
        self._alarms = self._counter("policy_alarms", "Policy evaluations that failed")
        self._policies_refused = self._counter("policy_sets_refused", "Changed policies that were not taken up")
        self._connections = self._counter("egress_allowed", "Connections and requests that were allowed", "tool")
        self._kept_in = self._counter("egress_refused", "Connections and requests that were refused", "tool", "why")
        self._carried = self._counter("egress_bytes", "Bytes to and from the outside", "tool", "direction")
        self._retries = self._counter("retries", "Attempts after a first one", "tool", "reason")
        self._fallbacks = self._counter("fallbacks", "Calls answered by a fallback", "tool", "kind", "reason")
        self._said = Allowance(_LINES, _LINES_PER_S)
        phases = Histogram(
            "callgate_phase_ms",
            "Milliseconds per phase of a call",
            ("phase",),
            buckets=_BUCKETS_MS,
            registry=self.registry,
        )
        self._by_phase: dict[str, Histogram] = {phase: phases.labels(phase) for phase in PHASES}

    def take_over_logging(self) -> None:
        """Send what is said through `logging` in this process to this log, and nowhere else."""
        logging.getLogger().handlers[:] = [_Forwarded(self)]

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Expose a figure that is read when the metrics are."""
        Gauge(f"callgate_{name}", text, registry=self.registry).set_function(read)

    def readings(self, read: Callable[[], Iterable[Reading]]) -> None:
        """Expose figures that somebody else keeps; they are read when the metrics are."""
        self.registry.register(_Readings(read))

    def metrics(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self.registry)

    def refused(self, tool: str, reason: Reason, phases_ms: Mapping[str, float]) -> None:
        self._refusals.labels(tool, reason.value).inc()
        self._observe(phases_ms)
        if reason is not Reason.UNAUTHENTICATED:  # of strangers there is the bounded line of the request
            self._log.info("refused", tool=tool, reason=reason.value)

    def requested(self, transport: str, route: str, status: str, caller: str, duration_ms: float) -> None:
        """A request was handled. `route` is a pattern of ours, `caller` a name that a credential gave, or empty.

        Those that were refused or failed are logged: a few in a minute of each caller and route.
        """
        self._requests.labels(transport, route, status).inc()
        if status in _WELL or status[0] in "123":
            return
        left_out = self._said.take((caller, transport, route), time.monotonic())
        if left_out is not None:
            more = {"left_out": left_out} if left_out else {}
            self._log.info(
                "request refused",
                transport=transport,
                route=route,
                status=status,
                caller=caller,
                duration_ms=duration_ms,
                **more,
            )

    def started(self, call_id: str, tool: str, sandbox: str) -> None:
        self._log.info("started", call_id=call_id, tool=tool, sandbox=sandbox)

    def finished(self, tool: str, state: State, usage: Usage, phases_ms: Mapping[str, float]) -> None:
        self._calls.labels(tool, state.value).inc()
        self._observe(phases_ms)
        self._log.info("finished", tool=tool, state=state.value, wall_ms=usage.wall_ms, queue_ms=usage.queue_ms)

    def retried(self, tool: str, reason: Reason) -> None:
        self._retries.labels(tool, reason.value).inc()
        self._log.info("retried", tool=tool, reason=reason.value)

    def fell_back(self, tool: str, kind: str, reason: Reason) -> None:
        self._fallbacks.labels(tool, kind, reason.value).inc()
        self._log.warning("fallback", tool=tool, kind=kind, reason=reason.value)

    def egress(self, tool: str, event: str, body: Mapping[str, Json]) -> None:
        """Count only: hosts are many and in the record. `why` is one of the gate's own words."""
        match event:
            case "egress_allowed":
                self._connections.labels(tool).inc()
            case "egress_refused":
                self._kept_in.labels(tool, str(body.get("why"))).inc()
            case "egress_closed":
                for direction in ("sent", "received"):
                    count = body.get(f"{direction}_bytes")
                    self._carried.labels(tool, direction).inc(count if isinstance(count, int) else 0)

    def breaker_changed(self, breaker: str, before: str, after: str, why: str) -> None:
        """A circuit breaker changed. `breaker` names a tool, or an upstream as a rule does."""
        say = self._log.info if after in ("closed", "half_open") else self._log.warning
        say("a circuit breaker changed", breaker=breaker, before=before, after=after, why=why)

    def unexpected(self, call_id: str, error: BaseException) -> None:
        self._defects.inc()
        frames = traceback.extract_tb(error.__traceback__)
        where = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames[-4:]]
        self._log.error("unexpected error", call_id=call_id, type=type(error).__name__, where=where)

    def policy_alarm(self, text: str) -> None:
        """A policy could not be evaluated; `text` names policies, never arguments."""
        self._alarms.inc()
        self._log.error("policy evaluation failed, the call was refused", detail=text)

    def policies_refused(self, live: str, faults: str) -> None:
        """Changed policies cannot be loaded; the set `live` goes on to decide, and no call was refused for it."""
        self._policies_refused.inc()
        self._log.error("policies were not reloaded, the set before them stays live", live=live, detail=faults)

    def info(self, event: str, **fields: object) -> None:
        self._log.info(event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        self._log.warning(event, **fields)

    def error(self, event: str, **fields: object) -> None:
        self._log.error(event, **fields)

    def _observe(self, phases_ms: Mapping[str, float]) -> None:
        for phase, ms in phases_ms.items():
            self._by_phase[phase].observe(ms)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"callgate_{name}", text, labels, registry=self.registry)
