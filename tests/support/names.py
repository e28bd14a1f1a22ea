"""What a call is called, for tests that are not about it."""

from callgate_server.model.run import CallNames

NAMES = CallNames("call-1", "key-1", 3)
