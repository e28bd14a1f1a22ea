import errno

import pytest

from callgate_runner.fault import describe


def described(error: BaseException) -> str:
    try:
        raise error
    except BaseException as raised:
        return describe(raised)


def test_the_kind_and_the_innermost_place_are_told_and_the_text_is_not() -> None:
    try:
        int("hunter2")
    except ValueError as error:
        said = describe(error)
    assert said.startswith("ValueError at ")
    assert "test_fault.py:" in said
    assert "hunter2" not in said


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSPC, errno.ENOSYS])
def test_an_error_of_the_kernel_is_told_by_its_name_and_without_its_file(number: int) -> None:
    said = described(OSError(number, "hunter2", "/run/secrets/hunter2"))
    assert f" {errno.errorcode[number]} at " in said
    assert "hunter2" not in said


@pytest.mark.parametrize("error", [OSError(), OSError("text"), OSError(99999, "text")])
def test_an_error_without_a_known_number_has_no_name(error: OSError) -> None:
    assert described(error).startswith("OSError at ")


def test_an_error_that_was_never_raised_has_no_place() -> None:
    assert describe(KeyError("hunter2")) == "KeyError at ?"
