"""The conversations of running and ended answers: their history, and their erasure.

A conversation has the id of its first answer. Its history is read from the log, so it waits for the
rows of answers that have just ended. One answer of a conversation runs at a time.

Erasure first stops the running answers and waits until all rows are written, then erases the rows
(`accounting/conversations.py`), and evicts the streams in memory. `_erased` has the conversations
that this process has erased: a request that has read the history before is rejected before it
starts. Older ones are recognized by their rows. Other replicas are asked for running answers, and
stop them.
"""

import asyncio
from functools import partial

import msgspec

from service.core.accounting import conversations
from service.core.answering.registry import StreamRegistry
from service.core.answering.replay import ReplayLookup
from service.core.answering.streams import Stream
from service.core.audit_log import Action, record_action
from service.core.auth.principals import Principal
from service.core.database.engine import Database
from service.core.errors import ConversationBusy, Erased, NotFound, Overloaded
from service.core.ports import PeerRequest, Peers
from service.core.records import Message

ANSWERS_READ_MAX = 20  # the last ones, for the history
STOP_SECONDS = 5  # maximum wait for the answers that an erasure stops
ERASED_KEPT = 1_000  # the last erasures that are known without their rows


class ConversationRegistry:
    """See the module. `user_id`: who may use a conversation; None: an admin, who may erase all.

    The erasure of another user's conversation is recorded in the audit log.
    """

    def __init__(
        self,
        database: Database,
        replay: ReplayLookup,
        registry: StreamRegistry,
        peers: Peers | None = None,
    ) -> None:
        self._database, self._replay, self._registry = database, replay, registry
        self._peers = peers
        self._erased: dict[str, None] = {}  # in the order of erasure

    async def read_history(self, conversation_id: str, user_id: str) -> list[Message]:
        """Return the last messages of a user's conversation, oldest first.

        Raises `NotFound`, also for conversations of others, `Erased`, `ConversationBusy` and
        `DatabaseUnavailable`.
        """
        streams = self._find_streams(conversation_id)
        elsewhere = await self._ask_users(conversation_id)
        users = [*elsewhere, *(stream.intent.user_id for stream in streams)]
        if any(user != user_id for user in users):
            raise NotFound("no conversation has this id")
        if elsewhere or any(stream.outcome is None for stream in streams):
            raise ConversationBusy("an answer of this conversation is still in progress")
        await self._require_state(conversation_id, user_id)
        async with self._database.read_session() as session:
            return await conversations.read_turns(session, conversation_id, ANSWERS_READ_MAX)

    async def erase(self, conversation_id: str, by: Principal) -> None:
        """Stop and erase a conversation. Idempotent.

        Raises `NotFound`, `Overloaded` if an answer does not stop, and `DatabaseUnavailable`.
        """
        user_id = by.visible_user_id
        users = [stream.intent.user_id for stream in self._find_streams(conversation_id)]
        users += await self._ask_users(conversation_id)
        if any(user_id not in {None, user} for user in users):
            raise NotFound("no conversation has this id")
        if not users:
            try:
                await self._require_state(conversation_id, user_id)
            except Erased:
                return
        was_erased = conversation_id in self._erased
        self._mark_erased(conversation_id)
        try:
            await self._stop_answers(conversation_id)
            await self._replay.wait_written()
            if self._peers is not None:
                await self._peers.ask_all(_build_request("DELETE", conversation_id))
            async with self._database.transaction() as session:
                ids = await conversations.erase_rows(session, conversation_id)
                state = await conversations.read_state(session, conversation_id)
                if state is not None and state.user_id != by.user_id:
                    await record_action(
                        session,
                        by.actor,
                        Action.CONVERSATION_ERASED,
                        target_id=conversation_id,
                        user_id=state.user_id,
                    )
        except BaseException:
            if not was_erased:
                self._erased.pop(conversation_id, None)
            raise
        self._registry.evict_streams(ids)

    async def list_users(self, conversation_id: str) -> list[str]:
        """See `Answers.list_conversation_users`."""
        await self._replay.wait_written()
        return [
            stream.intent.user_id
            for stream in self._find_streams(conversation_id)
            if stream.outcome is None
        ]

    async def stop_erased(self, conversation_id: str) -> None:
        """See `Answers.stop_conversation`."""
        self._mark_erased(conversation_id)
        await self._stop_answers(conversation_id)
        await self._replay.wait_written()
        self._registry.evict_streams(
            stream.intent.id for stream in self._find_streams(conversation_id)
        )

    async def _ask_users(self, conversation_id: str) -> list[str]:
        """Return the users of running answers of a conversation at other replicas."""
        if self._peers is None:
            return []
        replies = await self._peers.ask_all(_build_request("GET", conversation_id))
        return [user for reply in replies for user in msgspec.json.decode(reply, type=list[str])]

    def require_open(self, conversation_id: str | None) -> None:
        """Raise `Erased` if this process has erased the conversation."""
        if conversation_id in self._erased:
            raise Erased("this conversation was erased")

    def _find_streams(self, conversation_id: str) -> list[Stream]:
        return [
            stream for stream in self._registry if stream.intent.conversation_id == conversation_id
        ]

    async def _require_state(self, conversation_id: str, user_id: str | None) -> None:
        """Wait for the rows. Raises `NotFound`, `Erased` and `DatabaseUnavailable`."""
        self.require_open(conversation_id)
        await self._replay.wait_written()
        async with self._database.read_session() as session:
            state = await conversations.read_state(session, conversation_id)
        if state is None or user_id not in {None, state.user_id}:
            raise NotFound("no conversation has this id")
        if state.erased_at:
            raise Erased("this conversation was erased")

    async def _stop_answers(self, conversation_id: str) -> None:
        """Stop the running answers and wait until their outcomes are recorded."""
        ended = asyncio.Event()
        running = [
            stream for stream in self._find_streams(conversation_id) if stream.outcome is None
        ]
        for stream in running:
            stream.add_finish_callback(partial(_set_if_all_ended, running, ended))
            stream.on_stop()
        _set_if_all_ended(running, ended)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await ended.wait()
        except TimeoutError as error:
            raise Overloaded("an answer of this conversation has not stopped yet") from error

    def _mark_erased(self, conversation_id: str) -> None:
        self._erased[conversation_id] = None
        if len(self._erased) > ERASED_KEPT:
            del self._erased[next(iter(self._erased))]


def _build_request(method: str, conversation_id: str) -> PeerRequest:
    return PeerRequest(method=method, target=f"/peer/conversations/{conversation_id}", headers={})


def _set_if_all_ended(streams: list[Stream], ended: asyncio.Event) -> None:
    if all(stream.outcome is not None for stream in streams):
        ended.set()
