"""What CSS declarations do to the text of an element: take it away altogether, or make it too small or too pale.

A property that is inherited (`INHERITED`) hides text until an element inside sets it again; everything else hides the
element with all that is in it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import tinycss2
from tinycss2.color4 import parse_color

INHERITED = frozenset({"visibility", "font-size", "color", "text-indent"})
_FAINT = 0.1
_TINY_PX = 2.0
_OFF_SCREEN_PX = 500.0
_ALIKE = 0.05
_PX = {
    "px": 1.0,
    "pt": 4 / 3,
    "pc": 16.0,
    "em": 16.0,
    "rem": 16.0,
    "ex": 8.0,
    "ch": 8.0,
    "in": 96.0,
    "cm": 37.8,
    "mm": 3.78,
}
_PX |= {"vw": 10.0, "vh": 10.0, "vmin": 10.0, "vmax": 10.0, "q": 0.945}
_OFFSETS = ("left", "top", "right", "bottom", "margin-left", "margin-top", "inset")
_SIZES = ("width", "height", "max-width", "max-height")

# Red, green, blue and opacity, 0 to 1.
Colour = tuple[float, float, float, float]
WHITE: Colour = (1.0, 1.0, 1.0, 1.0)
_UNKNOWN: Colour = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Style:
    """`gone`: the element is not seen. `loses`, `sets`: inherited properties that hide its text, or are set anew."""

    gone: bool = False
    loses: frozenset[str] = frozenset()
    sets: frozenset[str] = frozenset()
    colour: Colour | None = None
    background: Colour | None = None

    def joined(self, other: "Style") -> "Style":
        """Return both together: what either hides is hidden."""
        return Style(
            gone=self.gone or other.gone,
            loses=self.loses | other.loses,
            sets=self.sets | other.sets,
            colour=other.colour or self.colour,
            background=other.background or self.background,
        )


NO_STYLE = Style()
GONE = Style(gone=True)


def style_of(declarations: Iterable[Any]) -> Style:
    """Return what parsed declarations do."""
    values = {
        node.lower_name: [token for token in node.value if token.type not in ("whitespace", "comment")]
        for node in declarations
        if node.type == "declaration"
    }
    words = {name: _words(value) for name, value in values.items()}
    sets = frozenset(values.keys() & INHERITED)
    if "font" in values:
        sets |= {"font-size"}
    loses = {name for name in sets if name in values and _loses(name, words[name], values[name])}
    return Style(
        gone=_without_place(words) or _without_size(words, values) or _elsewhere(words, values) or _clipped(values),
        loses=frozenset(loses),
        sets=sets,
        colour=_colour(values.get("color", [])),
        background=_background(values),
    )


def of_attributes(colour: str, background: str) -> Style:
    """Return what the old attributes `color` and `bgcolor` say."""
    colours = [_colour(tinycss2.parse_component_value_list(text)) for text in (colour, background)]
    return NO_STYLE if colours == [None, None] else Style(colour=colours[0], background=colours[1])


def alike(colour: Colour | None, background: Colour | None) -> bool:
    """Say whether text of this colour cannot be read before this background; what is not known can."""
    if colour is None:
        return False
    if colour[3] < _FAINT:
        return True
    if background is None or background[3] < _FAINT:
        return False
    return all(abs(one - other) < _ALIKE for one, other in zip(colour[:3], background[:3], strict=True))


def _loses(name: str, words: list[str], value: list[Any]) -> bool:
    match name:
        case "visibility":
            return words[:1] in (["hidden"], ["collapse"])
        case "font-size":
            size = _px(value)
            return size is not None and size < _TINY_PX
        case "text-indent":
            return _far(_px(value))
        case _:
            return words[:1] == ["transparent"]


def _without_place(words: dict[str, list[str]]) -> bool:
    return "none" in words.get("display", []) or words.get("content-visibility", [])[:1] == ["hidden"]


def _without_size(words: dict[str, list[str]], values: dict[str, list[Any]]) -> bool:
    opacity = _number(values.get("opacity", []))
    if opacity is not None and opacity < _FAINT:
        return True
    cut = {"hidden", "clip"} & {*words.get("overflow", []), *words.get("overflow-x", []), *words.get("overflow-y", [])}
    sizes = [_px(values[name]) for name in _SIZES if name in values]
    if cut and any(size is not None and size < _TINY_PX for size in sizes):
        return True
    return any(
        function.lower_name.startswith("scale") and all(abs(number) < _FAINT for number in _numbers(function))
        for function in _functions(values.get("transform", []))
    )


def _elsewhere(words: dict[str, list[str]], values: dict[str, list[Any]]) -> bool:
    placed = bool({"absolute", "fixed", "relative"} & set(words.get("position", [])))
    offsets = [name for name in _OFFSETS if name in values and (placed or name.startswith("margin"))]
    if any(_far(_px([token])) for name in offsets for token in values[name]):
        return True
    return any(
        function.lower_name.startswith("translate") and any(_far(_px([token])) for token in function.arguments)
        for function in _functions(values.get("transform", []))
    )


def _clipped(values: dict[str, list[Any]]) -> bool:
    for function in _functions(values.get("clip", [])):
        if function.lower_name == "rect" and all(number <= 1 for number in _numbers(function)):
            return True
    for function in _functions(values.get("clip-path", [])):
        percentages = [token.value for token in function.arguments if token.type == "percentage"]
        if function.lower_name == "inset" and percentages and min(percentages) >= 50:
            return True
        if function.lower_name in ("circle", "ellipse") and _numbers(function)[:1] == [0]:
            return True
    return False


def _words(value: list[Any]) -> list[str]:
    return [token.lower_value for token in value if token.type == "ident"]


def _functions(value: list[Any]) -> list[Any]:
    return [token for token in value if token.type == "function"]


def _numbers(function: Any) -> list[float]:  # noqa: ANN401  # a token of tinycss2
    return [token.value for token in function.arguments if token.type in ("number", "dimension", "percentage")]


def _number(value: list[Any]) -> float | None:
    """Return the first value where it is a number, or a percentage as a part of one."""
    if not value or value[0].type not in ("number", "percentage"):
        return None
    number: float = value[0].value
    return number / 100 if value[0].type == "percentage" else number


def _px(value: list[Any]) -> float | None:
    """Return the first value in pixels, roughly; None where it is no length."""
    if not value or value[0].type not in ("number", "dimension", "percentage"):
        return None
    number: float = value[0].value
    if value[0].type == "dimension":
        factor = _PX.get(value[0].lower_unit)
        return None if factor is None else number * factor
    return number if value[0].type == "number" or number == 0 else None


def _far(px: float | None) -> bool:
    return px is not None and (px <= -_OFF_SCREEN_PX or px >= 10 * _OFF_SCREEN_PX)


def _background(values: dict[str, list[Any]]) -> Colour | None:
    """Return what the declarations paint, None where what is behind it is seen."""
    value = [*values.get("background-color", []), *values.get("background", []), *values.get("background-image", [])]
    colour = _colour(value)
    if any(token.type == "url" or "image" in name or "gradient" in name for token, name in _named(value)):
        return _UNKNOWN
    return None if colour is None or colour[3] < _FAINT else colour


def _named(value: list[Any]) -> list[tuple[Any, str]]:
    return [(token, token.lower_name if token.type == "function" else "") for token in value]


def _colour(value: list[Any]) -> Colour | None:
    """Return the first colour, None where there is none, or one that screens show differently."""
    for token in value:
        parsed = parse_color(token)
        if parsed is None or parsed == "currentcolor":
            continue
        try:
            red, green, blue = parsed.to("srgb").coordinates
        except NotImplementedError:
            return None
        return red or 0.0, green or 0.0, blue or 0.0, parsed.alpha
    return None
