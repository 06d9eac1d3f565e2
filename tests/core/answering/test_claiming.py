"""Claims of idempotency keys before an answer starts."""

import pytest

from service.core.answering.claiming import AnswerClaims
from service.core.answering.replay import ReplayLookup
from service.core.database.engine import Database
from service.core.encoding import create_id, read_slot, utc_now
from service.core.errors import (
    DatabaseUnavailable,
    IdempotencyConflict,
    OwnedElsewhere,
    OwnerUnavailable,
)
from service.core.ports import Claim, Peer
from service.core.records import Outcome
from service.core.replicas.peers import NoPeers
from tests.records import build_intent, build_outcome
from tests.rows import write

HERE, ELSEWHERE = 1, 2


class ClaimsFake:
    """Claims of one key. `reachable` False: the database is away."""

    def __init__(self, first: Claim | None = None) -> None:
        self.first, self.reachable = first, True

    async def claim(self, _user_id: str, _key: str, claim: Claim) -> Claim:
        """The first claim is in force."""
        self.first = self.first or claim
        return self.first

    async def take_over(self, _user_id: str, _key: str, claim: Claim, *, previous_id: str) -> bool:
        """Replace a claim."""
        assert self.first is not None
        assert self.first.answer_id == previous_id
        self.first = claim
        return True

    async def free(self, _user_id: str, _key: str, _answer_id: str) -> None:
        """Remove the claim."""
        if not self.reachable:
            raise DatabaseUnavailable("away")
        self.first = None


class PeersFake(NoPeers):
    """One other replica. `address` empty: it is not alive. `lost`: and was declared lost."""

    def __init__(self, address: str = "", *, lost: bool = False) -> None:
        self.address, self.lost = address, lost

    def find_owner(self, answer_id: str) -> Peer | None:
        """The other replica, for its ids."""
        slot = read_slot(answer_id)
        return Peer(slot, self.address) if slot == ELSEWHERE else None

    def require_written(self, answer_id: str) -> None:
        """Its row may come, unless it is lost."""
        if read_slot(answer_id) == ELSEWHERE and not self.lost:
            raise OwnerUnavailable("not written")


class QueueFake:
    """A queue whose records are all written."""

    async def wait_committed(self) -> None:
        """Nothing waits."""


def create_claims(
    database: Database, claims: ClaimsFake | None, peers: PeersFake | None = None
) -> AnswerClaims:
    """The claims of this replica."""
    replay = ReplayLookup(database, QueueFake(), None)  # type: ignore[arg-type]  # what it uses
    return AnswerClaims(claims, peers or PeersFake(), replay, HERE)


def claim_elsewhere() -> Claim:
    """A claim of the other replica."""
    return Claim("hash", create_id(utc_now(), ELSEWHERE))


async def test_the_first_request_gets_the_id_of_its_answer(database: Database) -> None:
    """It has the slot of this replica, with and without claims."""
    for claims in (ClaimsFake(), None):
        answer_id = await create_claims(database, claims).claim("alice", "key", "hash")

        assert isinstance(answer_id, str)
        assert read_slot(answer_id) == HERE


async def test_a_living_owner_should_get_the_request(database: Database) -> None:
    """The refusal says which answer it is."""
    first = claim_elsewhere()
    claims = create_claims(database, ClaimsFake(first), PeersFake("127.0.0.1:1"))
    with pytest.raises(OwnedElsewhere) as caught:
        await claims.claim("alice", "key", "hash")

    assert caught.value.answer_id == first.answer_id


async def test_another_request_with_the_key_is_a_conflict(database: Database) -> None:
    """As for requests at the same replica."""
    claims = create_claims(database, ClaimsFake(claim_elsewhere()))
    with pytest.raises(IdempotencyConflict):
        await claims.claim("alice", "key", "another hash")


async def test_the_row_of_an_owner_that_is_gone_is_the_answer(database: Database) -> None:
    """The claim is older than the row."""
    first = claim_elsewhere()
    intent = build_intent(
        id=first.answer_id, user_id="alice", idempotency_key="key", body_hash="hash"
    )
    await write(database, [build_outcome(intent)])
    outcome = await create_claims(database, ClaimsFake(first)).claim("alice", "key", "hash")

    assert isinstance(outcome, Outcome)
    assert outcome.intent.id == first.answer_id


async def test_a_missing_row_is_waited_for(database: Database) -> None:
    """Until the owner has returned or is lost, the provider may have been called."""
    claims = create_claims(database, ClaimsFake(claim_elsewhere()))
    with pytest.raises(OwnerUnavailable):
        await claims.claim("alice", "key", "hash")


@pytest.mark.parametrize("slot", [HERE, ELSEWHERE])
async def test_a_claim_without_an_answer_is_taken_over(database: Database, slot: int) -> None:
    """The owner, this replica before a restart or a lost one, ended before it began the answer."""
    fake = ClaimsFake(Claim("hash", create_id(utc_now(), slot)))
    claims = create_claims(database, fake, PeersFake(lost=True))
    answer_id = await claims.claim("alice", "key", "hash")

    assert fake.first == Claim("hash", str(answer_id))


async def test_a_claim_that_cannot_be_freed_is_kept(database: Database) -> None:
    """The rejection of the request is what its caller gets."""
    fake = ClaimsFake()
    claims = create_claims(database, fake)
    answer_id = str(await claims.claim("alice", "key", "hash"))
    fake.reachable = False
    await claims.free("alice", "key", answer_id)
    kept = fake.first
    fake.reachable = True
    await claims.free("alice", "key", answer_id)

    assert (kept, fake.first) == (Claim("hash", answer_id), None)
