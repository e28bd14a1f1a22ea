"""What everybody may know: frozen types, error reasons, the state table. No I/O, no vendor."""
