"""A schema must not make the gateway fetch or read anything: its engine would do both by default."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from callgate_server.backends.json_schema import CompiledSchemas, check_schema
from callgate_server.model.catalog import Catalog, Tool
from callgate_server.model.manifest import Manifest

CANARY = "CANARY-7719"


class HttpCanary:
    """A server on loopback that counts who comes, and answers with a schema that holds a secret."""

    def __init__(self) -> None:
        self.visits: list[str] = []
        canary = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                canary.visits.append(self.path)
                body = f'{{"const": "{CANARY}"}}'.encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/schema.json"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def http_canary() -> Iterator[HttpCanary]:
    canary = HttpCanary()
    yield canary
    canary.close()


@pytest.fixture
def file_canary(tmp_path: Path) -> str:
    path = tmp_path / "schema.json"
    path.write_text(f'{{"const": "{CANARY}"}}')
    return path.as_uri()


def ways_to_refer(target: str) -> list[dict[str, Any]]:
    return [
        {"$ref": target},
        {"properties": {"a": {"$ref": target}}},
        {"$defs": {"a": {"$ref": target}}},
        {"$id": target, "$ref": "#/$defs/a"},
        {"$schema": target},
        {"$dynamicRef": target},
        {"items": {"$id": target, "properties": {"a": {"$ref": "other.json"}}}},
        {"if": {"allOf": [{"not": {"$ref": target + "#/const"}}]}},
        {"unevaluatedProperties": {"$recursiveRef": target}},
        {"contentSchema": {"$ref": target}},
        {"dependencies": {"a": {"$ref": target}}},
        {"definitions": {"a": {"$ref": target}}},
    ]


def test_the_engine_alone_would_fetch(http_canary: HttpCanary) -> None:
    """The canary works: without our checks this engine visits it."""
    jsonschema_rs.Draft202012Validator({"$ref": http_canary.url})
    assert http_canary.visits == ["/schema.json"]


def test_no_schema_makes_the_gateway_fetch_over_http(http_canary: HttpCanary) -> None:
    for schema in ways_to_refer(http_canary.url):
        with pytest.raises(ValueError, match="at /") as caught:
            check_schema(schema)
        assert CANARY not in str(caught.value)
    assert http_canary.visits == []


def test_no_schema_makes_the_gateway_read_a_file(file_canary: str) -> None:
    for schema in ways_to_refer(file_canary):
        with pytest.raises(ValueError, match="at /") as caught:
            check_schema(schema)
        assert CANARY not in str(caught.value)


def test_a_catalog_with_a_remote_reference_is_refused(http_canary: HttpCanary) -> None:
    manifest = Manifest.model_validate(
        {
            "tool": "bad.tool",
            "version": "1.0.0",
            "summary": "A tool.",
            "image": "python",
            "run": {"python": "tool:run"},
            "input": {
                "type": "object",
                "additionalProperties": False,
                "properties": {"a": {"$ref": http_canary.url}},
            },
            "output": {"type": "object"},
            "effect": "read",
        }
    )
    with pytest.raises(ValueError, match=r"^the input schema of bad\.tool"):
        CompiledSchemas.of(Catalog.of(Tool.pin(manifest, "sha256:" + "0" * 64)))
    assert http_canary.visits == []
