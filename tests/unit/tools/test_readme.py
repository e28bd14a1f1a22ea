"""The example of the tool authors' guide is a tool that builds."""

import re
from collections.abc import Mapping
from pathlib import Path

from callgate_server.backends.catalog.build import build
from callgate_server.backends.json_schema import check_constant, check_schema
from support.tools import SANDBOX_IMAGES, call


class Digests:
    def build(self, folders: Mapping[str, Path], progress: object) -> dict[str, str]:
        return dict.fromkeys(folders, "sha256:" + "0" * 64)


def blocks() -> dict[str, str]:
    """The code of the guide by language; the last of each."""
    guide = (SANDBOX_IMAGES / "README.md").read_text("utf-8")
    return dict(re.findall(r"```(\w+)\n(.*?)```", guide, re.DOTALL))


def test_the_example_is_a_tool(tmp_path: Path) -> None:
    code = blocks()
    tools = tmp_path / "my_images/words/tools"
    tools.mkdir(parents=True)
    (tools.parent / "Dockerfile").write_text(code["dockerfile"])
    (tools / "words.py").write_text(code["python"])
    (tools / "words.count.yaml").write_text(code["yaml"])
    report = build(
        [SANDBOX_IMAGES, tmp_path / "my_images"],
        tmp_path / "catalog.lock",
        images=Digests(),
        check_schema=check_schema,
        check_constant=check_constant,
        write_schemas=True,
        progress=lambda line: None,
    )
    assert sorted(path.name for path in report.written) == [
        "words.count.input.schema.json",
        "words.count.output.schema.json",
    ]
    assert report.catalog is not None
    schema = report.catalog.tools["words.count"].manifest.input
    assert schema["required"] == ["text"]
    assert schema["properties"]["unique"] == {
        "type": "boolean",
        "description": "Count every word once.",
        "default": False,
    }


def test_the_example_does_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/words.py").write_text(blocks()["python"])
    ended = call("words:count", tmp_path, tmp_path, {"text": "a b a", "unique": True})
    assert ended.result == {"words": 2}
