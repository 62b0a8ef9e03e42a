from hypothesis import given
from hypothesis import strategies as st

from clipa.reduction.image import decoded_size
from clipa.reduction.text import truncate
from clipa.spec.inputs import ImageInput
from clipa.spec.tokens import kept_tokens

START, END = 49_406, 49_407
words = st.lists(st.integers(1, START - 1), max_size=60)


@given(words, st.integers(3, 40))
def test_row_has_the_length_and_both_marks(ids: list[int], tokens: int) -> None:
    row = truncate(ids, tokens, start=START, end=END)
    assert len(row) == tokens
    assert row[0] == START
    assert row.count(END) == 1
    kept = row[1 : row.index(END)]
    assert kept == ids[: tokens - 2]
    assert set(row[row.index(END) + 1 :]) <= {0}


@given(words, st.integers(3, 40))
def test_only_the_first_ids_matter(ids: list[int], tokens: int) -> None:
    assert truncate(ids, tokens, start=START, end=END) == truncate(ids[: tokens - 2], tokens, start=START, end=END)


@given(st.integers(1, 16), st.integers(1, 32))
def test_resized_image_has_the_tokens_of_the_budget(side: int, patch: int) -> None:
    image = ImageInput(size=side * patch)
    assert (decoded_size(image) // patch) ** 2 == kept_tokens(image, patch) == side**2
