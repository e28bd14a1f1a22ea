"""Groups of commands whose first word may be left out: without one they list, and with an id alone they show."""

import re
from typing import Any, Final

from typer.core import TyperGroup

_ID: Final = re.compile(r"(task-)?[0-9a-fA-F-]{36}")


class Listing(TyperGroup):
    """A group with the commands `list` and `show`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  # of the click inside typer
        first = args[0] if args else "-"
        if _ID.fullmatch(first) or (first.startswith("-") and any(map(_ID.fullmatch, args))):
            args = ["show", *args]
        elif first.startswith("-") and first not in ctx.help_option_names:
            args = ["list", *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed
