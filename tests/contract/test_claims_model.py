"""Claims against a model: whatever comes in whatever order, a key has one holder, and it is the one that it should be."""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from callgate_server.backends.sqlite import entries, rows, schema
from callgate_server.backends.sqlite.audit import verify_file
from callgate_server.backends.sqlite.writer import Transaction
from callgate_server.ledger.chain import Keys
from callgate_server.ledger.store import Completion
from callgate_server.model.lifecycle import IN_FLIGHT, State
from callgate_server.model.sealed import Sealed
from support.records import CALLER, intent

KEY = Sealed(b"k" * 32)
KEYS = Keys.derive(KEY)
# A tool's effect is its declaration's, so that each key of a tool has one.
EFFECTS = {"a.read": "read", "a.unsafe": "unsafe"}
ENDS = (State.SUCCEEDED, State.FAILED, State.TIMED_OUT, State.CANCELLED, State.LOST)
Place = tuple[str, str]


@dataclass
class Holder:
    call_id: str
    arguments: str
    state: State = State.RUNNING


class Claims(RuleBasedStateMachine):
    """The model: who holds each key of each tool, and how often each was won since it was last free."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.db"
        self.path.touch(0o600)
        self.connection = schema.open_writer(self.path)
        schema.migrate(self.connection)
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.boot = 0
        self.holders: dict[Place, Holder] = {}
        self.wins: dict[Place, int] = {}

    def transaction(self) -> Transaction:
        return Transaction(self.connection, KEYS, self.now)

    def running(self) -> list[Place]:
        return sorted(place for place, holder in self.holders.items() if holder.state in IN_FLIGHT)

    def free(self, places: Iterable[Place]) -> None:
        for place in list(places):
            del self.holders[place]
            self.wins[place] = 0

    @rule(tool=st.sampled_from(sorted(EFFECTS)), key=st.sampled_from("kl"), arguments=st.sampled_from("xy"))
    def claim(self, tool: str, key: str, arguments: str) -> None:
        new = replace(intent(key, tool=tool, effect=EFFECTS[tool]), arguments_digest=arguments)
        found = entries.claim(self.transaction(), new, key, str(self.boot))
        holder = self.holders.get((tool, key))
        if holder is not None and (holder.state, holder.arguments) != (State.INTERRUPTED, arguments):
            assert (found.call_id, found.state) == (holder.call_id, holder.state)
            return
        assert found.call_id == new.call_id
        self.holders[tool, key] = Holder(new.call_id, arguments)
        self.wins[tool, key] = self.wins.get((tool, key), 0) + 1

    @precondition(lambda self: self.running())
    @rule(data=st.data(), state=st.sampled_from(ENDS), answer=st.sampled_from([None, b"{}"]))
    def end(self, data: st.DataObject, state: State, answer: bytes | None) -> None:
        place = data.draw(st.sampled_from(self.running()))
        holder = self.holders[place]
        completion = Completion(holder.call_id, state, None, "", answer)
        # Late is as good as in time, and twice is once.
        entries.complete_late(self.transaction(), completion)
        entries.complete_late(self.transaction(), completion)
        holder.state = state
        if answer is None:
            self.free([place])

    @rule()
    def crash(self) -> None:
        self.boot += 1
        entries.settle(self.transaction(), str(self.boot))
        for tool, key in self.running():
            unsafe = EFFECTS[tool] == "unsafe"
            self.holders[tool, key].state = State.UNKNOWN if unsafe else State.INTERRUPTED

    @rule()
    def time_passes_and_what_was_kept_is_forgotten(self) -> None:
        self.now += timedelta(hours=1)
        entries.expire(self.transaction(), self.now, 100)
        kept = (*IN_FLIGHT, State.UNKNOWN)
        self.free(place for place, holder in self.holders.items() if holder.state not in kept)

    @invariant()
    def each_key_has_the_holder_that_it_should_have(self) -> None:
        for tool in EFFECTS:
            for key in "kl":
                row = rows.read_key_holder(self.connection, CALLER.tenant, CALLER.agent, tool, key)
                holder = self.holders.get((tool, key))
                found = None if row is None else (row.call_id, row.state)
                assert found == (None if holder is None else (holder.call_id, holder.state.value))

    @invariant()
    def what_is_unsafe_runs_once_for_each_key(self) -> None:
        assert all(count <= 1 for (tool, _), count in self.wins.items() if EFFECTS[tool] == "unsafe")

    def teardown(self) -> None:
        self.connection.close()
        report = verify_file(self.path, KEY)
        self.folder.cleanup()
        # Without one write there is no first event.
        assert report.fault is None or report.events == 0


TestClaims = Claims.TestCase
TestClaims.settings = settings(max_examples=40, stateful_step_count=25)
