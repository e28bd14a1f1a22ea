"""Sandboxes as single-use containers of a Docker engine."""
