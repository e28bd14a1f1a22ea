import pytest
import typer

from callgate import CallRefused, Failure, GatewayUnreachable
from callgate._cli.connection import REFUSED, UNREACHABLE, connected, screen_for, usage_errors
from callgate._cli.documents import Documents
from callgate._cli.screen import Screen
from support.fake_gateway import FakeGateway


def test_a_program_gets_documents_and_a_person_a_screen() -> None:
    assert isinstance(screen_for(True), Documents)
    assert type(screen_for(False)) is Screen


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CallRefused(Failure("stopped", "PERMISSION_DENIED", "No.")), REFUSED),
        (GatewayUnreachable("Nobody.", target="h:1"), UNREACHABLE),
    ],
)
def test_what_the_client_raises_is_shown_and_is_the_exit_status(
    commands: FakeGateway, capsys: pytest.CaptureFixture[str], error: Exception, status: int
) -> None:
    with pytest.raises(typer.Exit) as caught, connected(Screen(), None, None, None, False):
        raise error
    assert caught.value.exit_code == status
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [CallRefused(Failure("unauthenticated", "UNAUTHENTICATED", "No.")), GatewayUnreachable("Nobody.", target="h:1")],
)
def test_that_an_address_was_assumed_is_said_where_it_may_be_the_fault(
    commands: FakeGateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    with pytest.raises(typer.Exit), connected(Screen(), commands.target, None, None, False):
        raise error
    assert "--target" not in capsys.readouterr().err
    monkeypatch.delenv("CALLGATE_TARGET")
    with pytest.raises(typer.Exit), connected(Screen(), None, None, None, False):
        raise error
    assert "127.0.0.1:9090 is the default address, as none was given" in capsys.readouterr().err


def test_a_mistake_in_what_was_typed_is_one_of_usage() -> None:
    with pytest.raises(typer.BadParameter, match="wrong"), usage_errors():
        raise ValueError("wrong")
    with pytest.raises(typer.BadParameter, match="a file: No such file or directory"), usage_errors():
        raise FileNotFoundError(2, "No such file or directory", "a file")
