from ipaddress import ip_address
from urllib.parse import quote, unquote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from callgate_server.execution.egress_names import (
    host_matches,
    is_certain,
    loosest_path,
    path_matches,
    plain_authority,
    plain_host,
    plain_path,
    split_absolute,
)


def refused(read, *written):
    try:
        read(*written)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("API.Example.COM", "api.example.com"),
        ("api.example.com.", "api.example.com"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("[::1]", "::1"),
        ("[2001:DB8:0::1]", "2001:db8::1"),
        ("[::ffff:127.0.0.1]", "::ffff:7f00:1"),
        ("localhost.", "localhost"),
    ],
)
def test_a_host_has_one_form(written, plain):
    assert plain_host(written) == plain


@pytest.mark.parametrize(
    "written",
    [
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "127.0.0.0x1",
        "127.0.0.01",
        "127.0.0.256",
        "0x",
        "example.0",
        "::1",
        "[::1",
        "::1]",
        "[fe80::1%eth0]",
        "[fe80::1%25eth0]",
        "[127.0.0.1]",
        "[]",
        "",
        ".",
        "a..b",
        ".a",
        "a..",
        "-a.example",
        "a-.example",
        "under_score.example",
        "user@example.com",
        "user:pw@example.com",
        "example.com:80",
        "example.com/",
        "example.com#",
        "example.com%2e",
        "127%2e0.0.1",
        "exam ple.com",
        "example.com\x00",
        "example.com\n",
        "example\u3002com",
        "１２７.0.0.1",
        "ⓔxample.com",
        "bücher.example",
        "*.example.com",
        "a" * 64,
        ".".join(["a" * 60] * 5),
    ],
)
def test_a_host_that_can_be_read_in_two_ways_is_refused(written):
    assert refused(plain_host, written)


@given(st.text(max_size=40))
def test_what_is_accepted_as_a_host_stays_as_it_is(text):
    try:
        plain = plain_host(text)
    except ValueError:
        return
    assert plain.isascii()
    assert plain == plain.lower()
    assert plain_host(f"[{plain}]" if ":" in plain else plain) == plain


@given(st.lists(st.integers(0, 0xFFFFFFFF), min_size=1, max_size=4), st.sampled_from(["{}", "0{:o}", "{:#x}"]))
def test_no_number_but_a_dotted_quad_is_a_host(parts, style):
    text = ".".join(style.format(part) for part in parts)
    try:
        plain = plain_host(text)
    except ValueError:
        return
    assert str(ip_address(text.removesuffix("."))) == plain


@pytest.mark.parametrize(
    ("written", "default", "expected"),
    [
        ("example.com:443", None, ("example.com", 443)),
        ("EXAMPLE.com", 80, ("example.com", 80)),
        ("[::1]:8080", None, ("::1", 8080)),
        ("10.0.0.1:1", 80, ("10.0.0.1", 1)),
    ],
)
def test_an_authority_is_a_host_and_a_port(written, default, expected):
    assert plain_authority(written, default) == expected


@pytest.mark.parametrize(
    "written",
    [
        "example.com",
        "example.com:",
        "example.com:0",
        "example.com:65536",
        "example.com:123456",
        "example.com:+80",
        "example.com:80:80",
        "example.com: 80",
        "user@example.com:443",
        "a:b@example.com:443",
        "::1:443",
        ":443",
        "example.com:80/path",
    ],
)
def test_an_authority_without_a_certain_host_and_port_is_refused(written):
    assert refused(plain_authority, written, None)


def test_an_absolute_target_is_split():
    assert split_absolute("http://example.com/a?b=c") == ("example.com", "/a?b=c")
    assert split_absolute("HTTP://example.com:8080") == ("example.com:8080", "/")
    assert split_absolute("http://example.com?x=1") == ("example.com", "/?x=1")


@pytest.mark.parametrize(
    "target", ["https://example.com/", "http:/a", "http:///a", "/a", "*", "http://a/b#c", "ftp://a/"]
)
def test_a_target_that_is_not_absolute_is_refused(target):
    assert refused(split_absolute, target)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("/v1/items?x=/../y", "/v1/items"),
        ("/%61dmin", "/admin"),
        ("/a%20b", "/a b"),
        ("/g%2fp", "/g%2Fp"),
        ("/a%2525", "/a%2525"),
        ("/a%252e", "/a%252e"),
        ("/b%C3%BCcher", "/bücher"),
        ("/a...b/..c/c..", "/a...b/..c/c.."),
    ],
)
def test_a_path_is_decoded_once(target, path):
    assert plain_path(target) == path


@pytest.mark.parametrize(
    "target",
    [
        "",
        "a",
        "*",
        "?x",
        "/a#b",
        "/a/../b",
        "/a/./b",
        "/..",
        "/%2e%2e/b",
        "/.%2E/b",
        "/a/..;x/b",
        "/a%2f..%2fb",
        "/a%2F%2e%2e/b",
        "/a\\b",
        "/a%5cb",
        "/a%00",
        "/a%0d%0a",
        "/a%7f",
        "/a%C2%85",
        "/a%",
        "/a%2",
        "/a%zz",
        "/a%ff",
        "/a%c0%ae",
        "/ü",
    ],
)
def test_a_path_that_upstreams_read_differently_is_refused(target):
    assert refused(plain_path, target)


@given(st.text(alphabet=st.characters(codec="ascii", min_codepoint=32), max_size=30))
def test_a_path_means_what_a_plain_decoder_makes_of_it(text):
    target = "/" + quote(text, safe="/;")
    try:
        path = plain_path(target)
    except ValueError:
        return
    assert path.replace("%2F", "/").replace("%25", "%") == unquote(target)
    if is_certain(path):
        assert path == unquote(target)
        assert not {".", "..", ""} & set(path.split("/")[1:-1])


@pytest.mark.parametrize("path", ["/a%2Fb", "/a%25", "/a//b", "//", "/a;b", "/bücher", "/a?b", "/a#"])
def test_a_path_that_may_mean_another_meets_no_condition(path):
    assert not is_certain(path)


@pytest.mark.parametrize("path", ["/", "/a", "/a/", "/a b", "/a~b/@c:d", "/..."])
def test_a_plain_path_is_certain(path):
    assert is_certain(path)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("/", "/"),
        ("/v1", "/v1"),
        ("/*", "/"),
        ("/*", "/a/b"),
        ("/v1/*", "/v1/"),
        ("/v1/*", "/v1/a"),
        ("/v1/*", "/v1/a/b/"),
        ("/v1/*/items", "/v1/a/items"),
        ("/v1/*/items/*", "/v1/a/items/b/c"),
    ],
)
def test_a_path_meets_its_pattern(pattern, path):
    assert path_matches(pattern, path)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("/", "/a"),
        ("/v1", "/v1/"),
        ("/v1", "/v12"),
        ("/v1", "/V1"),
        ("/v1/*", "/v1"),
        ("/v1/*", "/v10/a"),
        ("/v1/*/items", "/v1//items"),
        ("/v1/*/items", "/v1/a/b/items"),
        ("/v1/*/items", "/v1/a/items/"),
        ("/v1/*/items/*", "/v1/a/items"),
        ("/v1/a*", "/v1/ab"),
    ],
)
def test_another_path_does_not(pattern, path):
    assert not path_matches(pattern, path)


@given(st.text(alphabet="ab/", max_size=8))
def test_a_path_without_a_star_meets_exactly_itself(text):
    path = "/" + text
    assert path_matches(path, path)
    assert not path_matches(path, path + "c")


def test_a_wildcard_stands_for_one_label():
    assert host_matches("*.example.com", "api.example.com")
    assert not host_matches("*.example.com", "example.com")
    assert not host_matches("*.example.com", "a.b.example.com")
    assert not host_matches("*.example.com", "api.example.com.evil.test")
    assert not host_matches("*.example.com", "apiexample.com")
    assert not host_matches("*.example.com", ".example.com")


@given(st.ip_addresses(v=4))
def test_a_wildcard_never_stands_for_a_part_of_an_address(address):
    text = str(address)
    assert not host_matches("*." + text.partition(".")[2], text)


@given(st.from_regex(r"[a-z][a-z0-9]{0,8}(\.[a-z]{1,5}){0,3}", fullmatch=True), st.text(max_size=5))
def test_an_exact_host_matches_itself_alone(host, other):
    assume(other)
    assert host_matches(host, host)
    assert not host_matches(host, host + other)


@pytest.mark.parametrize(
    ("path", "read"),
    [
        ("/a/b", "/a/b"),
        ("/a/", "/a/"),
        ("/", "/"),
        ("//a///b", "/a/b"),
        ("/x;y=1/../b;z", "/b"),
        ("/a%2F..%2F..%2Fb/", "/b/"),
        ("/%25252561", "/a"),
        ("/a%3Fb", "/a"),
        ("/a%5Cb", "/a/b"),
        ("/\uff41\uff0fb", "/a/b"),
    ],
)
def test_the_loosest_reading_of_a_path_is_what_is_left_of_it_in_the_end(path, read):
    assert loosest_path(path) == read


def test_escapes_that_hide_escapes_without_end_have_no_reading():
    assert refused(loosest_path, "/%" + "25" * 20000)


SEGMENTS = st.text(alphabet="ab.2-~", min_size=1, max_size=6).filter(lambda text: text not in (".", ".."))


@given(st.lists(SEGMENTS, max_size=5), st.booleans())
def test_a_certain_path_has_one_reading(segments, ends_in_slash):
    path = "/" + "/".join(segments) + ("/" if segments and ends_in_slash else "")
    assert is_certain(path)
    assert loosest_path(path) == path
