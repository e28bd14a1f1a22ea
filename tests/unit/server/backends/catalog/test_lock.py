"""The lock: a gateway runs what was locked, or says what to run."""

import json
from pathlib import Path

import pytest

from callgate_server.backends.catalog.lock import Lock, load_catalog, read_lock, write_lock
from callgate_server.backends.catalog.manifests import declarations, image_folders

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
MANIFEST = """\
tool: {tool}
version: 1.0.0
summary: Say it again.
image: words
run: {{command: [/bin/cat], result: stdout}}
input: {{type: object, additionalProperties: false}}
output: {{type: object}}
effect: read
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    tools = tmp_path / "images" / "words" / "tools"
    tools.mkdir(parents=True)
    (tools.parent / "Dockerfile").write_text("ARG BASE\n")
    for tool in ("text.echo", "text.again"):
        (tools / f"{tool}.yaml").write_text(MANIFEST.format(tool=tool))
    return tmp_path / "images"


@pytest.fixture
def lock(images: Path, tmp_path: Path) -> Path:
    manifests = [found.manifest() for found in declarations(image_folders([images]).values())]
    path = tmp_path / "state" / "catalog.lock"
    write_lock(path, Lock.of(manifests, {"words": DIGEST}))
    return path


def test_what_was_locked_is_loaded(images: Path, lock: Path) -> None:
    catalog = load_catalog([images], lock)
    assert sorted(catalog.tools) == ["text.again", "text.echo"]
    assert {tool.image_digest for tool in catalog} == {DIGEST}


def test_equal_folders_and_lock_give_an_equal_catalog(images: Path, lock: Path) -> None:
    assert load_catalog([images], lock).digest == load_catalog([images], lock).digest


def test_a_changed_manifest_is_refused(images: Path, lock: Path) -> None:
    path = images / "words/tools/text.echo.yaml"
    path.write_text(path.read_text() + "limits: {wall_s: 3600}\n")
    with pytest.raises(ValueError, match=r"text\.echo is not what the catalog lock has.*callgated catalog build"):
        load_catalog([images], lock)


def test_a_comment_is_no_change(images: Path, lock: Path) -> None:
    path = images / "words/tools/text.echo.yaml"
    path.write_text("# why\n" + path.read_text())
    assert load_catalog([images], lock)


def test_a_tool_that_was_not_locked_is_refused(images: Path, lock: Path) -> None:
    (images / "words/tools/text.new.yaml").write_text(MANIFEST.format(tool="text.new"))
    with pytest.raises(ValueError, match=r"text\.new .*callgated catalog build"):
        load_catalog([images], lock)


def test_an_image_that_was_not_locked_is_refused(images: Path, lock: Path) -> None:
    document = json.loads(lock.read_text())
    document["images"] = {}
    lock.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"the image words of .* is not in the catalog lock: run"):
        load_catalog([images], lock)


def test_another_image_under_a_locked_tool_is_refused(images: Path, lock: Path) -> None:
    document = json.loads(lock.read_text())
    document["images"]["words"] = OTHER
    lock.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="is not what the catalog lock has"):
        load_catalog([images], lock)


def test_a_tool_taken_away_takes_nothing_else_with_it(images: Path, lock: Path) -> None:
    (images / "words/tools/text.echo.yaml").unlink()
    assert list(load_catalog([images], lock).tools) == ["text.again"]


def test_no_lock_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist: run `callgated catalog build`"):
        read_lock(tmp_path / "catalog.lock")


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"version": 2, "images": {}, "tools": {}}'),
        '{"version": 1, "images": {"words": "latest"}, "tools": {}}',
        '{"version": 1, "images": {}, "tools": {}, "more": 1}',
        '{"version": 1, "images": {}, "images": {}, "tools": {}}',
    ],
)
def test_what_is_not_a_lock_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "catalog.lock"
    path.write_text(text)
    with pytest.raises(ValueError, match="is not a catalog lock"):
        read_lock(path)


def test_a_lock_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "catalog.lock"
    for digest in (DIGEST, OTHER):
        write_lock(path, Lock({"words": digest}, {}))
        assert read_lock(path) == Lock({"words": digest}, {})
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "catalog.lock"
    path.mkdir()
    with pytest.raises(OSError, match=r"catalog\.lock"):
        write_lock(path, Lock({}, {}))
    assert list(tmp_path.iterdir()) == [path]
