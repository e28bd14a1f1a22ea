import contextlib
import json
import logging
from pathlib import Path

import pytest

from callgate_server.backends.telemetry import Reading, Telemetry
from callgate_server.model.answer import Usage
from callgate_server.model.errors import Reason
from callgate_server.model.lifecycle import State

CANARY = "sk-test-0123456789abcdefghijklmnopqrstuvwxyz"


def test_an_unexpected_error_is_logged_by_type_and_place_and_never_by_text_even_at_debug(
    capsys: pytest.CaptureFixture[str],
) -> None:
    telemetry = Telemetry("debug")
    try:
        raise RuntimeError(f"it had {CANARY}")
    except RuntimeError as error:
        telemetry.unexpected("call-1", error)
    line = json.loads(capsys.readouterr().err)
    assert line["type"] == "RuntimeError"
    assert line["call_id"] == "call-1"
    assert any("test_telemetry.py" in where for where in line["where"])
    assert CANARY not in json.dumps(line)


def test_a_line_that_cannot_be_written_is_lost_and_counted_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr("sys.stderr", full)
        telemetry = Telemetry("info")
        monkeypatch.undo()
        telemetry.take_over_logging()
        logging.getLogger("callgate_server.anything").warning("no room")
        telemetry.started("call-1", "python.run", "box")
        with contextlib.suppress(OSError):
            full.close()
        telemetry.started("call-2", "python.run", "box")
    assert "callgate_log_lines_lost_total 3.0" in telemetry.metrics().decode()


def test_refusals_calls_and_phases_are_counted() -> None:
    telemetry = Telemetry("error")
    telemetry.refused("shell.run", Reason.POLICY_DENIED, {"admission": 0.5, "record": 1.0})
    telemetry.finished("python.run", State.SUCCEEDED, Usage(phases_ms={"run": 3.0}), {"run": 3.0, "record": 1.5})
    telemetry.gauge("running_calls", "Calls in progress", lambda: 7)
    text = telemetry.metrics().decode()
    assert 'callgate_refusals_total{reason="policy_denied",tool="shell.run"} 1.0' in text
    assert 'callgate_calls_total{state="succeeded",tool="python.run"} 1.0' in text
    assert 'callgate_phase_ms_count{phase="run"} 1.0' in text
    assert 'callgate_phase_ms_count{phase="admission"} 1.0' in text
    assert 'callgate_phase_ms_sum{phase="record"} 2.5' in text
    assert "callgate_running_calls 7.0" in text


def test_what_calls_reach_is_counted_without_saying_where() -> None:
    telemetry = Telemetry("error")
    telemetry.egress("web.fetch", "egress_allowed", {"host": "api.example.com"})
    telemetry.egress("web.fetch", "egress_refused", {"host": "evil.example", "why": "no_rule"})
    telemetry.egress("web.fetch", "egress_closed", {"host": "api.example.com", "sent_bytes": 3, "received_bytes": 40})
    telemetry.egress("web.fetch", "egress_something", {"host": "api.example.com"})
    text = telemetry.metrics().decode()
    assert 'callgate_egress_allowed_total{tool="web.fetch"} 1.0' in text
    assert 'callgate_egress_refused_total{tool="web.fetch",why="no_rule"} 1.0' in text
    assert 'callgate_egress_bytes_total{direction="sent",tool="web.fetch"} 3.0' in text
    assert 'callgate_egress_bytes_total{direction="received",tool="web.fetch"} 40.0' in text
    assert "example" not in text


def test_figures_that_are_kept_elsewhere_are_read_with_the_metrics() -> None:
    telemetry = Telemetry("error")
    ready = {"one": 1.0}
    telemetry.readings(
        lambda: [
            Reading("gauge", "pool_ready", "Ready", ready, "shape"),
            Reading("gauge", "pool_waiting", "Waiting", {"": 3}),
            Reading("counter", "pool_deaths", "Deaths", {"": 2}),
        ]
    )
    ready["two"] = 2.0
    text = telemetry.metrics().decode()
    assert 'callgate_pool_ready{shape="one"} 1.0' in text
    assert 'callgate_pool_ready{shape="two"} 2.0' in text
    assert "callgate_pool_waiting 3.0" in text
    assert "callgate_pool_deaths_total 2.0" in text


def test_the_log_ties_a_call_to_its_sandbox(capsys: pytest.CaptureFixture[str]) -> None:
    Telemetry("info").started("call-1", "python.run", "c0ffee")
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["call_id"], line["sandbox"]) == ("started", "call-1", "c0ffee")


def test_the_level_silences_what_is_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry = Telemetry("warning")
    telemetry.info("quiet")
    telemetry.warning("loud")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["loud"]


def test_policy_alarms_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry = Telemetry("error")
    telemetry.policy_alarm("policy no-rm")
    assert "callgate_policy_alarms_total 1.0" in telemetry.metrics().decode()
    assert "no-rm" in capsys.readouterr().err


def test_policies_that_were_not_taken_up_are_no_refused_call(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry = Telemetry("error")
    telemetry.policies_refused("v1", "a.cedar:1: typo")
    line = json.loads(capsys.readouterr().err)
    assert (line["live"], line["detail"]) == ("v1", "a.cedar:1: typo")
    assert "refused" not in line["event"]
    text = telemetry.metrics().decode()
    assert "callgate_policy_sets_refused_total 1.0" in text
    assert "callgate_policy_alarms_total 0.0" in text


def test_what_a_module_calls_an_error_is_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    Telemetry("info").take_over_logging()
    logging.getLogger("callgate_server.x").error("every key is refused")
    logging.getLogger("callgate_server.x").warning("one is")
    assert [json.loads(line)["level"] for line in capsys.readouterr().err.splitlines()] == ["error", "warning"]


def test_what_libraries_say_is_taken_over_without_what_they_filled_in(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    Telemetry("info").take_over_logging()
    logging.getLogger("some.library").warning("could not send %s", CANARY)
    logging.getLogger("some.library").info("chatter")
    try:
        raise ValueError(CANARY)
    except ValueError:
        logging.getLogger("asyncio").exception("task failed")
    logging.getLogger("callgate_server.x").warning("a new ledger at %s", "here")
    said = capsys.readouterr().err
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line["event"] for line in lines] == ["could not send %s", "task failed", "a new ledger at here"]
    assert lines[1]["type"] == "ValueError"
    assert CANARY not in said


def test_a_breaker_that_opens_is_a_warning_and_one_that_closes_is_news(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry = Telemetry("debug")
    telemetry.breaker_changed("engine", "closed", "open", "failures")
    telemetry.breaker_changed("engine", "half_open", "closed", "recovered")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["level"], line["breaker"], line["after"], line["why"]) for line in lines] == [
        ("warning", "engine", "open", "failures"),
        ("info", "engine", "closed", "recovered"),
    ]


def test_retries_and_fallbacks_are_counted() -> None:
    telemetry = Telemetry("error")
    telemetry.retried("web.fetch", Reason.TOOL_UNAVAILABLE)
    telemetry.fell_back("web.fetch", "constant", Reason.SANDBOX_LOST)
    text = telemetry.metrics().decode()
    assert 'callgate_retries_total{reason="tool_unavailable",tool="web.fetch"} 1.0' in text
    assert 'callgate_fallbacks_total{kind="constant",reason="sandbox_lost",tool="web.fetch"} 1.0' in text


def test_every_request_is_counted_and_those_that_were_refused_are_logged(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry = Telemetry("info")
    for transport, route, status in (
        *(("http", "/v1/tools", "200"), ("http", "/v1/tools", "499"), ("grpc", "/x.Y/Call", "CANCELLED")),
        *(("grpc", "/x.Y/Call", "OK"), ("grpc", "/x.Y/Call", "NOT_FOUND"), ("http", "/v1/tasks", "403")),
    ):
        telemetry.requested(transport, route, status, "acme/bot", 1.5)
    text = telemetry.metrics().decode()
    assert 'callgate_requests_total{route="/v1/tools",status="200",transport="http"} 1.0' in text
    assert 'callgate_requests_total{route="/x.Y/Call",status="NOT_FOUND",transport="grpc"} 1.0' in text
    assert "bot" not in text
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["route"], line["status"], line["caller"]) for line in lines] == [
        ("request refused", "/x.Y/Call", "NOT_FOUND", "acme/bot"),
        ("request refused", "/v1/tasks", "403", "acme/bot"),
    ]


def test_no_stranger_fills_the_log_or_hides_another_caller(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry = Telemetry("info")
    for _ in range(1000):
        telemetry.refused("", Reason.UNAUTHENTICATED, {})
        telemetry.requested("http", "/v1/tools", "401", "", 0.1)
    telemetry.requested("http", "/v1/tools", "403", "acme/bot", 0.1)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert len(lines) == 11
    assert lines[-1]["caller"] == "acme/bot"
    text = telemetry.metrics().decode()
    assert 'callgate_refusals_total{reason="unauthenticated",tool=""} 1000.0' in text
    assert 'callgate_requests_total{route="/v1/tools",status="401",transport="http"} 1000.0' in text
