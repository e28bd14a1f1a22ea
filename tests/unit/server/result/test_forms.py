import base64
import html
import json
import subprocess
import sys
from urllib.parse import quote, quote_plus

import pytest

from callgate_server.result.forms import forms

TEXT = "p@ss/wörd+<k&y>'\"=\\1"
SECRET = TEXT.encode()
HEX = SECRET.hex()
UNITS = TEXT.encode("utf-16-be")
LONG = bytes(range(33, 127))


@pytest.mark.parametrize(
    "encoded",
    [
        TEXT,
        base64.b64encode(SECRET).decode(),
        base64.b64encode(SECRET).decode().rstrip("="),
        base64.urlsafe_b64encode(SECRET).decode(),
        base64.urlsafe_b64encode(SECRET).decode().rstrip("="),
        HEX,
        HEX.upper(),
        SECRET.hex(":"),
        SECRET.hex(" ").upper(),
        "".join(f"\\x{byte:02x}" for byte in SECRET),
        "".join(f"\\x{byte:02X}" for byte in SECRET),
        ", ".join(f"0x{byte:02x}" for byte in SECRET).removeprefix("0x"),
        quote(TEXT),
        quote(TEXT, safe=""),
        quote_plus(TEXT),
        quote(TEXT, safe="!'()*"),
        "".join(f"%{byte:02X}" for byte in SECRET),
        "".join(f"%{byte:02x}" for byte in SECRET),
        json.dumps(TEXT)[1:-1],
        json.dumps(TEXT, ensure_ascii=False)[1:-1],
        json.dumps(json.dumps(TEXT)[1:-1])[1:-1],
        "".join(f"\\u{UNITS[at : at + 2].hex()}" for at in range(0, len(UNITS), 2)),
        "".join(f"\\u{UNITS[at : at + 2].hex().upper()}" for at in range(0, len(UNITS), 2)),
        repr(SECRET)[2:-1],
        repr(TEXT)[1:-1],
        ascii(TEXT)[1:-1],
        html.escape(TEXT),
        html.escape(TEXT, quote=False),
        "".join(f"&#{ord(character)};" for character in TEXT),
        "".join(f"&#x{ord(character):x};" for character in TEXT),
        TEXT[::-1],
    ],
)
def test_an_encoding_of_the_table_is_a_form(encoded: str) -> None:
    assert encoded.encode() in forms(SECRET)


@pytest.mark.parametrize("before", [b"", b"a", b"ab", b"abc", b"abcd"])
@pytest.mark.parametrize("after", [b"", b"y", b"yz", b"yzz"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_is_found_at_every_alignment_between_any_neighbours(before: bytes, after: bytes, encode) -> None:
    secret = b"hvs.CAESIJ?~~>8kx"
    encoded = encode(before + secret + after)
    longest = max((form for form in forms(secret) if form in encoded), key=len)
    # What is left holds at most the bits that share a character with a neighbour.
    assert len(longest) >= 8 * len(secret) // 6 - 1


@pytest.mark.parametrize(
    ("encoded", "columns"),
    [(base64.b64encode(LONG), 64), (base64.b64encode(LONG), 76), (LONG.hex().encode(), 60)],
    ids=["openssl", "base64", "xxd"],
)
def test_a_long_secret_is_found_as_common_programs_wrap_it(encoded: bytes, columns: int) -> None:
    assert b"\n".join(encoded[at : at + columns] for at in range(0, len(encoded), columns)) in forms(LONG)


def test_the_wrapping_of_base64_is_that_of_the_real_program() -> None:
    printed = subprocess.run(["base64"], input=LONG, capture_output=True, check=True).stdout
    assert printed.strip() in forms(LONG)


def test_each_line_of_a_secret_of_several_lines_is_found_but_no_pem_border() -> None:
    key = b"-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkq\nshort\nhkiG9w0BAQEFAASC\r\n-----END PRIVATE KEY-----\n"
    found = forms(key)
    assert {b"MIIEvQIBADANBgkq", b"hkiG9w0BAQEFAASC", key, key.strip()} <= found
    assert {b"short", b"-----BEGIN PRIVATE KEY-----", b"-----END PRIVATE KEY-----"}.isdisjoint(found)


def test_a_secret_is_found_without_the_newline_its_file_ends_with() -> None:
    assert b"correct horse" in forms(b"correct horse\n")


def test_bytes_that_are_no_text_have_forms() -> None:
    secret = b"\xff\xfe\x00\x80binary\x01"
    assert {secret, secret.hex().encode(), base64.b64encode(secret), repr(secret)[2:-1].encode()} <= forms(secret)


@pytest.mark.parametrize("secret", [b"", b" \n\t"])
def test_an_empty_secret_is_refused(secret: bytes) -> None:
    with pytest.raises(ValueError, match="empty"):
        forms(secret)


def test_no_form_is_short_enough_to_redact_ordinary_text() -> None:
    assert min(map(len, forms(b"8 bytes!"))) >= 8


def test_a_large_key_has_forms_of_bounded_size() -> None:
    key = b"\n".join(base64.b64encode(bytes([line]) * 48) for line in range(50))
    assert sum(map(len, forms(key))) < 100 * len(key)
    assert sys.getsizeof(forms(key)) < 1 << 20
