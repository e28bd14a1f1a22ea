"""Builds the images that the tests run in, before any test's clock runs. Quick where nothing changed."""

from support.gateway import catalog_lock

if __name__ == "__main__":
    catalog_lock()
