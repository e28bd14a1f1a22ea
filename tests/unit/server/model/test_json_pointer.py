import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.model.json_pointer import escaped, shown, unescaped, visible


@given(st.text())
def test_what_was_escaped_comes_back_and_is_one_part(key: str) -> None:
    assert unescaped(escaped(key)) == key
    assert "/" not in escaped(key)


def test_a_key_in_a_message_is_escaped_as_in_a_pointer() -> None:
    assert (shown("a/b~c"), visible("a/b~c")) == ("a~1b~0c", "a/b~c")


@pytest.mark.parametrize("key", ["x" * 65, "é", "a\nb", "\x1b[31m"])
def test_a_key_that_is_long_or_no_plain_text_is_an_ellipsis(key: str) -> None:
    assert shown(key) == visible(key) == "…"
