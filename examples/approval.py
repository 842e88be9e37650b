"""Refunds: small ones are paid, absurd ones denied by a hook, and the others wait for somebody."""

import logging
from pathlib import Path
from typing import Any

from orchestrator import ApprovalRequest, Notice, Orchestrator, tool
from orchestrator.client import ThreadsClient
from orchestrator.testing import running_server


@tool(approval=lambda arguments: arguments["amount"] > 20)
def refund(order: str, amount: int) -> dict[str, Any]:
    """Pay money back."""
    return {"order": order, "paid": amount}


def policy(request: ApprovalRequest) -> bool | str | None:
    """True approves, False or a reason denies, None leaves it to a person."""
    return "we never pay that much" if request.arguments["amount"] > 1000 else None


logging.getLogger("orchestrator").setLevel(logging.ERROR)  # a call that is denied is a warning

with running_server(Path(__file__).with_suffix(".yaml")) as server:
    with ThreadsClient(base_url=server.base_url, api_key=server.api_key) as client:
        assistant = client.create_assistant(model="rules", tools=[refund.definition()])
    with Orchestrator(
        base_url=server.base_url, api_key=server.api_key, tools=[refund], approve=policy
    ) as orchestrator:
        run = orchestrator.start(
            assistant.id, messages="Refund A1 by 5 and B2 by 40 and C3 by 70 and D4 by 5000."
        )
        for event in run.events():
            if isinstance(event, Notice) and event.event == "tool.approval_asked":
                (request,) = (one for one in run.snapshot().approvals if one.call_id == event.call_id)
                if request.arguments["amount"] < 50:
                    run.approve(request.call_id)
                else:
                    run.deny(request.call_id, "ask again with the receipt")
        for call in run.result(timeout=60).raise_for_status().tool_calls:
            print(call.output)
