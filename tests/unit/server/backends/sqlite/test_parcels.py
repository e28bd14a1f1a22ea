from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.backends.sqlite.parcels import seal, unseal
from callgate_server.ledger.store import Parcel
from callgate_server.model.sealed import Sealed

KEY = Sealed(b"k" * 32)
PARCEL = Parcel(b'{"amount":9007199254740993}', "sha256:tool", "known", 5000, "An invoice is due.")


@given(
    st.builds(
        Parcel,
        st.binary(max_size=200),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=80),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=32),
        st.none() | st.integers(1, 2**53),
        st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=500),
    )
)
def test_what_is_sealed_comes_back_as_it_was(parcel):
    assert unseal(KEY, "c1", seal(KEY, "c1", parcel)) == parcel


def test_what_is_sealed_shows_nothing_and_never_looks_the_same():
    first, second = seal(KEY, "c1", PARCEL), seal(KEY, "c1", PARCEL)
    assert first != second
    assert b"amount" not in first
    assert b"invoice" not in first


def test_a_parcel_of_another_call_does_not_open():
    with pytest.raises(ValueError, match="changed, or belongs to another call"):
        unseal(KEY, "c2", seal(KEY, "c1", PARCEL))


@pytest.mark.parametrize("place", [0, 11, 12, 40, -1])
def test_a_parcel_that_was_changed_does_not_open(place):
    sealed = bytearray(seal(KEY, "c1", PARCEL))
    sealed[place] ^= 1
    with pytest.raises(ValueError, match="changed"):
        unseal(KEY, "c1", bytes(sealed))


def test_another_key_does_not_open_it():
    with pytest.raises(ValueError, match="changed"):
        unseal(Sealed(b"x" * 32), "c1", seal(KEY, "c1", replace(PARCEL, purpose=None)))
