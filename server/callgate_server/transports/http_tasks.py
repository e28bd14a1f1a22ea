"""The pages of tasks. They decode, pass on and encode; they decide nothing."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, FastAPI, Path, Request
from starlette.responses import Response

from callgate_server.transports.asking import Limit, admitted, fields_of, reply, token_of
from callgate_server.transports.documents_bounds import NewTaskDocument, TaskBody, TaskDocument, TasksDocument
from callgate_server.transports.gate import Gate, TaskDesk
from callgate_server.transports.limits import TransportLimits
from callgate_server.transports.openapi import body_of, refusals
from callgate_server.transports.wire_tasks import WISH_KEYS, wish_from_json

TaskId = Annotated[str, Path(description="The id of one of this caller's tasks.")]


def add_task_pages(app: FastAPI, gate: Gate, limits: TransportLimits) -> None:
    """Add the pages, where the gate has tasks."""
    if gate.tasks is not None:
        _TaskPages(gate, gate.tasks, limits).add_to(app)


@dataclass(frozen=True, slots=True)
class _TaskPages:
    gate: Gate
    tasks: TaskDesk
    limits: TransportLimits

    def add_to(self, app: FastAPI) -> None:
        strict = [Depends(admitted)]
        app.post(
            "/v1/tasks",
            dependencies=strict,
            status_code=201,
            operation_id="create_task",
            openapi_extra=body_of(TaskBody),
            responses={201: {"model": NewTaskDocument}, **refusals(401, 403, 404, 415)},
        )(self.create)
        app.get(
            "/v1/tasks",
            dependencies=strict,
            operation_id="list_tasks",
            responses={200: {"model": TasksDocument}, **refusals(401)},
        )(self.list_tasks)
        app.get(
            "/v1/tasks/{task_id}",
            dependencies=strict,
            operation_id="get_task",
            responses={200: {"model": TaskDocument}, **refusals(401, 404)},
        )(self.show)
        app.post(
            "/v1/tasks/{task_id}/end",
            dependencies=strict,
            operation_id="end_task",
            responses={200: {"model": TaskDocument}, **refusals(401, 404)},
        )(self.end)

    async def create(self, request: Request) -> Response:
        """Make a task with a grant, and a credential that is narrower than the caller's. It is shown this once."""
        token = token_of(request)
        fields = await fields_of(request, self.limits.body_bytes, WISH_KEYS)
        task, credential = await self.tasks.create(token, wish_from_json(fields))
        headers = {"location": f"/v1/tasks/{task['task_id']}"}
        return reply({"task": task, "token": credential.reveal().decode()}, 201, headers)

    async def list_tasks(self, request: Request, limit: Limit = 50) -> Response:
        """List the newest tasks of this caller, newest first."""
        return reply({"tasks": await self.tasks.list(token_of(request), limit)})

    async def show(self, request: Request, task_id: TaskId) -> Response:
        """Show one of them with what it has spent."""
        return reply(await self.tasks.show(token_of(request), task_id))

    async def end(self, request: Request, task_id: TaskId) -> Response:
        """End one: its credential is worthless from then on. One that is over stays as it is."""
        return reply(await self.tasks.end(token_of(request), task_id))
