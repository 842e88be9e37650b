"""The ASGI application: routes behind one door.

Owns what happens to every request: its id, who may pass, the error envelope, the access log; and the order
in which the parts start and stop. It may be mounted elsewhere; `orchestrator.server.serve` runs it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router

from orchestrator.server.engine import Engine
from orchestrator.server.execution import Execution
from orchestrator.server.faults import Faults
from orchestrator.server.http import Backend
from orchestrator.server.refusal import RefusalError
from orchestrator.server.repetition import Repetitions
from orchestrator.server.routes import all_routes
from orchestrator.server.rules import RuleModel
from orchestrator.server.sabotage import SabotageLayer
from orchestrator.server.security import Gate
from orchestrator.server.store import Store
from orchestrator.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from orchestrator.server.database import Database
    from orchestrator.server.faults import Fault
    from orchestrator.server.models import Model
    from orchestrator.server.store import Shelf

__all__ = ["HEADER_LIMIT", "PREFIX", "create_app"]

_log = get_logger(__name__)

PREFIX: Final = "/v1"
"""Where the protocol's paths begin."""

_AZURE_PREFIXES: Final = ("/openai/v1", "/openai", "/api/projects/{project}")
"""Where they begin too: below Azure OpenAI's path, and below any Foundry project's. All is one name space."""

HEADER_LIMIT: Final = 32 * 1024
"""The most bytes of a request's headers, less than what uvicorn cuts off without a word of ours."""

_POLL_AFTER_MS: Final = "200"
"""What pollers of a run are told to wait: short, because rules answer fast and the store is local."""


def create_app(
    *,
    db: Database,
    model: Model | None = None,
    api_keys: Sequence[str] = (),
    run_ttl_s: float = 600.0,
    clock: Callable[[], float] = time.time,
    observe: Callable[[str, str], None] | None = None,
    faults: Sequence[Fault] = (),
) -> Starlette:
    """Build the server as an ASGI application; nothing is opened until its lifespan starts.

    An application that mounts it has to run that lifespan within its own (`router.lifespan_context`):
    Starlette runs those of the outermost application only.

    Args:
        db: A SQLite file, created when it does not exist, or the URL of a PostgreSQL database
            (`postgresql+psycopg://…`); held exclusively while the app runs.
        model: What answers; by default the rule engine without rules. One that is an async context manager
            is entered with the lifespan, and left with it.
        api_keys: The accepted keys, each with a namespace of its own; without any, only local callers are
            served.
        run_ttl_s: Seconds after which a run that is not over expires.
        clock: Unix seconds.
        observe: Called on the loop with method and path of every request, before it is handled.
        faults: What requests meet on purpose (`orchestrator.server.faults`).

    Returns:
        The application. `state.store` is its store, which may be opened ahead of the lifespan by whoever
        wants to know what is wrong with it; `state.backends` are the running parts, by namespace.
    """
    gate = Gate(api_keys)
    store = Store(db, heir=gate.namespaces[0])

    def backend(shelf: Shelf) -> Backend:
        execution = Execution(store=shelf, model=model or RuleModel(), clock=clock)
        repetitions = Repetitions(shelf)
        engine = Engine(
            store=shelf, execution=execution, repetitions=repetitions, run_ttl_s=run_ttl_s, clock=clock
        )
        return Backend(store=shelf, engine=engine, execution=execution, repetitions=repetitions, clock=clock)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await asyncio.to_thread(store.open)
        try:
            async with AsyncExitStack() as resources:
                owner: object = model
                if isinstance(owner, AbstractAsyncContextManager):
                    await resources.enter_async_context(owner)
                # A key that is not accepted any more may have left runs behind: they, too, come to an end.
                namespaces = dict.fromkeys([*gate.namespaces, *await store.namespaces_at_work()])
                backends = {name: backend(store.within(name)) for name in namespaces}
                for running in backends.values():
                    await running.engine.start()
                app.state.backends = backends
                yield
                for running in backends.values():
                    await running.execution.stop()
        finally:
            # On the loop, which nobody needs any more: what the engine saved last is handed over here.
            store.close()

    operations = Router(all_routes(), redirect_slashes=False)
    app = Starlette(
        routes=[
            Route("/healthz", _healthz, methods=["GET"]),
            *(Mount(prefix, app=operations) for prefix in (PREFIX, *_AZURE_PREFIXES)),
        ],
        middleware=[
            Middleware(_Door, gate=gate, observe=observe),
            *([Middleware(SabotageLayer, faults=Faults(faults))] if faults else []),
        ],
        exception_handlers={RefusalError: _refused, 404: _unknown_url, 405: _wrong_method},
        lifespan=lifespan,
    )
    app.state.store = store
    app.router.redirect_slashes = False  # A wrong URL is told so, like every other.
    return app


async def _healthz(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusalError)
    return Response(error.body(), status_code=error.status, media_type="application/json")


async def _unknown_url(request: Request, _error: Exception) -> Response:
    text = f"Invalid URL ({request.method} {request.url.path})"
    return await _refused(request, RefusalError(404, text, code="unknown_url"))


async def _wrong_method(request: Request, _error: Exception) -> Response:
    text = f"Not allowed to {request.method} on {request.url.path}."
    return await _refused(request, RefusalError(405, text))


class _Door:
    """The outermost layer: gives every answer an id, lets no exception out, and logs what was served."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        gate: Gate,
        observe: Callable[[str, str], None] | None,
    ) -> None:
        self._app = app
        self._gate = gate
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(send)
        began = time.perf_counter()
        if self._observe is not None:
            self._observe(scope["method"], scope["path"])
        try:
            # Mounted elsewhere, the path begins with where that is.
            if scope["path"].removeprefix(scope.get("root_path", "")) != "/healthz":
                scope.setdefault("state", {})["namespace"] = self._gate.admit(Headers(scope=scope))
            _check_head(scope)
            await self._app(scope, receive, exchange.send)
        except RefusalError as refused:
            await exchange.refuse(refused, scope, receive)
        except ClientDisconnect:
            pass  # It left in the middle of its own request: there is nobody to answer, and nothing is amiss.
        except Exception:  # noqa: BLE001 - the caller gets a 500 without a stack trace, the log gets it all
            _log.exception("server.request_failed", path=scope["path"], request_id=exchange.request_id)
            error = RefusalError(500, "The server had an error.", type="server_error")
            await exchange.refuse(error, scope, receive)
        _log.info(
            "server.request",
            method=scope["method"],
            path=scope["path"],
            status=exchange.status,
            ms=round(1000 * (time.perf_counter() - began), 1),
            request_id=exchange.request_id,
        )


def _check_head(scope: Scope) -> None:
    size = sum(len(name) + len(value) for name, value in scope["headers"])
    if size > HEADER_LIMIT:
        raise RefusalError(431, f"The request's headers are larger than {HEADER_LIMIT} bytes.")
    # No id holds one, and not every database can be asked for it.
    if "\0" in scope["path"] or b"%00" in scope["query_string"]:
        raise RefusalError(400, "The URL holds a NUL character.")


class _Exchange:
    """One answer on its way out."""

    def __init__(self, send: Send) -> None:
        self.request_id = f"req_{secrets.token_hex(12)}"
        self.status = 0
        self._send = send

    async def send(self, message: Message) -> None:
        """Pass a message on; the first carries the request's id, and when a run is worth another look."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.request_id
            headers["openai-poll-after-ms"] = _POLL_AFTER_MS
        await self._send(message)

    async def refuse(self, error: RefusalError, scope: Scope, receive: Receive) -> None:
        """Answer with an error, unless an answer has begun; then its cut-off body has to say it."""
        if self.status == 0:
            response = Response(error.body(), status_code=error.status, media_type="application/json")
            await response(scope, receive, self.send)
