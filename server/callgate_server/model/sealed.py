"""A secret value that cannot be printed, logged, compared by accident or serialised.

`reveal()` is the one way to the bytes, so that `grep -rn "reveal()"` lists every place that sees a secret.
"""

from typing import Final, NoReturn, final


@final
class Sealed:
    """Bytes of a secret.

    Example:
        >>> Sealed(b"hunter2")
        Sealed(***)
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value: Final = value

    def reveal(self) -> bytes:
        return self._value

    def __repr__(self) -> str:
        return "Sealed(***)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a sealed value cannot be serialised")

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("sealed values are not compared; reveal() them and use hmac.compare_digest")

    __hash__ = None  # type: ignore[assignment]  # unhashable on purpose: a hash would be a fingerprint
