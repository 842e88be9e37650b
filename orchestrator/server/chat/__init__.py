"""A model behind a Chat Completions endpoint: vLLM, Ollama, llama.cpp, LM Studio, or a hosted one."""

from __future__ import annotations

from orchestrator.server.chat.endpoint import BadEndpointError, Endpoint
from orchestrator.server.chat.model import Bounds, ChatModel

__all__ = ["BadEndpointError", "Bounds", "ChatModel", "Endpoint"]
