"""What one call has used of its egress budget. Pure: counts, and says when there is no more."""

from callgate_server.execution.egress import EgressBudget
from callgate_server.execution.egress_rules import Why
from callgate_server.model.egress import EgressUsage


class Spending:
    """Each method returns why it must not go on, or None. Once bytes were refused, nothing new begins."""

    def __init__(self, budget: EgressBudget) -> None:
        self._budget = budget
        self._open = 0
        self._connections = 0
        self._requests = 0
        self._refused = 0
        self._sent_bytes = 0
        self._received_bytes = 0
        self._bytes_spent = False

    @property
    def usage(self) -> EgressUsage:
        return EgressUsage(self._connections, self._refused, self._sent_bytes, self._received_bytes)

    def connect(self) -> Why | None:
        """Count one more connection of the tool. Each that was let in is given back with `disconnect`."""
        if self._bytes_spent:
            return Why.BYTES_SPENT
        if self._connections >= self._budget.connections:
            return Why.CONNECTIONS_SPENT
        if self._open >= self._budget.concurrent:
            return Why.TOO_MANY_AT_ONCE
        self._connections += 1
        self._open += 1
        return None

    def disconnect(self) -> None:
        self._open -= 1

    def request(self) -> Why | None:
        """Count one more request."""
        if self._bytes_spent:
            return Why.BYTES_SPENT
        if self._requests >= self._budget.requests:
            return Why.REQUESTS_SPENT
        self._requests += 1
        return None

    def refuse(self) -> None:
        """Count what was refused."""
        self._refused += 1

    def send(self, size: int) -> Why | None:
        """Count bytes that are about to leave. Those that may not are not counted."""
        if self._sent_bytes + self._received_bytes + size > self._budget.bytes:
            self._bytes_spent = True
            return Why.BYTES_SPENT
        self._sent_bytes += size
        return None

    def receive(self, size: int) -> Why | None:
        """Count bytes that have arrived: they did, whether there was room for them or not."""
        self._received_bytes += size
        if self._sent_bytes + self._received_bytes > self._budget.bytes:
            self._bytes_spent = True
            return Why.BYTES_SPENT
        return None
