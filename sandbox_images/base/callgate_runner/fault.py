"""How a fault of ours is told to the operator: what it was and where, never what it was about."""

import errno

# The exit status of a runner that broke. The gateway knows it only as none of the others.
STATUS = 70


def describe(error: BaseException) -> str:
    """Return the kind of an error and its place. Its text may hold what it was given, and is left out."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place is not None else "?"
    return f"{type(error).__name__}{_number(error)} at {where}"


def _number(error: BaseException) -> str:
    """What the kernel said. It is one of a fixed set of names, and often all that tells two causes apart."""
    name = errno.errorcode.get(error.errno or 0) if isinstance(error, OSError) else None
    return f" {name}" if name else ""
