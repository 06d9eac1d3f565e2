"""How near to each other a question's words stand in a text: what the best window of some words side by side has of them. Pure.

After T. Tao and C. Zhai, "An exploration of proximity measures in information retrieval", 2007.
"""

from collections.abc import Sequence

import numpy as np

from service.core.search.bm25 import Codes, Ids, Numbers, located

WINDOW = 8  # words side by side; those of grammar are none
NOWHERE = -1
_INSIDE = np.arange(WINDOW)
_BEYOND = np.full(WINDOW, 1 << 62)


def gathered(asked: Codes, worth: Sequence[float], chunks: Sequence[Codes]) -> Numbers:
    """The most that any window has of what the words asked for are worth, each counted once, of each chunk.

    A chunk is the numbers of its words, in order.
    """
    most = np.zeros(len(chunks))
    places, rows, terms = located(asked, chunks)
    if not len(places):
        return most
    # One window begins at each word that was found, and those found next stand in it, or behind it: the first of the next chunk surely.
    begins = np.arange(len(places))[:, None]
    inside = begins + _INSIDE
    places = np.concatenate([places + rows * WINDOW, _BEYOND])
    new = np.concatenate([_before(terms), _INSIDE])[inside] < begins
    value = np.concatenate([np.asarray(worth)[terms], np.zeros(WINDOW)])[inside]
    sums = (value * (new & (places[inside] < places[: len(terms), None] + WINDOW))).sum(axis=1)
    firsts = np.concatenate([[0], np.flatnonzero(rows[1:] != rows[:-1]) + 1])
    most[rows[firsts]] = np.maximum.reduceat(sums, firsts)
    return most


def _before(terms: Ids) -> Ids:
    """Which of these is the last before each that is the same."""
    order = np.argsort(terms, kind="stable")
    before = np.full(len(terms), NOWHERE)
    before[order[1:]] = np.where(terms[order[1:]] == terms[order[:-1]], order[:-1], NOWHERE)
    return before
