"""Users, keys, plans and answers of every outcome, for tests of the pages of admins."""

from datetime import timedelta

from service.core.auth import store
from service.core.auth.principals import BOOTSTRAP, COMMAND_LINE, Role
from service.core.auth.store import NewKey
from service.core.database.engine import Database
from service.core.encoding import utc_now
from service.core.ports import QuotaLimits
from service.core.pricing import Usage
from service.core.records import Outcome, Passage, Status, UsageSource
from tests.records import (
    build_attempt,
    build_failed_attempt,
    build_intent,
    build_outcome,
    build_outcome_of_attempts,
)
from tests.rows import write

ANSWERS = 64
USERS = ("sakura.tanaka", "kenji.mori", "alice.chen", "bob.smith", "support-bot")
MODELS = ("gpt-5-mini", "claude-sonnet-4-5", "kotae/extractive")
QUESTIONS = (
    ("返品は何日以内にできますか？", "商品到着から **30 日以内**であれば返品できます [1]。"),
    ("How long is the warranty of the coffee grinder?", "The warranty lasts **two years** [1]."),
    ("Which documents do I need for a business trip to Osaka?", "A travel request and receipts."),
    ("経費精算の締め切りはいつですか？", "毎月 5 営業日までに申請してください [1]。"),
)
PASSAGE = Passage(
    1, "d1", "c1", "Returns and warranty.md", "The warranty lasts two years. Keep the receipt."
)


def build_answer(n: int) -> Outcome:
    """The answer number `n`: most are completed, some fail, are refused or have unknown usage."""
    prompt, response = QUESTIONS[n % 4]
    intent = build_intent(
        at=utc_now() - timedelta(minutes=7 * n, seconds=13 * n % 60),
        user_id=USERS[n * n % 5],
        model=MODELS[n % 3],
        prompt=prompt,
        grounded=True,
        endpoint=("/ai/answers", "/v1/chat/completions", "/ai/test")[n % 3],
        request_id=f"01a2b3c4d5e6{n:04}",
    )
    usage = Usage(prompt_tokens=820 + 37 * n, completion_tokens=64 + n)
    if n % 16 == 3:
        return build_outcome(
            intent,
            status=Status.TIMEOUT,
            response="",
            usage=None,
            usage_source=UsageSource.UNKNOWN,
            cost_nano_usd=None,
            price=None,
            finish_reason=None,
            error_code="provider_timeout",
            response_time_ms=60_000,
            first_token_ms=None,
        )
    if n % 16 == 7:
        return build_outcome(
            intent,
            status=Status.NO_CONTEXT,
            response="The documents do not answer this question.",
            usage=Usage(prompt_tokens=0, completion_tokens=0),
            usage_source=UsageSource.NONE,
            cost_nano_usd=0,
            attempts=0,
            nearest=[PASSAGE],
            response_time_ms=14,
            first_token_ms=None,
        )
    if n % 8 == 1:
        begun = intent.created_at
        failed = build_failed_attempt(
            provider="openai",
            model="gpt-5-mini",
            started_at=begun + timedelta(milliseconds=42),
            ended_at=begun + timedelta(milliseconds=420),
        )
        answered = build_attempt(
            provider="anthropic",
            model="claude-sonnet-4-5",
            usage=usage,
            cost_nano_usd=2_913_500,
            started_at=begun + timedelta(milliseconds=430),
            ended_at=begun + timedelta(milliseconds=2_610),
        )
        return build_outcome_of_attempts(
            failed,
            answered,
            intent=intent,
            response=response,
            sources=[PASSAGE],
            response_time_ms=2_618,
            first_token_ms=1_105,
        )
    return build_outcome(
        intent,
        response=response,
        usage=usage,
        cost_nano_usd=1_234_500 + 98_765 * n,
        response_time_ms=640 + 91 * n % 1500,
        first_token_ms=210 + 17 * n % 200,
        sources=[PASSAGE],
        provider="openai",
        provider_model=MODELS[n % 3],
    )


async def fill(database: Database) -> list[Outcome]:
    """Store users, keys, plans and answers; returns the answers, the newest first."""
    team = QuotaLimits(tokens_per_day=200_000, cost_nano_usd_per_month=50 * 10**9)
    await store.put_plan(database, COMMAND_LINE, "default", QuotaLimits(requests_per_minute=30))
    await store.put_plan(database, COMMAND_LINE, "team", team)
    for user in USERS:
        await store.create_key(database, BOOTSTRAP, NewKey(user_id=user, name="laptop"))
    bot = NewKey(user_id="support-bot", name="widget", role=Role.USER)
    key = await store.create_key(database, COMMAND_LINE, bot)
    await store.rotate_key(database, BOOTSTRAP, key.id, grace_seconds=86_400)
    await store.put_user(database, BOOTSTRAP, "sakura.tanaka", plan="team", limits=None)
    await store.put_user(database, BOOTSTRAP, "support-bot", plan=None, limits=team)
    await store.put_user(database, BOOTSTRAP, "bob.smith", disabled=True)
    outcomes = [build_answer(n) for n in range(ANSWERS)]
    await write(database, outcomes[::-1])
    return outcomes
