"""An object with a tool, a model as its argument: what is wrong is answered, what is right arrives typed."""

import datetime as dt
import logging
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from orchestrator import Orchestrator, ToolRegistry, tool
from orchestrator.client import ThreadsClient
from orchestrator.testing import running_server


class Room(Enum):
    SINGLE = "single"
    SUITE = "suite"


class Booking(BaseModel):
    city: str
    start: Annotated[dt.date, Field(alias="from", description="The day of arrival.")]
    nights: Annotated[int, Field(ge=1, le=30)]
    room: Room = Room.SINGLE


class Desk:
    def __init__(self, prices: dict[Room, Decimal]) -> None:
        self.prices = prices

    @tool
    def book(self, booking: Booking) -> dict[str, Any]:
        """Book a room."""
        until = booking.start + dt.timedelta(days=booking.nights)
        price = self.prices[booking.room] * booking.nights
        return {"city": booking.city, "room": booking.room, "until": until, "price": price}


tools = ToolRegistry([Desk({Room.SINGLE: Decimal("79.50"), Room.SUITE: Decimal("140.25")})])
old_parameters = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "from": {"type": "string", "format": "date"},
        "nights": {"type": "string"},
    },
    "required": ["city", "from", "nights"],
}
old_definition = {"type": "function", "function": {"name": "book", "parameters": old_parameters}}
logging.getLogger("orchestrator").setLevel(
    logging.ERROR
)  # a call that is answered with an error is a warning

with running_server(Path(__file__).with_suffix(".yaml")) as server:
    with ThreadsClient(base_url=server.base_url, api_key=server.api_key) as client:
        assistant = client.create_assistant(model="rules", tools=[old_definition])
        print(tools.check(assistant))
        assistant = client.modify_assistant(assistant.id, tools=tools.definitions())
        print(tools.check(assistant))
    with Orchestrator(base_url=server.base_url, api_key=server.api_key, tools=tools) as orchestrator:
        run = orchestrator.start(assistant.id, messages="Book 3 nights in Oslo from 2026-05-01.")
        result = run.result(timeout=60).raise_for_status()
        for call in result.tool_calls:
            print(call.output)
        print(result.text)
