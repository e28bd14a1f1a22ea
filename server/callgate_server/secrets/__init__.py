"""Secrets for one call: leased before it runs, revoked when it ends."""
