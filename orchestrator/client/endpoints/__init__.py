"""Every operation of the protocol, described once: method, path, parameters, answer type, repeatability.

Each function only builds a `Call`; sending it is the clients' part, whose methods are made from these
functions and take the same arguments. Ids are positional, everything else is by keyword. A parameter left
`UNSET` is absent from the request, `None` is sent as null; what the values may be is the server's to judge.
Every function takes the keywords of `CallOptions`, refuses ids that would change the path (`ValueError`)
and keywords it does not know (`TypeError`), and may be called on any thread.
"""

from orchestrator.client.call import CallOptions
from orchestrator.client.endpoints.assistants import (
    create_assistant,
    delete_assistant,
    get_assistant,
    list_assistants,
    modify_assistant,
)
from orchestrator.client.endpoints.runs import (
    cancel_run,
    create_run,
    create_thread_and_run,
    get_run,
    get_run_step,
    list_run_steps,
    list_runs,
    modify_run,
    submit_tool_outputs,
)
from orchestrator.client.endpoints.streams import stream_run, stream_thread_and_run, stream_tool_outputs
from orchestrator.client.endpoints.threads import (
    create_message,
    create_thread,
    delete_message,
    delete_thread,
    get_message,
    get_thread,
    list_messages,
    modify_message,
    modify_thread,
)

__all__ = [
    "CallOptions",
    "cancel_run",
    "create_assistant",
    "create_message",
    "create_run",
    "create_thread",
    "create_thread_and_run",
    "delete_assistant",
    "delete_message",
    "delete_thread",
    "get_assistant",
    "get_message",
    "get_run",
    "get_run_step",
    "get_thread",
    "list_assistants",
    "list_messages",
    "list_run_steps",
    "list_runs",
    "modify_assistant",
    "modify_message",
    "modify_run",
    "modify_thread",
    "stream_run",
    "stream_thread_and_run",
    "stream_tool_outputs",
    "submit_tool_outputs",
]
