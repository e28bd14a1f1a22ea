"""The edges towards the outside: one third-party library per module."""
