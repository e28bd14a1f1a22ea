"""Stands where the runner stands, in images of the test suite."""
