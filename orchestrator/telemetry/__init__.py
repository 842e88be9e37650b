"""What the package says about itself while it works: log events, by name, with keys and values."""

from __future__ import annotations

from orchestrator.telemetry.logs import Event, Logger, configure_logging, get_logger, unpack_event

__all__ = ["Event", "Logger", "configure_logging", "get_logger", "unpack_event"]
