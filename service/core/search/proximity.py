"""Proximity: how much of a query the best window of adjacent words of a chunk contains.

After T. Tao and C. Zhai, "An exploration of proximity measures in information retrieval", 2007.
"""

from collections.abc import Sequence

import numpy as np

from service.core.search.bm25 import Codes, Ids, Numbers, locate_codes

WINDOW = 8  # adjacent words; stop words and particles are not indexed
NOWHERE = -1
_INSIDE = np.arange(WINDOW)
_BEYOND = np.full(WINDOW, 1 << 62)


def score_windows(query_codes: Codes, weights: Sequence[float], chunks: Sequence[Codes]) -> Numbers:
    """Return for each chunk the largest sum of weights of distinct query words within a window.

    A chunk is given as the codes of its words, in order.
    """
    best = np.zeros(len(chunks))
    places, rows, terms = locate_codes(query_codes, chunks)
    if not len(places):
        return best
    # A window begins at each occurrence; the following occurrences are inside it or beyond its end.
    # Adding WINDOW per chunk keeps windows from reaching into the next chunk.
    begins = np.arange(len(places))[:, None]
    inside = begins + _INSIDE
    places = np.concatenate([places + rows * WINDOW, _BEYOND])
    is_first = np.concatenate([_find_previous(terms), _INSIDE])[inside] < begins
    values = np.concatenate([np.asarray(weights)[terms], np.zeros(WINDOW)])[inside]
    in_window = places[inside] < places[: len(terms), None] + WINDOW
    sums = (values * (is_first & in_window)).sum(axis=1)
    firsts = np.concatenate([[0], np.flatnonzero(rows[1:] != rows[:-1]) + 1])
    best[rows[firsts]] = np.maximum.reduceat(sums, firsts)
    return best


def _find_previous(terms: Ids) -> Ids:
    """Return for each element the position of the previous equal one, or NOWHERE."""
    order = np.argsort(terms, kind="stable")
    previous = np.full(len(terms), NOWHERE)
    previous[order[1:]] = np.where(terms[order[1:]] == terms[order[:-1]], order[:-1], NOWHERE)
    return previous
