"""SLURM's short form of a list of hosts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipa.slurm.nodelist import expand


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("n1", ["n1"]),
        ("n[1-3,7],login", ["n1", "n2", "n3", "n7", "login"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("a-b[3]-ib,c", ["a-b3-ib", "c"]),
    ],
)
def test_expand(text: str, names: list[str]) -> None:
    assert expand(text) == names


@pytest.mark.parametrize("text", ["n[1-", "n]1[", "n[x-2]", "n[[1]]", "n[1-99999999]"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        expand(text)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8))
def test_every_number_comes_out(numbers: list[int]) -> None:
    assert expand(f"n[{','.join(map(str, numbers))}]") == [f"n{number}" for number in numbers]


@given(st.text("n1[]-,", max_size=20))
def test_any_text_is_a_list_or_a_value_error(text: str) -> None:
    try:
        assert isinstance(expand(text), list)
    except ValueError:
        pass
