"""Claims of idempotency keys before an answer starts: which replica answers a key.

The first replica that claims a key answers it. Another one finds the claim and, in it, the id of
the answer: if the owner is alive, it should get the request; otherwise the answer's row is read.
Without a row, the answer may still get one, until the owner has returned or was declared lost. If
it has none even then, the owner has ended between the claim and the start of the answer, and the
claim is taken over.

A single process needs no claims: its `IdempotencyRegistry` has all keys.
"""

from service.core.answering.idempotency import require_same_request
from service.core.answering.replay import ReplayLookup
from service.core.encoding import create_id, utc_now
from service.core.errors import DatabaseUnavailable, OwnerUnavailable, build_owned_elsewhere
from service.core.ports import Claim, IdempotencyClaims, Peers
from service.core.records import Outcome
from service.core.telemetry import log


class AnswerClaims:
    """See the module. `slot`: of this replica; `claims` None: there is one process."""

    def __init__(
        self,
        claims: IdempotencyClaims | None,
        peers: Peers | None,
        replay: ReplayLookup,
        slot: int | None,
    ) -> None:
        self._claims, self._peers, self._replay, self._slot = claims, peers, replay, slot

    async def claim(self, user_id: str, key: str, body_hash: str) -> str | Outcome:
        """Claim a key; return the id of the answer to start, or the outcome of an earlier one.

        Raises `OwnedElsewhere`, `OwnerUnavailable`, `IdempotencyConflict` and
        `DatabaseUnavailable`.
        """
        own = Claim(body_hash, create_id(utc_now(), self._slot))
        if self._claims is None:
            return own.answer_id
        first = await self._claims.claim(user_id, key, own)
        if first.answer_id == own.answer_id:
            return own.answer_id
        require_same_request(first.body_hash, body_hash)
        outcome = await self._find_outcome(user_id, key, first.answer_id)
        if outcome is not None:
            return outcome
        if await self._claims.take_over(user_id, key, own, previous_id=first.answer_id):
            return own.answer_id
        raise OwnerUnavailable("another request has just claimed this Idempotency-Key")

    async def _find_outcome(self, user_id: str, key: str, answer_id: str) -> Outcome | None:
        """Return the outcome of a claimed answer; None: it has never started."""
        owner = self._peers.find_owner(answer_id) if self._peers else None
        if owner is not None and owner.address:
            raise build_owned_elsewhere(answer_id)
        await self._replay.wait_written()
        outcome = await self._replay.find_by_key(user_id, key)
        if outcome is None and self._peers is not None:
            self._peers.require_written(answer_id)
        return outcome

    async def free(self, user_id: str, key: str, answer_id: str) -> None:
        """Free a key whose request was rejected. If that fails, the next request takes it over."""
        if self._claims is None:
            return
        try:
            await self._claims.free(user_id, key, answer_id)
        except DatabaseUnavailable as error:
            log.warning("claim.kept", answer_id=answer_id, error=str(error))
