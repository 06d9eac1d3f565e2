"""Tags of documents."""

import pytest
import sqlalchemy as sa

from service.core.database.engine import Database
from service.core.database.tables import documents
from service.core.documents import library
from service.core.documents.library import ChunkWorkers, NewDocument
from service.core.documents.tags import decode_tags, encode_tags, has_tag
from service.core.settings import Settings


def test_tags_are_normalized() -> None:
    """In lower case, on one line, once, in order."""
    assert decode_tags(encode_tags(["b", " A\n c ", "B", " "])) == ["a c", "b"]
    assert decode_tags(encode_tags([])) == []


@pytest.mark.parametrize(
    ("tags", "found"),
    [(["HR"], 1), (["h"], 0), (["h_"], 0), (["%"], 0), (["x", "50%"], 1), ([], 0)],
)
async def test_a_condition_finds_whole_tags(
    database: Database, tags: list[str], found: int
) -> None:
    """Wildcards are ordinary characters."""
    new_document = NewDocument("T", "Text.", "utf-8", tags=["hr", "50%"])
    await library.store_documents(database, Settings(), ChunkWorkers(), [new_document], user_id="u")
    query = sa.select(sa.func.count()).select_from(documents).where(has_tag(tags))
    async with database.read_session() as session:
        assert (await session.execute(query)).scalar_one() == found
