"""Takes out of a page what a person who looks at it does not see: the place where text for machines alone is hidden.

Hidden are: comments, scripts and the like; elements with `hidden` or `aria-hidden`; and what styles make invisible
(`appearance.py`), inline or in the page's own style sheets. Nothing is known of a style sheet in another file or of
what a script does, and there is no cascade: a rule that hides counts even where another one would show again.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import appearance
import soupsieve
import tinycss2
from appearance import NO_STYLE, Colour, Style
from bs4 import BeautifulSoup, NavigableString, Tag
from bs4.element import Doctype, PreformattedString

# What shows nothing of its text, or only without scripts, or text of a picture's.
_SILENT = (
    "applet", "area", "audio", "base", "canvas", "datalist", "embed", "frame", "head", "iframe", "input",
    "link", "map", "math", "meta", "noscript", "object", "param", "progress", "script", "source", "style",
    "svg", "template", "track", "video",
)  # fmt: skip
# How often a selector may be held against an element before the page is given up.
_MATCHES = 200_000
# The last part of a selector, where that is nothing but names.
_SUBJECT = re.compile(r"(?:^|(?<=[\s>+~]))(?P<tag>[a-z][\w-]*)?(?P<names>([.#][\w-]+)*)\Z", re.IGNORECASE)
_SHOWN_MEDIA = ("", "all", "screen")


def remove_hidden(page: BeautifulSoup) -> int:
    """Take out of `page` everything that is not seen; return how many pieces of text that was.

    Raises:
        SystemExit: its style sheets are too involved to say.
    """
    styles = _of_sheets(page)
    background = _default_background(page)
    for element in page.find_all(list(_SILENT)):
        element.decompose()
    texts = [text for text in page.find_all(string=True) if isinstance(text, PreformattedString)]
    gone: list[Tag] = []
    waiting: list[tuple[Tag, _Surroundings]] = [(page, _Surroundings(background=background))]
    while waiting:
        element, around = waiting.pop()
        style = _style(element, styles)
        if style.gone:
            gone.append(element)
            continue
        here = around.with_style(style)
        for child in element.children:
            if isinstance(child, Tag):
                waiting.append((child, here))
            elif here.invisible and isinstance(child, NavigableString):
                texts.append(child)
    for text in texts:
        text.extract()
    count = sum(bool(text.strip()) and not isinstance(text, Doctype) for text in texts)
    for element in gone:
        count += sum(1 for _ in element.stripped_strings)
        element.decompose()
    return count


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What an element takes over from those around it. `lost` names the inherited properties that hide its text."""

    lost: frozenset[str] = frozenset()
    colour: Colour | None = None
    background: Colour | None = None

    @property
    def invisible(self) -> bool:
        return bool(self.lost) or appearance.alike(self.colour, self.background)

    def with_style(self, style: Style) -> "_Surroundings":
        return _Surroundings(
            lost=(self.lost - style.sets) | style.loses,
            colour=style.colour or self.colour,
            background=style.background or self.background,
        )


def _style(element: Tag, styles: dict[int, Style]) -> Style:
    found = styles.get(id(element), NO_STYLE)
    if (
        element.has_attr("hidden")
        or element.has_attr("popover")
        or _attribute(element, "aria-hidden").lower() == "true"
        or (element.name == "dialog" and not element.has_attr("open"))
    ):
        found = found.joined(appearance.GONE)
    if inline := _attribute(element, "style"):
        found = found.joined(appearance.style_of(tinycss2.parse_blocks_contents(inline, skip_comments=True)))
    return found.joined(appearance.of_attributes(_attribute(element, "color"), _attribute(element, "bgcolor")))


def _attribute(element: Tag, name: str) -> str:
    value = element.get(name)
    return value.strip() if isinstance(value, str) else ""


def _default_background(page: BeautifulSoup) -> Colour | None:
    """White, unless a style sheet may have painted the page."""
    painted = any("background" in sheet.get_text() for sheet in page.find_all("style"))
    linked = any("stylesheet" in str(link.get("rel", "")).lower() for link in page.find_all("link"))
    return None if painted or linked else appearance.WHITE


def _of_sheets(page: BeautifulSoup) -> dict[int, Style]:
    """Return what the page's style sheets do to its elements, where that concerns what is seen."""
    rules = [rule for sheet in page.find_all("style") for rule in _rules(sheet)]
    lost = frozenset[str]().union(*(style.loses for _, style in rules))
    styles: dict[int, Style] = {}
    index, left = _Index(page), _MATCHES
    for selector, style in rules:
        compiled = _compiled(selector) if style.gone or style.loses or style.sets & lost else None
        if compiled is None:
            continue
        candidates = index.candidates(selector)
        left -= len(candidates)
        if left < 0:
            raise SystemExit("The style sheets of this page are too involved to tell what a reader sees.")
        for element in filter(compiled.match, candidates):
            styles[id(element)] = styles.get(id(element), NO_STYLE).joined(style)
    return styles


def _rules(sheet: Tag) -> Iterator[tuple[str, Style]]:
    """Yield selector and style of each rule that applies to a screen of any size."""
    if _attribute(sheet, "media").lower() not in _SHOWN_MEDIA:
        return
    waiting = list(reversed(tinycss2.parse_stylesheet(sheet.get_text(), skip_comments=True, skip_whitespace=True)))
    while waiting:
        rule = waiting.pop()
        if rule.type == "at-rule" and rule.lower_at_keyword in ("media", "layer") and rule.content is not None:
            if rule.lower_at_keyword == "layer" or tinycss2.serialize(rule.prelude).strip().lower() in _SHOWN_MEDIA:
                inner = tinycss2.parse_rule_list(rule.content, skip_comments=True, skip_whitespace=True)
                waiting.extend(reversed(inner))
        elif rule.type == "qualified-rule":
            style = appearance.style_of(tinycss2.parse_blocks_contents(rule.content, skip_comments=True))
            for selector in _selectors(rule.prelude):
                # What another rule paints behind or over it is not known.
                yield selector, replace(style, colour=None, background=None)


def _selectors(prelude: list[Any]) -> Iterator[str]:
    part: list[Any] = []
    for token in prelude:
        if token == ",":
            yield tinycss2.serialize(part).strip()
            part = []
        else:
            part.append(token)
    yield tinycss2.serialize(part).strip()


def _compiled(selector: str) -> soupsieve.SoupSieve | None:
    try:
        return soupsieve.compile(selector)
    except (soupsieve.SelectorSyntaxError, NotImplementedError, ValueError, RecursionError):
        return None  # something like ::before, which is not text of the page


class _Index:
    """The elements of a page by what a selector's last part may name."""

    def __init__(self, page: BeautifulSoup) -> None:
        self._all: list[Tag] = page.find_all(True)
        self._by: dict[str, list[Tag]] = defaultdict(list)
        for element in self._all:
            classes = element.get_attribute_list("class")
            names = {element.name, f"#{element.get('id')}", *(f".{name}" for name in classes)}
            for name in names:
                self._by[name].append(element)

    def candidates(self, selector: str) -> list[Tag]:
        """Return the elements that the selector may match; all of them where that is not plain to see."""
        found = _SUBJECT.search(selector)
        if found is None or "\\" in selector or not selector.isascii():
            return self._all
        names = [name for name in ((found["tag"] or "").lower(), *re.findall(r"[.#][\w-]+", found["names"])) if name]
        return min((self._by[name] for name in names), key=len, default=self._all)
