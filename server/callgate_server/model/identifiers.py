"""Names and ids: what they look like and how new ones are made."""

import os
import re
import time
import uuid
from typing import Final

TOOL_NAME: Final = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
# Tenants, agents, tasks and roles end up in secret paths, labels and policy ids: no separator can hide in them.
PRINCIPAL_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")
SECRET_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")


def new_call_id() -> str:
    """Return a UUIDv7 as text: 48 bits of Unix milliseconds, then random bits (RFC 9562, section 5.7)."""
    unix_ms = time.time_ns() // 1_000_000
    value = (unix_ms & 0xFFFF_FFFF_FFFF) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))
