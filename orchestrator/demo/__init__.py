"""What `orchestrator demo` shows: a server of its own, real tools over real data, and many runs at once."""
