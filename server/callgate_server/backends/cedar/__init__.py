"""Policy as Cedar."""
