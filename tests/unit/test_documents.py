"""Documents are claims: every file they name exists, and every command line they show is one the programs know."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from callgate.cli import app as callgate
from callgate_server.cli.main import app as callgated

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("server/adr/*.md")), ROOT / "sandbox_images/README.md"]
FOLDERS = (
    "tests|server|client|proto|deploy|sandbox_images|admission|transports|ledger|secrets|execution|result|backends"
)
PATHS = re.compile(rf"`((?:{FOLDERS})/[\w./*-]*(?:/|\.\w+))`")
LINKS = re.compile(r"\]\((?!http)([^)#]+)")
COMMANDS = re.compile(r"(?<!from)(?:^|[\s`$/])(callgated?)((?: [a-z-]+)+)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text()
    roots = (ROOT, ROOT / "server/callgate_server", document.parent)
    named = PATHS.findall(text) + LINKS.findall(text)
    missing = [name for name in named if not any(list(root.glob(name.rstrip("/"))) for root in roots)]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_that_a_document_shows_exists(document: Path) -> None:
    programs = {"callgate": get_command(callgate), "callgated": get_command(callgated)}
    for program, words in COMMANDS.findall(document.read_text()):
        command = programs[program]
        for word in words.split():
            known = getattr(command, "commands", None)
            if known is None:
                break
            assert word in known, f"{document.name}: `{program}{words}`: no command `{word}`"
            command = known[word]


def test_make_targets_named_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        named = set(re.findall(r"`make ([a-z-]+)`", document.read_text()))
        assert named <= targets, f"{document.name}: {named - targets}"
