"""The live policies: a directory of `*.cedar` files, reloaded whole or not at all.

A set that cannot be loaded is refused and the one before it stays live. `refresh` reads the files and compares
their content: sets are small, and times and sizes of files miss a quick edit. A change is taken up when two
rounds in a row read the same, so that half a copy is not mistaken for a set that lacks its last forbids.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from callgate_server.admission.authorize import Operation
from callgate_server.backends.cedar.policy import Alarm, CedarPolicy, Clock, Explanation, digest
from callgate_server.backends.cedar.vocabulary import Vocabulary
from callgate_server.model.call import Caller
from callgate_server.model.catalog import Catalog, Tool
from callgate_server.model.egress import EgressAsk
from callgate_server.model.strict_json import Json
from callgate_server.model.verdict import Verdict

MAX_FILES: Final = 500
MAX_FILE_BYTES: Final = 1 << 20


class Refreshed(StrEnum):
    UNCHANGED = "unchanged"
    # Something changed; it is taken up if the next round reads the same.
    SETTLING = "settling"
    LOADED = "loaded"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Report:
    """What a refresh did. `version` is the live set's; `faults` says what is wrong with the set that was refused.

    `new` is true where the round before did not say the same of a refused set.
    """

    outcome: Refreshed
    version: str
    policies: int
    faults: str = ""
    new: bool = False


class PolicyDirectory:
    """Implements `admission.authorize.Policy` with whatever set is live at the moment of a call.

    Raises:
        ValueError: the directory cannot be read or its policies cannot be loaded; one line for each fault.
    """

    def __init__(self, directory: Path, catalog: Catalog, alarm: Alarm, now: Clock) -> None:
        self._directory = directory
        self._alarm = alarm
        self._now = now
        self._vocabulary = Vocabulary.of(catalog)
        self._live = self._load(_read(directory))
        self._seen = self._live.version
        # Digest and faults of the set that was refused last; the digest is empty when it could not be read.
        self._refused = ("", "")

    @property
    def live(self) -> CedarPolicy:
        """The set of this moment: for several questions that must be answered by one set."""
        return self._live

    @property
    def schema_text(self) -> str:
        """The Cedar schema of this catalog, for authors of policies and their editors."""
        return self._vocabulary.text

    def decide(self, caller: Caller, tool: Tool, arguments: dict[str, Json]) -> Verdict:
        """See `admission.authorize.Policy`."""
        return self._live.decide(caller, tool, arguments)

    def could_allow(self, caller: Caller, tool: Tool) -> bool:
        """See `admission.authorize.Policy`."""
        return self._live.could_allow(caller, tool)

    def consent(self, caller: Caller, tool: Tool, ask: EgressAsk) -> Verdict:
        """See `admission.authorize.Policy`."""
        return self._live.consent(caller, tool, ask)

    def may_administer(self, caller: Caller, operation: Operation) -> Verdict:
        """See `admission.authorize.Policy`."""
        return self._live.may_administer(caller, operation)

    def explain(self, caller: Caller, tool: Tool, arguments: dict[str, Json]) -> Explanation:
        """See `CedarPolicy.explain`."""
        return self._live.explain(caller, tool, arguments)

    def explain_consent(self, caller: Caller, tool: Tool, ask: EgressAsk) -> Explanation:
        """See `CedarPolicy.explain_consent`."""
        return self._live.explain_consent(caller, tool, ask)

    def explain_administration(self, caller: Caller, operation: Operation) -> Explanation:
        """See `CedarPolicy.explain_administration`."""
        return self._live.explain_administration(caller, operation)

    def refresh(self) -> Report:
        """Take up changed files. Blocks for the time of reading and checking them; one at a time. Never raises."""
        try:
            files = _read(self._directory)
        except ValueError as error:
            return self._refuse("", str(error))
        found = digest(files)
        settled, self._seen = found == self._seen, found
        if found == self._live.version:
            self._refused = ("", "")
            return self._report(Refreshed.UNCHANGED)
        if not settled:
            return self._report(Refreshed.SETTLING)
        if found == self._refused[0]:
            return self._report(Refreshed.BROKEN, self._refused[1])
        try:
            self._live = self._load(files)
        except Exception as error:
            # Anything else than faults of policies would end the rounds, and with them every later reload.
            return self._refuse(found, str(error) if isinstance(error, ValueError) else type(error).__name__)
        self._refused = ("", "")
        return self._report(Refreshed.LOADED)

    def _load(self, files: Mapping[str, str]) -> CedarPolicy:
        return CedarPolicy(files, self._vocabulary, self._alarm, self._now)

    def _refuse(self, found: str, faults: str) -> Report:
        new, self._refused = self._refused != (found, faults), (found, faults)
        return self._report(Refreshed.BROKEN, faults, new=new)

    def _report(self, outcome: Refreshed, faults: str = "", *, new: bool = False) -> Report:
        return Report(outcome, self._live.version, self._live.size, faults, new)


def _read(directory: Path) -> dict[str, str]:
    """Read every `*.cedar` file, by name.

    Raises:
        ValueError: no such directory, or a file that cannot be read, is too large or is not UTF-8.
    """
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == ".cedar")
    except OSError as error:
        raise ValueError(f"{directory}: cannot be read: {error.strerror}") from None
    if len(paths) > MAX_FILES:
        raise ValueError(f"{directory}: more than {MAX_FILES} policy files")
    return {path.name: _read_file(path) for path in paths}


def _read_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"{path.name}:1: larger than {MAX_FILE_BYTES} bytes")
        return content.decode("utf-8")
    except OSError as error:
        raise ValueError(f"{path.name}:1: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path.name}:1: not UTF-8") from None
