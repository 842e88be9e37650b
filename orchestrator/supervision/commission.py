"""A run that an orchestrator is given to conduct, and how its parts are put together from the fleet's.

Owns which of the fleet's parts serve the run: the gate of its server and key, the check of its tools. Knows
nothing of what users may ask for (that is the façade's) and decides nothing about the run.
"""

from __future__ import annotations

import contextvars
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.client import AsyncThreadsClient
from orchestrator.journal import Address
from orchestrator.runs.backend import Heard, ThreadsBackend
from orchestrator.runs.inputs import CancelRequested
from orchestrator.runs.record import RunRecord
from orchestrator.supervision.in_flight import InFlight
from orchestrator.supervision.recovery import unknown_settled
from orchestrator.supervision.tool_checks import CheckTools
from orchestrator.tools import RunTools

if TYPE_CHECKING:
    from orchestrator.supervision.fleet import Fleet
    from orchestrator.supervision.state import RunState

__all__ = ["Commission", "address_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Commission:
    """A run that is about to begin.

    Attributes:
        record: The run's first record.
        client: Makes its requests, with its own credentials.
        tools: What it may call.
        check_tools: Whether the assistant's functions are compared with those.
        context: The user's object for `ToolContext.state`.
        claims: The journal knows the run; else it is new, unless its key is known.
        unwanted: Whether it is to be cancelled, and nothing else.
        variables: The context variables of the caller of `start()`, seen by tools.
    """

    record: RunRecord
    client: AsyncThreadsClient
    tools: RunTools
    check_tools: CheckTools
    context: object
    claims: bool = False
    unwanted: bool = False
    variables: contextvars.Context = field(default_factory=contextvars.copy_context)

    @property
    def address(self) -> Address:
        """Where the run's requests go."""
        return address_of(self.client)

    def settled(self, record: RunRecord) -> RunRecord:
        """Decide of the calls that were under way when the process died that conducted the run."""
        return unknown_settled(record, self.tools.registry)

    def in_flight(self, fleet: Fleet, state: RunState, record: RunRecord) -> InFlight:
        """Make what will be under way for the run, which goes on from this record; on the actors' loop."""
        gate = fleet.gates.of(self.client.account)

        def hear(heard: Heard) -> None:
            state.last_request_id = heard.request_id
            gate.hear(heard.status, heard.headers)

        backend = fleet.tool_checks.beside(
            ThreadsBackend(self.client, heard=hear, lean=fleet.lean),
            check=self.check_tools,
            tools=self.tools,
            state=state,
            client=self.client,
            gate=gate,
        )
        in_flight = InFlight(
            key=record.key,
            backend=backend,
            gate=gate,
            draining=fleet.draining,
            executor=fleet.executor,
            registry=self.tools.registry,
            approvals=state.approvals,
            context=self.context,
            contextvars_context=self.variables,
            loop_thread=fleet.loop_thread,
            may_act=partial(fleet.journal.may_act, record.key),
        )
        if self.unwanted:
            # Said before anybody conducts the run: what nobody wants is not gone on with.
            in_flight.say(CancelRequested())
        return in_flight


def address_of(client: AsyncThreadsClient) -> Address:
    """Where a client's requests go."""
    return Address(base_url=client.base_url, organization=client.organization, project=client.project)
