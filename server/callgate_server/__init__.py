"""The gateway: a sandboxed tool-execution server for AI agents. Read `pipeline.py` first."""
