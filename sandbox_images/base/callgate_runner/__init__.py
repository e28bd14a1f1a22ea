"""The runner: process 1 of a sandbox, trusted, and the only one that touches the wire.

It receives one call, runs the tool as a child, relays and counts what the child writes, kills everything at the
deadline, and says how it ended. Standard library only, and few modules of it: every call pays for their import.
"""
