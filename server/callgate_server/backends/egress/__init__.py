"""The egress gate: what a tool sends to the outside is decided, dialled and carried here, and nowhere else."""
