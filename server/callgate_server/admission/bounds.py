"""Which bounds hold for a caller: of its tenant, of the agent, of the task. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from callgate_server.admission.rates import Rate
from callgate_server.model.call import Caller
from callgate_server.model.spending import Budget, Scope


@dataclass(frozen=True, slots=True)
class Bounds:
    """None is no bound of its own."""

    rate: Rate | None = None
    concurrent: int | None = None
    budget: Budget | None = None

    def over(self, usual: "Bounds") -> "Bounds":
        """These, and the usual ones where there is none."""
        return Bounds(
            usual.rate if self.rate is None else self.rate,
            usual.concurrent if self.concurrent is None else self.concurrent,
            usual.budget if self.budget is None else self.budget,
        )


@dataclass(frozen=True, slots=True)
class BoundTable:
    """What is usual for each, and what was decided for some by name: `acme`, and `acme/bot`."""

    per_tenant: Bounds = Bounds()
    per_agent: Bounds = Bounds()
    per_task: Bounds = Bounds()
    tenants: Mapping[str, Bounds] = field(default_factory=dict)
    agents: Mapping[str, Bounds] = field(default_factory=dict)

    def of(self, caller: Caller, task: Budget | None = None) -> list[tuple[Scope, Bounds]]:
        """The bounds of a call, widest scope first. `task` is the budget of the task of ours that it belongs to."""
        tenant = caller.tenant
        by_tenant, by_agent = self.tenants.get(tenant), self.agents.get(caller.name)
        found = [
            (Scope(tenant), self.per_tenant if by_tenant is None else by_tenant.over(self.per_tenant)),
            (Scope(tenant, caller.agent), self.per_agent if by_agent is None else by_agent.over(self.per_agent)),
        ]
        if task is not None and caller.task is not None:
            found.append((Scope(tenant, caller.agent, caller.task), Bounds(budget=task).over(self.per_task)))
        return found

    def budget(self, scope: Scope) -> Budget | None:
        """The budget of a tenant or an agent."""
        caller = Caller(scope.tenant, scope.agent)
        return next((bounds.budget for known, bounds in self.of(caller) if known == scope), None)
