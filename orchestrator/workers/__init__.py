"""Orchestrators in the worker processes of other programs: one for each process, made after the fork."""
