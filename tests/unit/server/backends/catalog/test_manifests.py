"""Manifests: strict YAML, schemas from beside the file only, errors that say where."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from callgate_server.backends.catalog.manifests import MAX_BYTES, declarations, image_folders, load_yaml, read

MANIFEST = """\
tool: text.echo
version: 1.0.0
summary: Say it again.
image: words
run: {python: "echo:echo"}
input: {type: object, properties: {text: {type: string}}, required: [text], additionalProperties: false}
output: {type: string}
effect: read
"""


def yaml(folder: Path, text: str | bytes) -> Any:
    path = folder / "file.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_yaml(path)


def tools(folder: Path) -> Path:
    place = folder / "words" / "tools"
    place.mkdir(parents=True)
    (place.parent / "Dockerfile").write_text("FROM scratch\n")
    return place


def manifest(folder: Path, text: str, name: str = "text.echo.yaml") -> Path:
    path = tools(folder) / name
    path.write_text(text)
    return path


class TestYaml:
    def test_plain_scalars_are_what_json_would_make_of_them(self, tmp_path: Path) -> None:
        text = "a: 1\nb: -2.5\nc: true\nd: null\ne:\nf: text\ng: [1, {h: x}]\ni: ''\nj: '1'\nk: 1e3\n"
        assert yaml(tmp_path, text) == {
            "a": 1,
            "b": -2.5,
            "c": True,
            "d": None,
            "e": None,
            "f": "text",
            "g": [1, {"h": "x"}],
            "i": "",
            "j": "1",
            "k": 1000.0,
        }

    @pytest.mark.parametrize(
        "word", ["no", "Yes", "off", "True", "NULL", "010", "0x1f", "1_000", "1:30", ".inf", ".nan", "2020-01-01", "<<"]
    )
    def test_what_only_old_yaml_makes_something_else_of_is_text(self, tmp_path: Path, word: str) -> None:
        value = yaml(tmp_path, f"key: {word}")["key"]
        assert value == word
        assert not isinstance(value, bool | date)

    def test_a_key_is_text_even_if_it_looks_like_a_word_of_yaml(self, tmp_path: Path) -> None:
        assert yaml(tmp_path, "on: 1") == {"on": 1}

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("a: 1\nb: 2\na: 3\n", "line 3: the key `a` is given twice"),
            ("x:\n  - {a: 1, a: 1}\n", "line 2: the key `a` is given twice"),
            ("a: &x 1\nb: *x\n", "line 1: anchors"),
            ("a: 1\nb: *x\n", "line 2: anchors"),
            ("1: a\n", "line 1: a key must be text"),
            ("? [a]\n: b\n", "a key must be text"),
            ("null: a\n", "a key must be text"),
            ("a: !!python/object/apply:os.system ['id']\n", "tags are not accepted"),
            ("a: !!str 1\n", "tags are not accepted"),
            ("a: 1\n---\nb: 2\n", "line 2: but found another document"),
            ("a: [1\n", "line 2"),
            ("a: \x07\n", "not YAML"),
            (b"a: \xff\n", "not UTF-8"),
            ("[" * 2000 + "]" * 2000, "nested deeper than 32 levels"),
            ("a: " + "x" * MAX_BYTES, "larger than"),
        ],
    )
    def test_what_is_not_accepted_is_named_with_its_place(self, tmp_path: Path, text: str | bytes, says: str) -> None:
        with pytest.raises(ValueError, match=r"file\.yaml") as raised:
            yaml(tmp_path, text)
        assert says in str(raised.value)

    def test_an_empty_file_is_nothing(self, tmp_path: Path) -> None:
        assert yaml(tmp_path, "# only a comment\n") is None

    def test_a_missing_file_is_an_os_error(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            load_yaml(tmp_path / "none.yaml")


class TestManifest:
    def test_a_good_manifest_is_read(self, tmp_path: Path) -> None:
        found = read(manifest(tmp_path, MANIFEST)).manifest()
        assert (found.tool, found.image, found.effect) == ("text.echo", "words", "read")

    @pytest.mark.parametrize(
        ("old", "new", "says"),
        [
            ("effect: read", "effect: read\ncolour: red", "line 9: colour: Extra inputs"),
            ("effect: read", "effect: harmless", "line 8: effect: "),
            ("effect: read", "effect: read\nlimits:\n  wall_s: 0", "line 10: limits.wall_s: "),
            ("effect: read", "effect: read\negress: open", "line 9: egress: Input should be 'configured'"),
            ("effect: read", "effect: read\negress:\n  - {host: a.b}\n  - {host: '*.com'}", "line 11: egress.1.host: "),
            (
                "effect: read",
                "effect: read\negress:\n  - host: a.b\n    scheme: tcp\n    port: 25",
                "line 12: egress.0.port: no sandbox can listen on port 25: give a `local_port`",
            ),
            (
                "effect: read",
                "effect: read\negress:\n  - {host: a.b, secret: key}",
                "line 10: egress.0.secret: there is no secret key: declare it in `secrets`",
            ),
            (
                "effect: read",
                "effect: read\nisolation: fork\negress: [{host: a.b}]",
                "line 9: isolation: a tool with `egress` needs `isolation: container`",
            ),
            ("version: 1.0.0", "version: 1.0", "line 2: version: "),
            ("version: 1.0.0\n", "", "version: Field required"),
            ("additionalProperties: false", "minProperties: 1", "line 6: input: "),
            ("text.echo", "text.other", "line 1: tool: the file of text.other must be called text.other.yaml"),
            ("image: words", "image: python", "line 4: image: a manifest lies in the `tools` folder of its image"),
            ('{python: "echo:echo"}', "{command: [sh, -c]}", "line 5: run: "),
            ('{python: "echo:echo"}', "{command: [/proc/self/fd/7]}", "line 5: run: "),
        ],
    )
    def test_a_fault_is_named_with_line_and_key(self, tmp_path: Path, old: str, new: str, says: str) -> None:
        with pytest.raises(ValueError, match=r"text\.echo\.yaml") as raised:
            read(manifest(tmp_path, MANIFEST.replace(old, new))).manifest()
        assert says in str(raised.value)

    def test_a_manifest_is_a_mapping(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="a manifest is a mapping"):
            read(manifest(tmp_path, "- a\n"))


class TestReferences:
    def output(self, reference: str) -> str:
        return MANIFEST.replace("output: {type: string}", f"output: {reference}")

    def test_a_schema_may_be_a_file_beside_its_manifest(self, tmp_path: Path) -> None:
        path = manifest(tmp_path, self.output("{$ref: text.echo.output.schema.json}"))
        (path.parent / "text.echo.output.schema.json").write_text('{"type": "integer"}')
        assert read(path).manifest().output == {"type": "integer"}

    @pytest.mark.parametrize(
        "name",
        [
            *("../x.json", "/etc/x.json", "a/x.json", "..", "http://example.org/x.json", "file:///etc/passwd"),
            *("x.yaml", ".x.json", "x.json#/a", "", "a\\x.json"),
        ],
    )
    def test_anything_else_is_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ValueError, match=r"line 7: output\.\$ref: "):
            read(manifest(tmp_path, self.output(f"{{$ref: '{name}'}}"))).manifest()

    def test_a_reference_stands_alone(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="stands alone"):
            read(manifest(tmp_path, self.output("{$ref: x.json, type: string}"))).manifest()

    def test_a_link_out_of_the_folder_is_refused(self, tmp_path: Path) -> None:
        path = manifest(tmp_path, self.output("{$ref: x.json}"))
        (tmp_path / "secret.json").write_text('{"type": "integer"}')
        (path.parent / "x.json").symlink_to(tmp_path / "secret.json")
        with pytest.raises(ValueError, match="leads out of its folder"):
            read(path).manifest()

    def test_a_missing_file_says_what_to_run(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="callgated catalog build"):
            read(manifest(tmp_path, self.output("{$ref: x.json}"))).manifest()

    @pytest.mark.parametrize("text", ["[]", "{", '{"a": 1, "a": 2}', '{"minimum": NaN}'])
    def test_a_schema_file_is_strict_json(self, tmp_path: Path, text: str) -> None:
        path = manifest(tmp_path, self.output("{$ref: x.json}"))
        (path.parent / "x.json").write_text(text)
        with pytest.raises(ValueError, match=r"x\.json"):
            read(path).manifest()

    @pytest.mark.parametrize("keyword", ["$ref", "$dynamicRef", "$id"])
    @pytest.mark.parametrize("target", ["other.json", "http://example.org/s", "file:///etc/passwd", "//host/x"])
    def test_a_schema_points_nowhere_but_into_itself(self, tmp_path: Path, keyword: str, target: str) -> None:
        schema = f"{{type: array, items: {{allOf: [{{{keyword}: '{target}'}}]}}}}"
        with pytest.raises(ValueError, match=r"line 7: output\.items\.allOf\.0\."):
            read(manifest(tmp_path, self.output(schema))).manifest()

    def test_references_within_a_schema_stay(self, tmp_path: Path) -> None:
        schema = "{type: array, items: {$ref: '#/$defs/x'}, $defs: {x: {type: string}}}"
        found = read(manifest(tmp_path, self.output(schema))).manifest()
        assert found.output["items"] == {"$ref": "#/$defs/x"}

    def test_a_property_may_be_called_ref(self, tmp_path: Path) -> None:
        schema = "{type: object, properties: {$ref: {type: string}}}"
        assert read(manifest(tmp_path, self.output(schema))).manifest().output["properties"]["$ref"]


class TestFolders:
    def test_a_folder_with_a_dockerfile_is_an_image(self, tmp_path: Path) -> None:
        tools(tmp_path)
        (tmp_path / "notes").mkdir()
        assert image_folders([tmp_path]) == {"words": tmp_path / "words"}

    def test_two_images_of_one_name_are_refused(self, tmp_path: Path) -> None:
        for place in ("a", "b"):
            tools(tmp_path / place)
        with pytest.raises(ValueError, match="images of the same name"):
            image_folders([tmp_path / "a", tmp_path / "b"])

    def test_a_directory_without_images_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no folder with a Dockerfile"):
            image_folders([tmp_path])

    def test_every_manifest_of_an_image_is_found(self, tmp_path: Path) -> None:
        path = manifest(tmp_path, MANIFEST)
        path.with_name("text.again.yaml").write_text(MANIFEST)
        assert [found.path.name for found in declarations([tmp_path / "words"])] == [
            "text.again.yaml",
            "text.echo.yaml",
        ]
