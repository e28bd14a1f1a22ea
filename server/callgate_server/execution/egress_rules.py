"""Which declared rule allows what a tool asks for, or the word by which it is refused. Pure.

Decides on the forms that `egress_names.py` makes. Policy decides besides it, and `egress_addresses.py` on the
address that a name turns out to have.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum

from callgate_server.execution.egress_names import host_matches, is_certain, path_matches
from callgate_server.model.egress import EgressAsk, EgressRule, Scheme


class Why(StrEnum):
    """Why nothing was sent, or why it ended: the one word in the record and in the answer to the tool."""

    # What was asked for.
    BAD_REQUEST = "bad_request"
    BAD_HOST = "bad_host"
    BAD_PATH = "bad_path"
    # What was decided.
    NO_RULE = "no_rule"
    AMBIGUOUS_RULES = "ambiguous_rules"
    POLICY_DENIED = "policy_denied"
    POLICY_ERROR = "policy_error"
    APPROVAL_REQUIRED = "approval_required"
    BAD_CREDENTIAL = "bad_credential"
    UNRECORDED = "unrecorded"
    CIRCUIT_OPEN = "circuit_open"
    # What the call has used up.
    BYTES_SPENT = "bytes_spent"
    CONNECTIONS_SPENT = "connections_spent"
    REQUESTS_SPENT = "requests_spent"
    TOO_MANY_AT_ONCE = "too_many_at_once"
    # Where the name leads.
    UNRESOLVED = "unresolved"
    METADATA_ADDRESS = "metadata_address"
    LOOPBACK_ADDRESS = "loopback_address"
    LINK_LOCAL_ADDRESS = "link_local_address"
    PRIVATE_ADDRESS = "private_address"
    SHARED_ADDRESS = "shared_address"
    EMBEDDED_ADDRESS = "embedded_address"
    MULTICAST_ADDRESS = "multicast_address"
    UNSPECIFIED_ADDRESS = "unspecified_address"
    DOCUMENTATION_ADDRESS = "documentation_address"
    RESERVED_ADDRESS = "reserved_address"
    UNDECLARED_ADDRESS = "undeclared_address"
    # What became of an allowed connection.
    UNREACHABLE = "unreachable"
    BROKEN_OFF = "broken_off"
    UNTRUSTED_CERTIFICATE = "untrusted_certificate"
    TLS_FAILED = "tls_failed"
    OTHER_NAME = "other_name"
    BAD_ANSWER = "bad_answer"
    ENCODED_ANSWER = "encoded_answer"
    IDLE = "idle"
    DEADLINE = "deadline"
    TOOL_GONE = "tool_gone"
    CALL_ENDED = "call_ended"
    INTERNAL = "internal"


def is_seen(rule: EgressRule) -> bool:
    """Whether a rule needs the gate to see the request: it sets conditions on it, or adds something to it."""
    return bool(rule.methods or rule.paths or rule.secret)


def for_destination(rules: Iterable[EgressRule], scheme: Scheme, host: str, port: int) -> tuple[EgressRule, ...]:
    """Return the rules for a destination, whatever else they ask for. `host` is plain."""
    return tuple(
        rule for rule in rules if rule.scheme == scheme and rule.port == port and host_matches(rule.host, host)
    )


def decide(rules: Iterable[EgressRule], ask: EgressAsk) -> EgressRule | Why:
    """Return the rule that allows `ask`, or why none does.

    Several may, as long as they add the same: the first then stands for all. Otherwise whether a secret is added
    would depend on the order in which somebody wrote them.
    """
    matching: list[EgressRule] = []
    for rule in for_destination(rules, ask.scheme, ask.host, ask.port):
        if not _method_allowed(rule, ask):
            continue
        if rule.paths and ask.path is not None and not is_certain(ask.path):
            return Why.BAD_PATH
        if _path_allowed(rule, ask):
            matching.append(rule)
    if not matching:
        return Why.NO_RULE
    if len({rule.secret for rule in matching}) > 1:
        return Why.AMBIGUOUS_RULES
    return matching[0]


def listening_rule(rules: Sequence[EgressRule], local_port: int) -> EgressRule | None:
    """Return the `tcp` rule behind a port of the sandbox: there is exactly one, or none counts."""
    found = [rule for rule in rules if rule.scheme == "tcp" and (rule.local_port or rule.port) == local_port]
    return found[0] if len(found) == 1 else None


def _method_allowed(rule: EgressRule, ask: EgressAsk) -> bool:
    if ask.method is None:
        # Nothing is seen of this connection, and nothing can be added: no rule that wants to may allow it.
        return not is_seen(rule)
    return not rule.methods or ask.method in rule.methods


def _path_allowed(rule: EgressRule, ask: EgressAsk) -> bool:
    if not rule.paths:
        return True
    return ask.path is not None and any(path_matches(pattern, ask.path) for pattern in rule.paths)
