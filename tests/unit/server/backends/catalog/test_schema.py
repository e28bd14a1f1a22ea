"""Schemas from type hints: exact or refused, and without running the tool's code."""

from pathlib import Path
from typing import Any

import pytest

from callgate_server.backends.catalog.schema import DIALECT, find_function, generate, text_of
from callgate_server.backends.json_schema import check_schema

PREFACE = "from typing import Annotated, Literal, NotRequired, Required, TypedDict\n"


def module(folder: Path, text: str) -> Path:
    path = folder / "tool.py"
    path.write_text(PREFACE + text)
    return path


def type_of(folder: Path, hint: str, preface: str = "") -> Any:
    schemas = generate(module(folder, f"{preface}\ndef f(x: {hint}) -> None: ..."), "f")
    check_schema(schemas.input)
    return schemas.input["properties"]["x"]


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        ("str", {"type": "string"}),
        ("int", {"type": "integer"}),
        ("float", {"type": "number"}),
        ("bool", {"type": "boolean"}),
        ("None", {"type": "null"}),
        ("Json", {}),
        ("Annotated[Json, 'Anything.']", {"description": "Anything."}),
        ("list[Json]", {"type": "array", "items": {}}),
        ("'str'", {"type": "string"}),
        ("list[int]", {"type": "array", "items": {"type": "integer"}}),
        (
            "dict[str, list[float]]",
            {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "number"}}},
        ),
        ("Literal['a', 'b']", {"type": "string", "enum": ["a", "b"]}),
        ("Literal[1, 'b', None]", {"enum": [1, "b", None]}),
        ("str | None", {"type": ["string", "null"]}),
        ("int | str | None", {"type": ["integer", "string", "null"]}),
        ("Literal['a'] | None", {"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "null"}]}),
        ("list[int] | None", {"type": ["array", "null"], "items": {"type": "integer"}}),
        ("list[int] | str", {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "string"}]}),
        ("Annotated[str, 'Why.', ('maxLength', 9)]", {"type": "string", "description": "Why.", "maxLength": 9}),
        ("Annotated[int, ('minimum', -1)] | None", {"type": ["integer", "null"], "minimum": -1}),
        ("typing.Literal['a']", {"type": "string", "enum": ["a"]}),
    ],
)
def test_a_type_has_its_schema(tmp_path: Path, hint: str, schema: dict[str, Any]) -> None:
    assert type_of(tmp_path, hint) == schema


def test_aliases_and_typed_dicts_of_the_module_are_followed(tmp_path: Path) -> None:
    preface = (
        "Name = Annotated[str, ('maxLength', 5)]\n"
        "class Point(TypedDict):\n    '''A place.\n\n    More.\n    '''\n    x: int\n    label: NotRequired[Name]\n"
        "class Loose(TypedDict, total=False):\n    a: Required[Point]\n    b: bool\n"
    )
    point = {
        "type": "object",
        "description": "A place.",
        "properties": {"x": {"type": "integer"}, "label": {"type": "string", "maxLength": 5}},
        "required": ["x"],
        "additionalProperties": False,
    }
    assert type_of(tmp_path, "list[Loose]", preface)["items"] == {
        "type": "object",
        "properties": {"a": point, "b": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }


def test_types_that_are_only_for_who_reads_them_are_followed(tmp_path: Path) -> None:
    preface = (
        "TYPE_CHECKING = False\nif TYPE_CHECKING:\n    Name = Annotated[str, ('maxLength', 5)]\n"
        "    class Point(TypedDict):\n        label: Name\nif False:\n    Other = str\n"
    )
    assert type_of(tmp_path, "Point", preface)["properties"] == {"label": {"type": "string", "maxLength": 5}}
    with pytest.raises(ValueError, match="Other"):
        type_of(tmp_path, "Other", preface)


@pytest.mark.parametrize(
    "hint",
    [
        *("object", "Any", "bytes", "list", "dict", "dict[int, str]", "tuple[int, int]", "set[str]", "Unknown"),
        *("Optional[str]", "list[int, str]", "Annotated[str, {'maxLength': 1}]", "Annotated[str, ('color', 'red')]"),
        *("Annotated[str, limit()]", "Literal[b'x']", "Literal[1e999]", "3", "Recursive", "Plain"),
    ],
)
def test_a_type_without_an_exact_schema_is_refused_with_its_line(tmp_path: Path, hint: str) -> None:
    preface = "class Recursive(TypedDict):\n    x: Recursive\nclass Plain: ...\n"
    with pytest.raises(ValueError, match=r"tool\.py: line \d+: "):
        type_of(tmp_path, hint, preface)


FUNCTION = '''
class Result(TypedDict):
    n: int

def f(a: str, b: int = 3, *, c: list[str] | None = None, secrets: dict[str, str]) -> Result:
    """Do the thing,
    at once.

    In more words.

    Args:
        a: The first,
            on two lines.
        b (int): The second: with a colon.

    Returns:
        What came
        of it.

    Raises:
        ValueError: never.
    """
'''


def test_a_function_has_its_schemas(tmp_path: Path) -> None:
    schemas = generate(module(tmp_path, FUNCTION), "f")
    assert schemas.input == {
        "$schema": DIALECT,
        "type": "object",
        "description": "Do the thing, at once.",
        "properties": {
            "a": {"type": "string", "description": "The first, on two lines."},
            "b": {"type": "integer", "description": "The second: with a colon.", "default": 3},
            "c": {"type": ["array", "null"], "items": {"type": "string"}, "default": None},
        },
        "required": ["a"],
        "additionalProperties": False,
    }
    assert schemas.output == {
        "$schema": DIALECT,
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
        "description": "What came of it.",
    }


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("def f(a) -> None: ...", "`a` has no type"),
        ("def f(a: str): ...", "say what the tool returns"),
        ("def f(*a: str) -> None: ...", "passed by name"),
        ("def f(**a: str) -> None: ...", "passed by name"),
        ("def f(a: str, /) -> None: ...", "passed by name"),
        ("def f(a: str = make()) -> None: ...", "not a literal"),
        ("async def f(a: str) -> None: ...", "no function `f`"),
        ("def g() -> None: ...", "no function `f`"),
        ("def f(:", "not Python"),
        ("def f(a: str) -> None:\n    '''X.\n\n    Args:\n        b: Not there.\n    '''", "describes b"),
    ],
)
def test_a_function_that_is_not_typed_is_refused(tmp_path: Path, function: str, says: str) -> None:
    with pytest.raises(ValueError, match=r"tool\.py") as raised:
        generate(module(tmp_path, function), "f")
    assert says in str(raised.value)


def test_a_tools_code_is_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = module(tmp_path, f"open({str(mark)!r}, 'w')\nraise SystemExit\ndef f() -> None: ...")
    assert generate(path, "f").input["properties"] == {}
    assert find_function(path, "f").name == "f"
    assert not mark.exists()


def test_the_text_of_a_schema_is_for_people_and_stable(tmp_path: Path) -> None:
    assert (
        text_of({"type": "string", "description": "Zürich"}) == '{\n  "type": "string",\n  "description": "Zürich"\n}\n'
    )
