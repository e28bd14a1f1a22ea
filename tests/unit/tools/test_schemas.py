"""What the schemas of the tools that come along promise is what a gateway with its usual settings takes."""

from collections.abc import Iterator
from typing import Any

import pytest

from callgate_server.backends.catalog.manifests import declarations, image_folders
from callgate_server.config import LimitSettings
from support.tools import SANDBOX_IMAGES

MANIFESTS = {each.path.stem: each.manifest() for each in declarations(image_folders([SANDBOX_IMAGES]).values())}
# For the rest of the request, at least.
ROOM_BYTES = 32 * 1024


def lengths(schema: Any) -> Iterator[int]:
    if isinstance(schema, dict):
        yield from (value for key, value in schema.items() if key == "maxLength" and isinstance(value, int))
        for value in schema.values():
            yield from lengths(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from lengths(value)


@pytest.mark.parametrize("tool", MANIFESTS)
def test_the_longest_text_of_an_argument_fits_into_a_request(tool: str) -> None:
    assert max(lengths(MANIFESTS[tool].input), default=0) + ROOM_BYTES <= LimitSettings().body_kb * 1024


@pytest.mark.parametrize(("tool", "field"), [("python.run", "files"), ("shell.run", "files"), ("shell.run", "stdin")])
def test_where_several_could_be_too_much_together_their_description_says_so(tool: str, field: str) -> None:
    assert "at most 1 MiB" in MANIFESTS[tool].input["properties"][field]["description"]
