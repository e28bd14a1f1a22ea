"""How a fault of ours is told to the operator: what it was and where, never what it was about."""


def describe(error: BaseException) -> str:
    """Return the kind of an error and its place. Its text may hold what it was given, and is left out."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place is not None else "?"
    return f"{type(error).__name__} at {where}"
