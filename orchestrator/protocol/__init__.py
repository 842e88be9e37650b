"""What travels on the wire, without any I/O: objects, stream events, and the event-stream decoder."""
