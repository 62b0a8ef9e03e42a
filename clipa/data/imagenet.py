"""ImageNet's class names, prompt templates and folder names, from the packages that publish them.

Names and templates are open_clip's `zero_shot_metadata.py` (OpenAI's prompt engineering notebook); WordNet ids and the
subsets of ImageNet-A and -R are timm's `data/_info`. CLIP_benchmark has the same lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from clipa.data.open_clip_file import open_clip_file, package_file
from clipa.errors import DataError
from clipa.spec.evalset import Names

_SYNSETS: dict[Names, str] = {
    "imagenet": "imagenet_synsets.txt",
    "imagenet-a": "imagenet_a_synsets.txt",
    "imagenet-r": "imagenet_r_synsets.txt",
}


class Classes(NamedTuple):
    """Class names and the WordNet ids of their folders, in the order of the labels."""

    names: tuple[str, ...]
    wnids: tuple[str, ...]


def templates(*, canonical: bool) -> tuple[str, ...]:
    """Return the prompt templates of zero-shot evaluation of ImageNet, with `{c}`: OpenAI's 80.

    If `canonical`, the 81 of CLIPA-v2's own evaluation (big_vision's `clip_paper`): the last is the class name alone.
    """
    published = open_clip_file("zero_shot_metadata.py").OPENAI_IMAGENET_TEMPLATES
    return (*(template("{c}") for template in published), *(["{c}"] if canonical else []))


@cache
def classes(names: Names) -> Classes:
    """The classes of ImageNet, or of the part of them that ImageNet-A or -R has."""
    every = tuple(_synsets("imagenet"))
    called = tuple(open_clip_file("zero_shot_metadata.py").IMAGENET_CLASSNAMES)
    name_of = dict(zip(every, called, strict=True))
    wnids = tuple(_synsets(names))
    return Classes(tuple(name_of[wnid] for wnid in wnids), wnids)


def folder_order(names: Names, found: Sequence[str], where: str) -> tuple[str, ...]:
    """The class folders in the order of the labels, named by WordNet id or (as ImageNet-V2) by class number.

    Sorted by name the numbers would stand in another order ("10" before "2"), and every score be wrong.

    Raises:
        DataError: the folders are not exactly those of these classes.
    """
    wanted = classes(names).wnids
    numbers = tuple(str(number) for number in range(len(wanted)))
    for order in (wanted, numbers):
        if set(found) == set(order):
            return order
    missing, odd = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    raise DataError(
        f"the class folders are not those of {names}: {len(missing)} missing ({', '.join(missing[:3])}), "
        f"{len(odd)} of no class ({', '.join(odd[:3])})",
        where=where,
        allowed=f"the {len(wanted)} WordNet ids {wanted[0]} to {wanted[-1]}, or 0..{len(wanted) - 1}",
    )


def _synsets(names: Names) -> list[str]:
    return package_file("timm", f"data/_info/{_SYNSETS[names]}").read_text().split()
