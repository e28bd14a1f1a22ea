"""`callgated`: serve, dev, doctor and the operator's tools."""
