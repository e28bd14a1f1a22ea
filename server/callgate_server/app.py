"""Puts the gateway together: the order in which its parts start and stop. What each is made of is `parts.py`.

Starting: what must be right before the first call is checked first (catalog, schemas, policy, ledger), then what
an earlier life left behind is settled (calls, leases, containers), then the edges open. Stopping goes the other
way: admit nothing, let calls finish within the grace, cancel the rest, close the edges, give back what is held.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from callgate_server.admission.authenticate import Authentication
from callgate_server.admission.authorize import Administration, is_administrator
from callgate_server.admission.limits import Ceilings, Concurrency, DeadlineRule
from callgate_server.admission.tasks import TaskCredentials
from callgate_server.approvals import Approvals
from callgate_server.attempt import Attempts
from callgate_server.backends import api_keys
from callgate_server.backends.api_keys import ApiKeys
from callgate_server.backends.cedar.directory import PolicyDirectory, Refreshed
from callgate_server.backends.docker.backend import DockerBackend
from callgate_server.backends.json_schema import grantable
from callgate_server.backends.openbao import OpenBao
from callgate_server.backends.sqlite.files import load_or_create_key
from callgate_server.backends.sqlite.ledger import SqliteLedger
from callgate_server.backends.telemetry import Telemetry
from callgate_server.breakers import Breakers
from callgate_server.config import MAX_WINDOW_H, LedgerSettings, Settings, deployed_catalog
from callgate_server.dead_letters import DeadLetters
from callgate_server.duplicates import Duplicates
from callgate_server.endings import Endings
from callgate_server.endurance import Endurance
from callgate_server.execution.guarded_starts import GuardedStarts, StoppedByHand
from callgate_server.execution.lane_board import LaneRules
from callgate_server.execution.lanes import Lanes
from callgate_server.execution.levels import Levels
from callgate_server.execution.running import RunningCalls
from callgate_server.execution.sandbox import SandboxBackend
from callgate_server.execution.trial import ForkTrial
from callgate_server.fallback import Fallbacks
from callgate_server.health import HealthBoard
from callgate_server.kept import KeptCalls
from callgate_server.ledger.store import OpenLease
from callgate_server.limits import Limits
from callgate_server.model.catalog import Catalog
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.spending import hour_of
from callgate_server.observe.refusals import Refusals
from callgate_server.observe.remarks import Remarks
from callgate_server.parts import (
    Edges,
    Endpoints,
    access_log,
    basis,
    breaker_readings,
    call_limits,
    ceilings,
    circuit_breakers,
    egress_gate,
    guarded_store,
    kept_queue,
    lane_readings,
    patience,
    pool_readings,
    secret_store,
    warm_pool,
)
from callgate_server.pipeline import Pipeline
from callgate_server.queries import Figures, Queries
from callgate_server.rounds import Rounds
from callgate_server.secrets.broker import Broker
from callgate_server.stops import Stops
from callgate_server.tasks import Tasks
from callgate_server.transports.gate import Gate
from callgate_server.verification import Verification

# How long calls may take to end after the grace of a drain; what they do then has limits of its own.
SETTLE_S: Final = 10.0
HEALTH_EVERY_S: Final = 2.0
LANES_EVERY_S: Final = 1.0
TRIAL_EVERY_S: Final = 30.0
REVOKE_TIMEOUT_S: Final = 2.0
VERIFY_EVERY_S: Final = 30.0
EXPIRY_EVERY_S: Final = 60.0
BEYOND_EVERY_S: Final = 60.0
SPOOL_EVERY_S: Final = 1.0
TASKS_EVERY_S: Final = 5.0
# How many may wait for the end of a call that they repeat. They cost a little memory and nothing else.
DUPLICATES_WAITING: Final = Ceilings(1024, 512)


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running gateway."""

    endpoints: Endpoints
    catalog: Catalog
    running: RunningCalls


@asynccontextmanager
async def gateway(settings: Settings, *, purpose: api_keys.Purpose) -> AsyncIterator[Gateway]:
    """Start everything, yield while it serves, stop everything.

    `purpose` is what the API keys must be for: `production` for `serve`, `dev` for `dev`.

    Raises:
        ValueError: something that must be right before the first call is not; the text says what to do.
        OSError: an address is taken, or a file cannot be used.
    """
    telemetry = Telemetry(settings.log.level)
    telemetry.take_over_logging()
    loaded = basis(settings, deployed_catalog(settings), purpose, telemetry.policy_alarm)
    catalog, schemas, policy = loaded.catalog, loaded.schemas, loaded.policy
    async with AsyncExitStack() as held:
        ledger = await _ledger(settings, held)
        limits = call_limits(settings.limits, catalog, loaded.authenticators)
        authentication = Authentication(
            *loaded.authenticators,
            TaskCredentials(limits.tasks, ledger.digest),
            on_refusal=partial(telemetry.refused, "", Reason.UNAUTHENTICATED, {}),
        )
        remarks = Remarks(ledger.remark)
        refusals = Refusals(remarks.add)
        administration = Administration(policy, refusals.bounded(ledger.remark))
        held.push_async_callback(remarks.flush)
        held.callback(limits.tell_beyond, remarks.add)
        breakers = circuit_breakers(settings.breakers, telemetry, remarks)
        telemetry.readings(partial(breaker_readings, breakers))
        out = None if settings.egress is None else egress_gate(settings.egress, breakers, telemetry)
        store = secret_store(settings.secrets)
        docker = DockerBackend(loaded.options)
        held.push_async_callback(docker.close)
        if store is not None:
            held.push_async_callback(store.close)
        await _settle(ledger, store, docker, telemetry)
        sandboxes, lanes = await _sandboxes(
            settings, catalog, GuardedStarts(docker, breakers), loaded.lanes, held, telemetry
        )
        sandboxes = StoppedByHand(sandboxes, breakers)
        if out is not None:
            await held.enter_async_context(out)
        rounds = await held.enter_async_context(Rounds(telemetry.unexpected))
        running = await held.enter_async_context(RunningCalls(telemetry.unexpected))
        broker = Broker(guarded_store(store, breakers))
        attempts = Attempts(schemas, policy, ledger, broker, sandboxes, telemetry, out)
        endurance = Endurance(attempts, ledger, telemetry)
        duplicates = Duplicates(ledger, running, Concurrency(DUPLICATES_WAITING))
        pipeline = Pipeline(
            authentication=authentication,
            catalog=catalog,
            schemas=schemas,
            policy=policy,
            concurrency=Concurrency(ceilings(settings)),
            limits=limits,
            deadlines=DeadlineRule(settings.limits.deadline_s),
            ledger=ledger,
            attempts=Fallbacks(endurance, catalog, schemas, policy, ledger, telemetry, limits, breakers),
            breakers=breakers,
            running=running,
            duplicates=duplicates,
            kept=KeptCalls(ledger, kept_queue(settings.queue), patience(settings.queue), telemetry, limits),
            endings=Endings(ledger, limits, telemetry),
        )
        stops = Stops(authentication, administration, ledger.register, limits.stops, running)
        tasks = Tasks(
            authentication,
            catalog,
            ledger.register,
            limits.tasks,
            limits.stops,
            limits.budgets,
            grantable,
            ledger.digest,
            settings.limits.tasks_per_agent,
            limits.hasten,
        )
        await _remember(ledger, limits, tasks, stops, telemetry)
        reporting = [part for part in (*loaded.authenticators, store) if isinstance(part, ApiKeys | OpenBao)]
        only_keys = settings.auth.jwt is None
        health = HealthBoard(ledger, reporting, sandboxes, running, telemetry, only_keys=only_keys)
        await health.look()
        verification = Verification(catalog, ledger, pipeline.start_for)
        work = _Work(policy, ledger, store, sandboxes, lanes, limits, remarks, tasks, verification, health)
        work.begin(rounds, settings, catalog, telemetry)
        gate = Gate(
            calls=pipeline,
            queries=Queries(authentication, catalog, policy, ledger, running, limits.tasks),
            approvals=Approvals(authentication, catalog, ledger, running, limits.stops.refuse, limits.unused, refusals),
            dead_letters=DeadLetters(
                authentication,
                ledger,
                partial(is_administrator, policy),
                pipeline.redrive,
                limits.stops.refuse,
                refusals,
            ),
            tasks=tasks,
            stops=stops,
            breakers=Breakers(authentication, administration, breakers, catalog.tools),
            ready=health.readiness,
            metrics=Figures(authentication, administration, telemetry.metrics).show,
            unexpected=telemetry.unexpected,
            accessed=access_log(telemetry),
        )
        telemetry.gauge("running_calls", "Calls in progress", lambda: len(running))
        edges = Edges(settings, gate)
        held.push_async_callback(edges.close)
        await held.enter_async_context(_drained(edges, running, settings.limits.drain_s, telemetry))
        resumed = await pipeline.resume()
        endpoints = await edges.open()
        telemetry.info("serving", http=endpoints.http, grpc=endpoints.grpc, policy=policy.live.version, resumed=resumed)
        yield Gateway(endpoints, catalog, running)


@asynccontextmanager
async def _drained(edges: Edges, running: RunningCalls, drain_s: float, telemetry: Telemetry) -> AsyncIterator[None]:
    """At the end take no more calls, and let those that run finish: where the end is a failure, without patience."""
    grace_s = 0.0
    try:
        yield
        grace_s = drain_s
    finally:
        edges.refuse()
        telemetry.info("draining", running=len(running))
        telemetry.info("drained", cancelled=await running.drain(grace_s, SETTLE_S))


@dataclass(frozen=True, slots=True)
class _Work:
    """The parts that have something to do again and again."""

    policy: PolicyDirectory
    ledger: SqliteLedger
    store: OpenBao | None
    sandboxes: SandboxBackend
    lanes: Lanes
    limits: Limits
    remarks: Remarks
    tasks: Tasks
    verification: Verification
    health: HealthBoard

    def begin(self, rounds: Rounds, settings: Settings, catalog: Catalog, telemetry: Telemetry) -> None:
        rounds.carry("health", self.health.look, pause_s=HEALTH_EVERY_S)
        rounds.carry("policy", partial(_refresh, self.policy, telemetry), pause_s=settings.policy.reload_s)
        rounds.carry("reap", partial(_reap, self.sandboxes, telemetry), pause_s=settings.engine.reap_every_s)
        rounds.carry("lanes", self.lanes.tend, pause_s=LANES_EVERY_S)
        if forks := [tool for tool in catalog if tool.manifest.isolation == "fork"]:
            rounds.carry("fork", ForkTrial(self.lanes, forks[0]).look, pause_s=TRIAL_EVERY_S)
        rounds.carry("remarks", self.remarks.write, pause_s=SPOOL_EVERY_S)
        rounds.carry("beyond", self.tell_beyond, pause_s=BEYOND_EVERY_S)
        rounds.carry("verify", self.verification.look, pause_s=VERIFY_EVERY_S)
        rounds.carry("spool", self.ledger.move_spooled, pause_s=SPOOL_EVERY_S)
        rounds.carry("tasks", self.tasks.expire, pause_s=TASKS_EVERY_S)
        rounds.carry("expiry", partial(_expire, self.ledger, settings.ledger), pause_s=EXPIRY_EVERY_S)
        if self.store is not None:
            rounds.carry("secrets", self.store.run, pause_s=1)
        rounds.carry("time", self.health.keep_time, pause_s=0)

    async def tell_beyond(self) -> None:
        self.limits.tell_beyond(self.remarks.add)


async def _ledger(settings: Settings, held: AsyncExitStack) -> SqliteLedger:
    key = load_or_create_key(settings.ledger.key_file)
    ledger = await asyncio.to_thread(SqliteLedger.open, settings.ledger.file, key)
    held.push_async_callback(ledger.close)
    return ledger


async def _sandboxes(
    settings: Settings,
    catalog: Catalog,
    engine: GuardedStarts,
    rules: LaneRules,
    held: AsyncExitStack,
    telemetry: Telemetry,
) -> tuple[SandboxBackend, Lanes]:
    container: SandboxBackend = engine
    if settings.execution.pool.enabled:
        container = pool = await held.enter_async_context(warm_pool(settings, catalog, engine, telemetry))
        telemetry.readings(partial(pool_readings, pool))
    lanes = await held.enter_async_context(Lanes(engine, rules, telemetry.unexpected))
    telemetry.readings(partial(lane_readings, lanes))
    return Levels(container=container, fork=lanes), lanes


async def _settle(ledger: SqliteLedger, store: OpenBao | None, sandboxes: SandboxBackend, telemetry: Telemetry) -> None:
    """Clear up after an earlier life: its calls, its leases, its containers. What cannot be reached now is retried."""
    async with asyncio.TaskGroup() as tasks:
        # At once: a store that hangs costs the time limit of one revocation and not of each.
        for lease in await ledger.settle_orphans():
            tasks.create_task(_give_back(lease, ledger, store, telemetry))
    try:
        await _reap(sandboxes, telemetry)
    except CallError as error:
        telemetry.warning("containers of an earlier life are not removed yet", detail=error.message)


async def _remember(ledger: SqliteLedger, limits: Limits, tasks: Tasks, stops: Stops, telemetry: Telemetry) -> None:
    """Take over what bounds calls from earlier lives: a restart frees nobody."""
    await stops.load()
    for task_id in await tasks.load():
        telemetry.warning("the grant of a task cannot be used any more; its credential is refused", task=task_id)
    limits.load(await ledger.register.spending(hour_of(_utc_now()) - MAX_WINDOW_H))


async def _give_back(lease: OpenLease, ledger: SqliteLedger, store: OpenBao | None, telemetry: Telemetry) -> None:
    if store is None:
        telemetry.warning("a lease of an earlier life is left to expire: no secret store", call_id=lease.call_id)
        return
    try:
        await store.revoke(lease.lease_id, timeout_s=REVOKE_TIMEOUT_S)
        await ledger.note(lease.call_id, "secret_revoked", {"lease_id": lease.lease_id})
    except CallError:
        # What is not noted as revoked is revoked once more at the next start, which changes nothing.
        telemetry.warning("a lease of an earlier life is not revoked yet", call_id=lease.call_id)


async def _reap(sandboxes: SandboxBackend, telemetry: Telemetry) -> None:
    removed = await sandboxes.reap()
    if removed:
        telemetry.warning("removed containers that no call owned", removed=removed)


async def _expire(ledger: SqliteLedger, keep: LedgerSettings) -> None:
    """Forget what has been kept long enough, bite by bite: calls get their turn at the record in between."""
    while await ledger.expire_dead(_utc_now() - timedelta(hours=keep.dead_letters_h)):
        continue
    while await ledger.expire(_utc_now() - timedelta(hours=keep.keep_h)):
        continue


async def _refresh(policy: PolicyDirectory, telemetry: Telemetry) -> None:
    report = await asyncio.to_thread(policy.refresh)
    if report.outcome is Refreshed.LOADED:
        telemetry.info("policy reloaded", version=report.version, policies=report.policies)
    elif report.new:
        telemetry.policies_refused(report.version, report.faults)


def _utc_now() -> datetime:
    return datetime.now(UTC)
