"""How much a client may send, how slowly, and how many may be there at once. Every figure in one place."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """The ceilings of both edges.

    `body_bytes` caps a request's body or message; `answer_bytes` an answer over gRPC, above what the largest
    manifest can produce. `header_bytes` and `headers` cap a request's head (gRPC: its metadata). `receive_s` is
    the time in which a request must be there completely, TLS handshake included; `stalled_s` how long a client
    may refuse to read; `idle_s` how long a connection may do nothing; `heartbeat_s` the longest silence of an
    event stream. `concurrent_requests` is per edge, beyond it a request is refused at once.

    Of one agent there may be `requests_per_agent` at both edges together, half of an edge's where it is None; of these
    `streams_per_agent` may be event streams, a quarter of them where it is None. `operator_requests` is the reserve
    beyond all of that for what operators do.
    """

    body_bytes: int = 1024 * 1024
    answer_bytes: int = 192 * 1024 * 1024
    header_bytes: int = 16 * 1024
    headers: int = 64
    receive_s: float = 15
    stalled_s: float = 30
    idle_s: float = 60
    heartbeat_s: float = 15
    concurrent_requests: int = 256
    requests_per_agent: int | None = None
    streams_per_agent: int | None = None
    operator_requests: int = 16
    connections: int = 1024
    retry_after_ms: int = 1000

    @property
    def agent_requests(self) -> int:
        return self.requests_per_agent or max(1, self.concurrent_requests // 2)

    @property
    def agent_streams(self) -> int:
        return self.streams_per_agent or max(1, self.agent_requests // 4)
