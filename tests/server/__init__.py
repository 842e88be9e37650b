"""Tests of the embedded server: real HTTP over loopback sockets, every answer checked against the schema."""
