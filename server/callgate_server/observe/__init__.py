"""What an operator can see of a call, and never its secrets: names of metrics and phases."""
