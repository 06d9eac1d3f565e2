"""Routes: the order of targets, what is repeated, fallback, and the cost that is held."""

from decimal import Decimal

import pytest

from service.core.encoding import utc_now
from service.core.errors import (
    ProviderBusy,
    ProviderCut,
    ProviderError,
    ProviderRefused,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnreachable,
    ReportedError,
    UnknownModel,
)
from service.core.ports import Provider
from service.core.pricing import PriceBook, Usage
from service.core.provider_file import Catalog, ModelPrice, ProviderConfig
from service.core.providers.openai import create_openai_provider
from service.core.providers.routes import (
    Endpoint,
    Route,
    RoutePlan,
    Target,
    compute_route_nano_usd,
    create_routes,
)
from service.core.settings import Settings

ATTEMPTS_MAX = 3


def create_provider(config: ProviderConfig) -> Provider:
    """A provider that is not called."""
    return create_openai_provider(config, 1000)


def build_route(*weights: float, always: bool = False) -> Route:
    """A route to providers a, b, … with these weights."""
    targets = []
    for name, weight in zip("abcde", weights, strict=False):
        provider = create_provider(ProviderConfig(name, "http://127.0.0.1:9/v1"))
        targets.append(Target(Endpoint(name, provider), f"model-{name}", weight))
    return Route("r", tuple(targets), len(targets) if always else 1)


def play(plan: RoutePlan, *errors: ProviderError) -> list[str | None]:
    """The names of the providers that are called, while the calls end with these errors."""
    names: list[str | None] = [plan.target.endpoint.name]
    for attempt, error in enumerate(errors, 1):
        if plan.plan_next(error, attempt) is None:
            return [*names, None]
        names.append(plan.target.endpoint.name)
    return names


async def test_targets_follow_in_order() -> None:
    """Without weights an answer begins with the first target; each failure leads to the next."""
    plan = RoutePlan(build_route(0, 0, 0), ATTEMPTS_MAX)

    assert play(plan, *[ProviderUnreachable()] * 3) == ["a", "b", "c", None]


@pytest.mark.parametrize(
    ("draw", "order"), [(0.0, "abc"), (0.29, "abc"), (0.3, "bac"), (0.99, "cab")]
)
async def test_an_answer_begins_with_a_target_by_weight(draw: float, order: str) -> None:
    """The first target is drawn by weight; the others keep their order."""
    plan = RoutePlan(build_route(3, 6, 1), ATTEMPTS_MAX, draw=lambda: draw)

    assert play(plan, *[ProviderUnreachable()] * 2) == list(order)


def build_error(status: int, message: str | None) -> ProviderError:
    """A response with this status and the provider's message."""
    error = ProviderError("failed")
    error.reported = ReportedError(status, message, None, None, None)
    return error


UNBILLED = [
    ProviderUnreachable(),
    ProviderBusy(retry_after_seconds=60),
    build_error(500, "the provider's own message"),
]
MAYBE_BILLED = [
    ProviderTimeout(),
    ProviderCut(),
    ProviderRefused(),
    build_error(500, None),
    build_error(502, "a gateway"),
]


@pytest.mark.parametrize("error", UNBILLED, ids=repr)
async def test_a_call_that_was_not_billed_falls_back(error: ProviderError) -> None:
    """The next target is called at once, whatever the wait that the first one asks for."""
    plan = RoutePlan(build_route(0, 0), ATTEMPTS_MAX)

    assert plan.plan_next(error, 1) == 0
    assert plan.target.endpoint.name == "b"


@pytest.mark.parametrize("error", MAYBE_BILLED, ids=repr)
async def test_a_call_that_may_have_been_billed_falls_back_if_configured(
    error: ProviderError,
) -> None:
    """By default the answer ends; with `fallback = "always"` the next target is called."""
    assert play(RoutePlan(build_route(0, 0), ATTEMPTS_MAX), error) == ["a", None]
    assert play(RoutePlan(build_route(0, 0, always=True), ATTEMPTS_MAX), error) == ["a", "b"]


async def test_a_rejected_request_never_falls_back() -> None:
    """What one provider rejects is the caller's error."""
    plan = RoutePlan(build_route(0, 0, always=True), ATTEMPTS_MAX)

    assert play(plan, ProviderRejected()) == ["a", None]


async def test_targets_are_repeated_after_the_last_one() -> None:
    """While attempts are left, the target with the shortest wait is called again."""
    plan = RoutePlan(build_route(0, 0), ATTEMPTS_MAX, clock=lambda: 50.0)

    assert plan.plan_next(ProviderBusy(retry_after_seconds=30), 1) == 0
    wait = plan.plan_next(ProviderBusy(retry_after_seconds=2), 2)
    assert (wait, plan.target.endpoint.name) == (2, "b")
    assert plan.plan_next(ProviderUnreachable(), 3) is None


async def test_a_target_that_may_have_been_billed_is_not_repeated() -> None:
    """So each target is billed once at most, which the hold covers."""
    plan = RoutePlan(build_route(0, 0, always=True), ATTEMPTS_MAX)

    assert play(plan, ProviderTimeout(), ProviderUnreachable()) == ["a", "b", "b"]
    assert play(RoutePlan(build_route(0, always=True), 3), ProviderTimeout()) == ["a", None]


@pytest.mark.parametrize(
    ("seconds", "wait"), [(0, 0), (2, 2), (3, 3), (4, None)], ids=["0", "2", "3", "4"]
)
async def test_the_only_target_is_repeated_after_its_wait(seconds: int, wait: float | None) -> None:
    """A Retry-After of up to three seconds is obeyed; a longer one ends the answer."""
    plan = RoutePlan(build_route(0), ATTEMPTS_MAX, clock=lambda: 50.0)

    assert plan.plan_next(ProviderBusy(retry_after_seconds=seconds), 1) == wait


async def test_providers_in_a_cool_down_come_last() -> None:
    """They are called when everything else has failed, the one that recovers first before."""
    route = build_route(0, 0, 0)
    for target, seconds in zip(route.targets[:2], (90, 40), strict=True):
        target.endpoint.health.end_call(ProviderBusy(retry_after_seconds=seconds))

    assert play(RoutePlan(route, 3), *[ProviderUnreachable()] * 2) == ["c", "b", "a"]


async def test_a_target_is_skipped_while_it_is_probed() -> None:
    """A provider that another request began to probe after the plan was made is avoided."""
    route = build_route(0, 0)
    plan = RoutePlan(route, ATTEMPTS_MAX)
    route.targets[0].endpoint.health.end_call(ProviderUnreachable())
    plan.skip_unavailable()

    assert plan.target.endpoint.name == "b"
    plan.skip_unavailable()
    assert plan.target.endpoint.name == "b"


async def test_one_plan_at_a_time_begins_with_a_probe() -> None:
    """After a cool-down the first request probes the provider, and the others avoid it."""
    now = 50.0
    route = build_route(0, 0)
    health = route.targets[0].endpoint.health
    health._clock = lambda: now
    health.end_call(ProviderUnreachable())
    now += 2
    first = RoutePlan(route, ATTEMPTS_MAX).begin()

    assert first.endpoint.name == "a"
    assert RoutePlan(route, ATTEMPTS_MAX).target.endpoint.name == "b"
    health.record_success()
    assert RoutePlan(route, ATTEMPTS_MAX).target.endpoint.name == "a"


PRICE = ModelPrice(input=Decimal(1), output=Decimal(1))


@pytest.mark.parametrize(("always", "nano_usd"), [(False, 30_000), (True, 40_000)])
async def test_the_hold_covers_the_most_expensive_target(always: bool, nano_usd: int) -> None:
    """The cost is that of the most expensive model, or of all that one answer may call."""
    prices = PriceBook(
        {"model-a": PRICE},
        provider_prices={("b", "model-b"): ModelPrice(input=Decimal(3), output=Decimal(3))},
    )
    usage = Usage(prompt_tokens=4, completion_tokens=6)
    route = build_route(0, 0, always=always)

    assert compute_route_nano_usd(prices, route, usage, utc_now()) == nano_usd
    assert compute_route_nano_usd(PriceBook({"model-a": PRICE}), route, usage, utc_now()) is None


@pytest.mark.parametrize(
    ("limits", "expected"),
    [([None], 8_000), ([500], 500), ([20_000], 20_000), ([20_000, None], 8_000), ([700, 500], 500)],
)
async def test_every_target_can_generate_the_limit(limits: list[int | None], expected: int) -> None:
    """The limit of a route is the smallest of its targets; a default stands for unknown ones."""
    endpoint = Endpoint("p", create_provider(ProviderConfig("p", None)))
    targets = [Target(endpoint, f"m{n}", 0, limit) for n, limit in enumerate(limits)]

    assert Route("r", tuple(targets)).limit_completion(8_000) == expected


async def test_the_routes_of_a_catalog() -> None:
    """Names lead to routes; a provider of the short form also gets names that are not listed."""
    extractive = Endpoint("extractive", create_provider(ProviderConfig("x", None)))

    def find(catalog: Catalog) -> list[str]:
        routes = create_routes(catalog, create_provider, user_share=1, extractive=extractive)
        other = routes.find_chat_route("other").targets[0].model
        return [*routes.list_chat_names(), other]

    assert find(Settings(openai_api_key="k", model="m").catalog) == ["m", "extractive", "other"]
    with pytest.raises(UnknownModel, match="configured are: m, n, extractive"):
        find(Settings(openai_api_key="k", model="m", models=["n"]).catalog)
    with pytest.raises(UnknownModel, match="only extractive is available: no provider"):
        find(Settings().catalog)
