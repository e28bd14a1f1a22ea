"""`web.fetch`: a page as a person would read it, as text or Markdown, without what is hidden from people."""

import re
import unicodedata
from typing import Annotated, Literal, TypedDict
from urllib.parse import urljoin, urlsplit

import exchange
from bs4 import BeautifulSoup, Tag
from markdownify import MarkdownConverter
from visible import remove_hidden

RAW_FILE = "/out/page"
MAX_PAGE_BYTES = 3 * 1024 * 1024
MAX_LINKS = 200
_ACCEPT = "text/html,application/xhtml+xml,text/plain;q=0.9,text/markdown;q=0.9,application/json;q=0.8,*/*;q=0.1"
_HTML = ("text/html", "application/xhtml+xml", "")
_TEXT = re.compile(r"text/.*|application/(.*\+)?(json|xml|yaml|javascript)")
_JOINERS = "\u200c\u200d"
_BLANK_LINES = re.compile(r"\n{3,}")
_BLOCKS = (
    "address", "article", "aside", "blockquote", "br", "caption", "dd", "details", "div", "dl", "fieldset",
    "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "legend",
    "li", "main", "nav", "ol", "p", "pre", "section", "summary", "table", "tr", "ul",
)  # fmt: skip


class Link(TypedDict):
    text: str
    url: str


class Source(TypedDict):
    """Where the page came from."""

    url: Annotated[str, "The address that was asked for."]
    final_url: Annotated[str, "The address that answered."]
    fetched_at: Annotated[str, "When, in UTC.", ("format", "date-time")]
    sha256: Annotated[str, "Digest of the page's bytes as they came.", ("pattern", "^[0-9a-f]{64}$")]


class Page(TypedDict):
    status: Annotated[int, "The status code; the page of one that says failure is given too."]
    title: str
    content: Annotated[str, "What the page says."]
    links: Annotated[list[Link], "Where it leads to, each address once."]
    truncated: Annotated[bool, "There was more, which was left out."]
    hidden: Annotated[int, "How many pieces of text were left out because no reader sees them."]
    source: Source


def fetch(
    *,
    url: Annotated[str, ("maxLength", 8192)],
    format: Literal["markdown", "text"] = "markdown",  # noqa: A002  # the caller's word
    max_chars: Annotated[int, ("minimum", 1), ("maximum", 400_000)] = 100_000,
    keep_raw: bool = False,
) -> Page:
    """Fetch a page from an address that the gateway allows, as the text that a reader of it sees.

    Args:
        url: The address. Redirects are followed where the gateway allows them.
        format: Markdown keeps headings, lists, tables and links.
        max_chars: Give at most this much of the text.
        keep_raw: Hand back the page's bytes as they came too, as the file `page`.
    """
    reply = exchange.exchange(
        "GET", url, headers={"Accept": _ACCEPT}, body=None, limit_bytes=MAX_PAGE_BYTES, follow=True, reads=True
    )
    if keep_raw:
        with open(RAW_FILE, "wb") as file:
            file.write(reply.body)
    title, content, links, hidden = _read(reply, format)
    return {
        "status": reply.status,
        "title": title[:1000],
        "content": content[: int(max_chars)],
        "links": links[:MAX_LINKS],
        "truncated": reply.truncated or len(content) > max_chars or len(links) > MAX_LINKS,
        "hidden": hidden,
        "source": reply.source,
    }


def _read(reply: exchange.Reply, form: str) -> tuple[str, str, list[Link], int]:
    """Return title, text, links and the number of hidden pieces."""
    if reply.media_type not in _HTML:
        text = reply.text() if _TEXT.fullmatch(reply.media_type) else None
        if text is None:
            raise SystemExit(f"This is no page but {reply.media_type[:80]}; http.request gives it as it is.")
        shown, hidden = _seen(text)
        return "", shown, [], hidden
    charset = re.search(r"charset=\"?([\w-]+)", reply.header("content-type"))
    page = BeautifulSoup(reply.body, "lxml", from_encoding=charset[1] if charset else None)
    base = page.find("base", href=True)
    address = (
        urljoin(reply.source["final_url"], str(base["href"])) if isinstance(base, Tag) else reply.source["final_url"]
    )
    title = " ".join(page.title.get_text().split()) if page.title else ""
    hidden = remove_hidden(page)
    links = _absolute(page, address)
    try:
        text = _Markdown().convert_soup(page) if form == "markdown" else _plain(page)
    except RecursionError:
        raise SystemExit("The page is nested too deep to be read; http.request gives its source.") from None
    (title, in_title), (text, in_text) = _seen(title), _seen(text)
    return title, _tidy(text), links, hidden + in_title + in_text


class _Markdown(MarkdownConverter):
    """Pictures by their description alone: who shows the text must not fetch anything because of it."""

    class Options:
        heading_style = "atx"
        bullets = "-"
        autolinks = False
        wrap = False

    def convert_img(self, element: Tag, text: str, parent_tags: set[str]) -> str:  # noqa: ARG002  # its interface
        described = " ".join(str(element.get("alt") or "").split())
        return f"[image: {described}]" if described else ""


def _plain(page: BeautifulSoup) -> str:
    for picture in page.find_all("img"):
        picture.replace_with(str(picture.get("alt") or ""))
    for cell in page.find_all(["td", "th", "dt", "option"]):
        cell.insert_after(" ")
    for block in page.find_all(list(_BLOCKS)):
        block.insert_before("\n")
        block.insert_after("\n")
    return "\n".join(" ".join(line.split()) for line in page.get_text().split("\n"))


def _absolute(page: BeautifulSoup, address: str) -> list[Link]:
    """Make the page's links absolute, take out those that lead to no address, and return each address once."""
    links: dict[str, Link] = {}
    for anchor in page.find_all("a"):
        target = _target(anchor, address)
        if target is None:
            anchor.unwrap()
            continue
        anchor.attrs = {"href": target}
        pictures = (str(picture.get("alt") or "") for picture in anchor.find_all("img"))
        text, _ = _seen(" ".join(" ".join([anchor.get_text(), *pictures]).split()))
        if text:
            links.setdefault(target, {"text": text[:300], "url": target})
    return list(links.values())


def _target(anchor: Tag, address: str) -> str | None:
    href = anchor.get("href")
    try:
        target = urljoin(address, str(href).strip()) if href else ""
        return target if urlsplit(target).scheme in ("http", "https", "mailto") and len(target) <= 2000 else None
    except ValueError:
        return None


def _seen(text: str) -> tuple[str, int]:
    """Return `text` without characters that show nothing, and whether there were any but soft hyphens and the like.

    Joiners are left for the gateway, which knows where they are ordinary writing.
    """
    kept, dropped = [], 0
    for character in text:
        category = unicodedata.category(character)
        if category in ("Cf", "Co", "Cn", "Cs") and character not in _JOINERS:
            dropped += character not in "\xad\u200b\ufeff\u2060"
        elif category != "Cc" or character in "\n\t":
            kept.append(character)
    return "".join(kept), int(bool(dropped))


def _tidy(text: str) -> str:
    return _BLANK_LINES.sub("\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip()
