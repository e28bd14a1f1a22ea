import pytest

from callgate._target import choose_tls, parse_target


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("127.0.0.1:9090", True),
        ("127.8.8.8:1", True),
        ("localhost:9090", True),
        ("LOCALHOST:9090", True),
        ("[::1]:9090", True),
        ("10.0.0.1:9090", False),
        ("gateway.example:65535", False),
        ("localhost.example:9090", False),
        ("127.0.0.1.example:9090", False),
        ("0.0.0.0:9090", False),
        ("0x7f.1:9090", False),
        ("2130706433:9090", False),
        ("[2001:db8::1]:9090", False),
        ("call_gate:9090", False),
    ],
)
def test_only_what_surely_stays_on_this_machine_is_loopback(text: str, loopback: bool) -> None:
    target = parse_target(text)
    assert target.loopback is loopback
    assert target.address == f"dns:///{text}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gateway",
        "gateway:",
        ":9090",
        "gateway:0",
        "gateway:65536",
        "gateway:9090/path",
        "http://gateway:9090",
        "dns://8.8.8.8/gateway:9090",
        "unix:/run/gateway.sock",
        "user@gateway:9090",
        "a b:9090",
        "::1:9090",
        "[zz]:9090",
        "[::1%eth0]:9090",
        "gate..way:9090",
        "gateway:9090\n",
        "a" * 64 + ":9090",
        ".".join(["a" * 60] * 5) + ":9090",
    ],
)
def test_anything_but_host_and_port_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the target"):
        parse_target(text)


@pytest.mark.parametrize(("target", "expected"), [("127.0.0.1:1", False), ("gateway.example:1", True)])
def test_tls_is_the_default_for_everything_but_loopback(target: str, expected: bool) -> None:
    assert choose_tls(parse_target(target), tls=None, roots=False, token=True, token_in_clear=False) is expected


def test_tls_on_loopback_is_used_if_asked_for() -> None:
    assert choose_tls(parse_target("127.0.0.1:1"), tls=True, roots=False, token=True, token_in_clear=False)


def test_a_token_crosses_a_network_in_clear_only_if_that_is_said() -> None:
    target = parse_target("gateway.example:1")
    with pytest.raises(ValueError, match="refusing to send a token in clear"):
        choose_tls(target, tls=False, roots=False, token=True, token_in_clear=False)
    assert choose_tls(target, tls=False, roots=False, token=True, token_in_clear=True) is False
    assert choose_tls(target, tls=False, roots=False, token=False, token_in_clear=False) is False
    # The permission does not switch encryption off.
    assert choose_tls(target, tls=None, roots=False, token=True, token_in_clear=True) is True


def test_roots_to_trust_mean_tls_and_are_not_left_unused() -> None:
    target = parse_target("127.0.0.1:1")
    assert choose_tls(target, tls=None, roots=True, token=True, token_in_clear=False)
    with pytest.raises(ValueError, match="roots to trust are for TLS"):
        choose_tls(target, tls=False, roots=True, token=False, token_in_clear=True)
