"""What is kept of a stream: its first and last bytes, and how many there were. Pure, and bounded."""


class HeadAndTail:
    """Keeps one half of `limit` for the first bytes of a stream, the other for its last.

    `gap` says whether bytes between the two were dropped.
    """

    __slots__ = ("_head_left", "_tail", "_tail_limit", "gap", "total")

    def __init__(self, limit: int) -> None:
        self._head_left = limit // 2
        self._tail_limit = limit - limit // 2
        self._tail = bytearray()
        self.gap = False
        self.total = 0

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; return those that belong to the head, to be sent at once."""
        self.total += len(data)
        head = data[: self._head_left]
        self._head_left -= len(head)
        self._tail += data[len(head) :]
        if len(self._tail) > self._tail_limit:
            del self._tail[: -self._tail_limit]
            self.gap = True
        return head

    @property
    def tail(self) -> bytes:
        """The last bytes, without any that `feed` returned."""
        return bytes(self._tail)


class Bounded:
    """Keeps a stream whole, or, when it is larger than `limit`, nothing of it."""

    __slots__ = ("_data", "_limit", "total")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = bytearray()
        self.total = 0

    def feed(self, data: bytes) -> None:
        self.total += len(data)
        if self.truncated:
            self._data.clear()
        else:
            self._data += data

    @property
    def truncated(self) -> bool:
        return self.total > self._limit

    @property
    def data(self) -> bytes:
        return bytes(self._data)
