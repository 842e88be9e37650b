"""Tools that tell how far they are, are run again, share a limit, or end their run; and middleware."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from orchestrator import Invocation, Notice, Orchestrator, Retry, ToolContext, ToolError, ToolRegistry, tool
from orchestrator.client import ThreadsClient
from orchestrator.errors import ToolFailed
from orchestrator.testing import running_server

PRICES = {"tea": Decimal("4.20"), "coffee": Decimal("7.90")}


@tool(retries=2, max_concurrency=1)
def stock(item: str, context: ToolContext) -> dict[str, Any]:
    """How many there are."""
    context.progress(f"counting {item}", 0.5)
    if context.attempt == 1 and item == "tea":
        raise Retry("the shelf is being filled", after_s=0.05)
    return {"item": item, "count": context.state["counts"][item]}


@tool(timeout_s=5)
async def price(item: str) -> dict[str, Any]:
    """What one costs."""
    await asyncio.sleep(0.01)
    if item not in PRICES:
        raise ToolError(f"There is no {item}; ask for one of {', '.join(PRICES)}.")
    return {"item": item, "price": PRICES[item]}


@tool(on_error="fail")
def charge(card: str) -> None:
    """Charge a card."""
    raise ConnectionError(f"the bank does not answer for {card}")


calls: Counter[str] = Counter()


def counted(invocation: Invocation, call_next: Callable[[Invocation], Any]) -> Any:
    """Stands around every call, of async tools as well."""
    calls[invocation.tool.name] += 1
    return call_next(invocation)


logging.getLogger("orchestrator").setLevel(logging.ERROR)  # a tool that fails is a warning
tools = ToolRegistry([stock, price, charge])

with running_server(Path(__file__).with_suffix(".yaml")) as server:
    with ThreadsClient(base_url=server.base_url, api_key=server.api_key) as client:
        assistant = client.create_assistant(model="rules", tools=tools.definitions())
    with Orchestrator(
        base_url=server.base_url, api_key=server.api_key, tools=tools, middleware=[counted]
    ) as orchestrator:
        counts = {"tea": 3, "coffee": 8}
        run = orchestrator.start(assistant.id, messages="Order tea coffee.", context={"counts": counts})
        said = {event.detail for event in run.events() if isinstance(event, Notice) and event.fraction}
        result = run.result(timeout=60).raise_for_status()
        print(*sorted(detail for detail in said if detail), sep=", ")
        for call in result.tool_calls:
            print(f"{call.name}: {call.output}" + (" (second attempt)" if call.attempts == 2 else ""))
        print(result.text)

        broken = orchestrator.start(assistant.id, messages="Charge visa.")
        try:
            broken.result(timeout=60)
        except ToolFailed as error:
            print(f"the run is {error.status}: {error.__cause__!r}")
    print(dict(calls))
