"""Moments and durations as people read them: `3h` ago, in `14m`, `1.2 s`."""

from datetime import UTC, datetime


def age(moment: datetime | None) -> str:
    """Return how long ago a moment was, in its largest unit."""
    return "?" if moment is None else _span((datetime.now(UTC) - moment).total_seconds())


def until(moment: datetime | None) -> str:
    """Return a moment to come, with how far off it is."""
    if moment is None:
        return "?"
    left_s = (moment - datetime.now(UTC)).total_seconds()
    written = f"{moment:%Y-%m-%d %H:%M} UTC"
    return f"{written} (in {_span(left_s)})" if left_s > 0 else f"{written} (over)"


def duration(milliseconds: float) -> str:
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    return f"{milliseconds / 1000:.1f} s"


def _span(seconds: float) -> str:
    whole = max(0, int(seconds))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if whole >= length:
            return f"{whole // length}{unit}"
    return f"{whole}s"
