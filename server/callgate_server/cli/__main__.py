"""`python -m callgate_server.cli` is `callgated`."""

from callgate_server.cli.main import main

main()
