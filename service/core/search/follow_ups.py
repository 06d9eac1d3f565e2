"""Follow-up questions: ranked together with the previous questions, judged by the last one.

"What about opened ones?" does not say what is opened. Its words alone rank by chance, and together
with the previous questions they are a minority. Therefore two searches are fused: a chunk is ranked
by the sum of its coverage of the question and of all questions together. A complete question about
another subject keeps its ranking, because it covers its chunks better.

The question is answerable if it is so alone, or together with the previous ones unless a decisive
word of it is missing ("And in Germany?"): the previous questions must not answer for it.
"""

from collections.abc import Sequence

import msgspec

from service.core.search.results import Hit, SearchResults
from service.core.search.versions import order_versions

FUSED_MAX = 30  # hits of each search


def fuse_results(
    question: str,
    alone: SearchResults,
    together: SearchResults,
    *,
    missing: Sequence[str],
    limit: int,
) -> SearchResults:
    """Return the results of a follow-up question.

    `alone`, `together`: of the question, and of all questions. `missing`: its decisive words that
    no document contains. A hit has the matching sentence of the question alone, if it has one.
    """
    hits: dict[str, Hit] = {}
    sums: dict[str, float] = {}
    for hit in (*alone.items, *together.items):
        hits.setdefault(hit.chunk_id, hit)
        sums[hit.chunk_id] = sums.get(hit.chunk_id, 0) + hit.coverage
    ranked = sorted(hits.values(), key=lambda hit: sums[hit.chunk_id], reverse=True)
    judged = alone if alone.answerable or missing or not together.answerable else together
    return msgspec.structs.replace(
        judged, items=order_versions(ranked[:limit], question), searched_for=alone.searched_for
    )
