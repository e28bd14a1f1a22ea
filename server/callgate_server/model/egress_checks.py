"""What must hold between the rules of one tool, its secrets and the operator's own services. Pure.

A secret goes out only where exactly one rule says so: no two rules may disagree about it, a secret is bound to one
host, and it travels encrypted unless the operator declared that host as his own.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, zip_longest
from typing import Final

from callgate_server.model.egress import EgressRule, Fault, InternalService

# How each secret is delivered, by its name.
Deliveries = Mapping[str, str]
# So many ports of its own a sandbox can offer.
MAX_TCP_RULES: Final = 32


def rule_faults(rules: Sequence[EgressRule], secrets: Deliveries) -> Iterator[Fault]:
    """Say what does not hold; `at` begins with `egress` or `secrets`."""
    if sum(rule.scheme == "tcp" for rule in rules) > MAX_TCP_RULES:
        yield Fault(("egress",), f"a sandbox has {MAX_TCP_RULES} ports for `scheme: tcp`; declare no more such rules")
    for index, rule in enumerate(rules):
        if rule.secret is not None:
            yield from _secret_faults(index, rule, secrets)
    for (first, one), (second, other) in combinations(enumerate(rules), 2):
        yield from _pair_faults(first, one, second, other)
    named = {rule.secret for rule in rules}
    for index, (name, deliver) in enumerate(secrets.items()):
        if deliver == "egress" and name not in named:
            text = f"no rule of `egress` names {name}: give the rule of its host `secret: {name}`, or remove the secret"
            yield Fault(("secrets", index, "deliver"), text)


def exposed(rules: Iterable[EgressRule], internal: Sequence[InternalService]) -> Iterator[Fault]:
    """Say which secrets would travel in clear to a host that is not the operator's own."""
    for index, rule in enumerate(rules):
        own = any(service.covers(rule.host, rule.port) for service in internal)
        if rule.secret is not None and rule.scheme == "http" and not own:
            text = (
                f"the secret would travel to {rule.destination} in clear: write `scheme: https`, or declare the host "
                "in `egress.internal` of the gateway's configuration if it is your own"
            )
            yield Fault(("egress", index, "scheme"), text)


def _secret_faults(index: int, rule: EgressRule, secrets: Deliveries) -> Iterator[Fault]:
    at = ("egress", index, "secret")
    match secrets.get(str(rule.secret)):
        case None:
            yield Fault(at, f"there is no secret {rule.secret}: declare it in `secrets` with `deliver: egress`")
        case "egress":
            pass
        case other:
            text = f"{rule.secret} is delivered by {other} and would be in the sandbox; write `deliver: egress` there"
            yield Fault(at, text)
    if rule.wildcard:
        yield Fault(("egress", index, "host"), "a secret goes to one host: write its name in full, or remove `secret`")


def _pair_faults(first: int, one: EgressRule, second: int, other: EgressRule) -> Iterator[Fault]:
    at = ("egress", second)
    if one.local_port is not None and one.local_port == other.local_port:
        text = f"rule {first} has local port {one.local_port} already; give this one another `local_port`"
        yield Fault((*at, "local_port"), text)
    if one.port != other.port or not _hosts_meet(one.host, other.host):
        return
    if "tcp" in (one.scheme, other.scheme):
        if one.scheme != other.scheme:
            yield Fault(at, f"rule {first} leads to the same host and port with another scheme; keep one of them")
        elif one == other.model_copy(update={"local_port": one.local_port}):
            yield Fault(at, f"rule {first} leads to the same host and port; remove one of them")
    elif one.scheme == other.scheme and one.secret != other.secret and _requests_meet(one, other):
        text = (
            f"rule {first} allows some of the same requests, and the two disagree about the secret; "
            "make their hosts, `methods` or `paths` differ"
        )
        yield Fault(at, text)


def _hosts_meet(one: str, other: str) -> bool:
    """Whether some host name fits both. A star stands for one label."""
    return one == other or any(
        wide.startswith("*.") and narrow.partition(".")[2] == wide[2:] for wide, narrow in ((one, other), (other, one))
    )


def _requests_meet(one: EgressRule, other: EgressRule) -> bool:
    """Whether some method and path fit both."""
    methods = not one.methods or not other.methods or not set(one.methods).isdisjoint(other.methods)
    paths = not one.paths or not other.paths or any(_paths_meet(a, b) for a in one.paths for b in other.paths)
    return methods and paths


def _paths_meet(one: str, other: str) -> bool:
    """Whether some path fits both patterns. In doubt yes: a final star may stand for nothing as well."""
    left, right = one.split("/")[1:], other.split("/")[1:]
    for index, (a, b) in enumerate(zip_longest(left, right)):
        if (a == "*" and index == len(left) - 1) or (b == "*" and index == len(right) - 1):
            return True
        if a is None or b is None or (a != b and "*" not in (a, b)):
            return False
    return True
