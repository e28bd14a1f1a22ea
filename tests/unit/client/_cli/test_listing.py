import pytest
import typer
from typer.testing import CliRunner

from callgate._cli.listing import Listing

CALL_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
group = typer.Typer(cls=Listing)


@group.command("list")
def list_them(*, limit: int = 20, as_json: bool = typer.Option(False, "--json")) -> None:
    typer.echo(f"list {limit} {as_json}")


@group.command()
def show(*, one: str, as_json: bool = typer.Option(False, "--json")) -> None:
    typer.echo(f"show {one} {as_json}")


@pytest.mark.parametrize(
    ("words", "done"),
    [
        ([], "list 20 False"),
        (["--limit", "3"], "list 3 False"),
        (["list", "--json"], "list 20 True"),
        ([CALL_ID], f"show {CALL_ID} False"),
        ([f"task-{CALL_ID}", "--json"], f"show task-{CALL_ID} True"),
        (["--json", CALL_ID], f"show {CALL_ID} True"),
        (["show", "c1"], "show c1 False"),
    ],
)
def test_the_first_word_may_be_left_out(words: list[str], done: str) -> None:
    assert CliRunner().invoke(group, words).stdout == f"{done}\n"


@pytest.mark.parametrize("words", [["lits"], ["nope", CALL_ID], ["--nope"]])
def test_a_word_that_is_none_of_them_is_a_mistake(words: list[str]) -> None:
    assert CliRunner().invoke(group, words).exit_code == 2
