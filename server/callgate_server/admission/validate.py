"""Do the arguments fit the tool's schema. Decisions only; the schema engine is a backend."""

from collections.abc import Callable, Sequence
from typing import Protocol

from callgate_server.admission.authorize import never_permitted
from callgate_server.model.catalog import Catalog, Tool
from callgate_server.model.errors import CallError, Reason, Violation
from callgate_server.model.strict_json import Json, decode, encode

MAX_VIOLATIONS = 16


class Schemas(Protocol):
    """Compiled schemas of the live catalog."""

    def input_violations(self, tool: Tool, arguments: Json) -> Sequence[Violation]:
        """What does not fit the input schema; empty when all fits. Messages hold no argument values."""

    def output_violations(self, tool: Tool, result: Json) -> Sequence[Violation]:
        """The same for a result and the output schema."""


def find_tool(catalog: Catalog, name: str) -> Tool:
    """Return the tool called `name`.

    Raises:
        CallError: `unknown_tool`. The message does not repeat the name: it is a caller's text.
    """
    tool = catalog.tools.get(name)
    if tool is None:
        raise unknown_tool()
    return tool


def unknown_tool() -> CallError:
    """The refusal of a name that does not exist, and of one that must look as if it did not."""
    return CallError(Reason.UNKNOWN_TOOL, "No such tool. List the tools to see which you may call.")


def parse_arguments(document: bytes) -> dict[str, Json]:
    """Decode the arguments object.

    Raises:
        CallError: `invalid_request`.
    """
    try:
        arguments = decode(document)
    except ValueError as error:
        raise CallError(Reason.INVALID_REQUEST, f"The arguments are not acceptable JSON: {error}.") from None
    if not isinstance(arguments, dict):
        raise CallError(Reason.INVALID_REQUEST, "The arguments must be a JSON object.")
    return arguments


def check_arguments(
    schemas: Schemas, tool: Tool, document: bytes, *, may_see: Callable[[], bool]
) -> tuple[dict[str, Json], bytes]:
    """Return the decoded arguments and their canonical bytes.

    `may_see` says whether the caller sees the tool: what does not fit tells of its schema.

    Raises:
        CallError: `invalid_request`, or `invalid_arguments` with the path of each bad field; instead of that
            `policy_denied`, to who does not see the tool.
    """
    arguments = parse_arguments(document)
    violations = schemas.input_violations(tool, arguments)
    if violations:
        if not may_see():
            raise never_permitted()
        where = violations[0].path or "/"
        raise CallError(
            Reason.INVALID_ARGUMENTS,
            f"The arguments do not fit {tool.name}: at {where}: {violations[0].message}.",
            violations=violations[:MAX_VIOLATIONS],
        )
    return arguments, encode(arguments)
