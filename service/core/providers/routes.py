"""Routes: the providers and models that answer a request for a model or an alias, in order.

A route is an ordered list of targets. An answer begins with the first one or, with weights, with
one that is drawn by weight; the others follow in order when an attempt fails. Providers in a
cool-down (`health.py`) come last. A route with one target always calls it.

A failed attempt is followed by the next target if it was certainly not billed, or if several calls
of the route may be billed; never if the provider rejected the request itself. After the last
target, those that were certainly not billed are repeated after a wait, as long as the answer has
attempts left.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import msgspec

from service.core.errors import (
    ProviderError,
    ProviderRejected,
    UnknownModel,
    retry_delay,
)
from service.core.fair_share import FairTurns
from service.core.ports import Provider
from service.core.pricing import ChargeTerms, PriceBook, Usage
from service.core.provider_file import Catalog, ProviderConfig
from service.core.providers.health import ProviderHealth, ProviderStatistics

RETRY_SECONDS = 0.2  # delay after the first attempt, doubled after each retry
RETRY_SECONDS_MAX = 3  # a longer Retry-After ends the answer


class Endpoint:
    """A provider with its name, its health, and the turns of concurrent calls; None: unlimited."""

    def __init__(self, name: str, provider: Provider, turns: FairTurns | None = None) -> None:
        self.name, self.provider, self.turns = name, provider, turns
        self.health = ProviderHealth()


class EndpointCall:
    """A context manager for one call: waits for its turn, and notes how it ends."""

    def __init__(self, endpoint: Endpoint, user_id: str) -> None:
        self._health, self._turns, self._user_id = endpoint.health, endpoint.turns, user_id

    async def __aenter__(self) -> None:
        if self._turns is not None:
            await self._turns.acquire(self._user_id)
        if self._health.failures:
            self._health.begin_call()

    async def __aexit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        if error is not None or self._health.failures:
            self._health.end_call(error)
        if self._turns is not None:
            self._turns.release(self._user_id)


class Target(msgspec.Struct, frozen=True):
    """A model of a provider. `weight`: its share of the answers that begin with it.

    `max_output_tokens`: how many tokens it can generate; None: unknown.
    """

    endpoint: Endpoint
    model: str
    weight: float = 0
    max_output_tokens: int | None = None

    def get_other_name(self, model: str) -> str | None:
        """The provider's name of the model; None if it is the one that was asked for."""
        return None if self.model == model else self.model


class Route(msgspec.Struct, frozen=True):
    """The targets of a model or alias, at least one.

    `billed_calls_max`: how many attempts of one answer may be billed: 1, or one for each target.
    """

    name: str
    targets: tuple[Target, ...]
    billed_calls_max: int = 1

    def limit_completion(self, tokens_max: int) -> int:
        """The tokens that every target can generate; `tokens_max` for those of unknown limit."""
        return min([target.max_output_tokens or tokens_max for target in self.targets])


def compute_route_nano_usd(
    prices: PriceBook, route: Route, usage: Usage, at: datetime
) -> int | None:
    """Return the cost at the most expensive target, or at all that one answer may be billed by.

    None if one of them has no known price.
    """
    amounts = []
    for target in route.targets:
        cost = prices.compute_cost(target.model, usage, at, target.endpoint.name)
        if cost is None:
            return None
        amounts.append(cost.nano_usd)
    return max(amounts) if route.billed_calls_max == 1 else sum(amounts)


def compute_route_charge(
    prices: PriceBook, route: Route, usage: Usage, at: datetime, terms: ChargeTerms
) -> int | None:
    """Return the charge in nano-dollars at the target where it is highest, or at all targets.

    See `compute_route_nano_usd`. None if one of them has no known price.
    """
    amounts = []
    for target in route.targets:
        cost = prices.compute_cost(target.model, usage, at, target.endpoint.name)
        charge = terms.compute_charge(target.model, usage, cost.nano_usd if cost else None)
        if charge is None:
            return None
        amounts.append(charge)
    return max(amounts) if route.billed_calls_max == 1 else sum(amounts)


class RoutePlan:
    """The attempts of one answer.

    `target` is the next one, or the current one during a call; `others` are those to call when it
    fails.
    """

    others: list[Target]

    def __init__(
        self,
        route: Route,
        attempts_max: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._route, self._attempts_max, self._clock = route, attempts_max, clock
        self.target, self.others = route.targets[0], []
        if len(route.targets) > 1:
            self.target, *self.others = _order(route, draw)
        self._repeatable: list[tuple[float, Target]] = []  # with the time of the next attempt

    def begin(self) -> Target:
        """Return the first target, and let no other request probe its provider meanwhile."""
        self.target.endpoint.health.begin_call()
        return self.target

    def skip_unavailable(self) -> None:
        """Replace the target by a later one while another request probes its provider."""
        while self.others and not self.target.endpoint.health.is_available():
            self._repeatable.append((0, self.target))
            self.target = self.others.pop(0)

    def plan_next(self, error: ProviderError, attempts: int) -> float | None:
        """Choose the next target. Returns the seconds to wait for it; None: there is no other."""
        now = self._clock()
        if error.may_retry:
            self._repeatable.append((now + (error.retry_after_requested or 0), self.target))
        if self.others:
            if not self._may_fall_back(error):
                return None
            self.target = self.others.pop(0)
            return 0.0
        if not error.may_retry or attempts >= self._attempts_max:
            return None
        moment, self.target = min(self._repeatable, key=lambda item: item[0])
        self._repeatable = [item for item in self._repeatable if item[1] is not self.target]
        if (wait := moment - now) > 0 or error.retry_after_requested == 0:
            return max(wait, 0.0) if wait <= RETRY_SECONDS_MAX else None
        return retry_delay(attempts, first_seconds=RETRY_SECONDS, seconds_max=RETRY_SECONDS_MAX)

    def _may_fall_back(self, error: ProviderError) -> bool:
        if self._route.billed_calls_max > 1:
            return not isinstance(error, ProviderRejected)
        return error.certainly_unbilled


def _order(route: Route, draw: Callable[[], float]) -> list[Target]:
    """The targets in the order of the attempts: available ones first."""
    targets = list(route.targets)
    point = draw() * sum(target.weight for target in targets)
    for n, target in enumerate(targets):
        point -= target.weight
        if point < 0:
            targets.insert(0, targets.pop(n))
            break
    available = [target for target in targets if target.endpoint.health.is_available()]
    others = [target for target in targets if target not in available]
    return available + sorted(others, key=lambda target: target.endpoint.health.cool_until)


class Routes:
    """All routes of a process.

    `chat`: of models that generate text, by name; `embeddings`: of embedding models. `fallthrough`:
    the provider that also gets models without a route, if there is one.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        chat: Mapping[str, Route],
        embeddings: Mapping[str, Route],
        *,
        fallthrough: Endpoint | None = None,
    ) -> None:
        self._endpoints = endpoints
        self._chat, self._embeddings, self._fallthrough = chat, embeddings, fallthrough

    def find_chat_route(self, name: str) -> Route:
        """Return the route of a model that generates text. Raises `UnknownModel`."""
        route = self._chat.get(name)
        return route if route is not None else self._find_other(self._chat, name)

    def find_embedding_route(self, name: str) -> Route:
        """Return the route of an embedding model. Raises `UnknownModel`."""
        route = self._embeddings.get(name)
        return route if route is not None else self._find_other(self._embeddings, name)

    def list_chat_names(self) -> list[str]:
        """The names of routes of models that generate text."""
        return list(self._chat)

    def list_embedding_names(self) -> list[str]:
        """The names of routes of embedding models."""
        return list(self._embeddings)

    def statistics(self) -> dict[str, ProviderStatistics]:
        """The health of each provider."""
        return {endpoint.name: endpoint.health.statistics() for endpoint in self._endpoints}

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        for endpoint in self._endpoints:
            await endpoint.provider.aclose()

    def _find_other(self, routes: Mapping[str, Route], name: str) -> Route:
        """Return the route of a name that is not listed."""
        if self._fallthrough is not None:
            return Route(name, (Target(self._fallthrough, name),))
        if not self._endpoints:
            available = f"only {', '.join(routes)} is available: " if routes else ""
            raise UnknownModel(
                f"{available}no provider is configured (OPENAI_API_KEY, OPENAI_BASE_URL,"
                " KOTAE_PROVIDERS)"
            )
        raise UnknownModel(f"configured are: {', '.join(routes) or 'none'}")


def create_routes(
    catalog: Catalog,
    create_provider: Callable[[ProviderConfig], Provider],
    *,
    user_share: float,
    extractive: Endpoint | None,
) -> Routes:
    """Create the routes of a catalog. `extractive`: the built-in model, if requests may name it."""
    endpoints = {
        config.name: Endpoint(
            config.name, create_provider(config), FairTurns(config.connections_max, user_share)
        )
        for config in catalog.providers
    }
    routes = {
        name: Route(
            name,
            tuple(
                Target(
                    endpoints[target.provider],
                    target.model,
                    target.weight,
                    target.max_output_tokens,
                )
                for target in config.targets
            ),
            len(config.targets) if config.fallback_billed else 1,
        )
        for name, config in catalog.routes.items()
    }
    chat = {name: routes[name] for name, config in catalog.routes.items() if not config.embeddings}
    if extractive is not None:
        chat[extractive.name] = Route(extractive.name, (Target(extractive, extractive.name),))
    return Routes(
        list(endpoints.values()),
        chat,
        {
            name: routes[name]
            for name, config in catalog.routes.items()
            if config.embeddings is not False
        },
        fallthrough=endpoints[catalog.fallthrough] if catalog.fallthrough else None,
    )
