"""Chat completion requests: adding the context of a grounded answer, and the limit of tokens."""

from collections.abc import Callable, Sequence

import msgspec

from service.core import tokens
from service.core.encoding import to_json
from service.core.ports import ChatCall, QuotaWindow
from service.core.pricing import Usage
from service.core.records import Message

_PROBE_TOKENS = 1_000_000  # prices are per million tokens


class _UserMessage(msgspec.Struct):
    """The used members of a user message."""

    content: str | list[dict[str, msgspec.Raw]]


def ground_call(call: ChatCall, rules: str, question: str) -> ChatCall:
    """Return the request with the rules first, and the question in place of its last user message.

    Parts that are not text, and other members of that message, are kept.
    """
    position = call.question
    if position is None:
        return call
    members = msgspec.json.decode(call.messages[position], type=dict[str, msgspec.Raw])
    content = msgspec.json.decode(call.messages[position], type=_UserMessage).content
    grounded: object = question
    if not isinstance(content, str):
        others = [part for part in content if bytes(part.get("type", b"")) != b'"text"']
        grounded = [{"type": "text", "text": question}, *others] if others else question
    raw_messages = list(call.messages)
    raw_messages[position] = msgspec.Raw(to_json(members | {"content": grounded}))
    added = [Message("system", rules), Message("user", question)]
    texts = list(call.texts)
    texts[position] = added[1]
    return msgspec.structs.replace(
        call,
        messages=[msgspec.Raw(to_json(added[0])), *raw_messages],
        texts=[added[0], *texts],
        question=position + 1,
        prompt_tokens_max=call.prompt_tokens_max + tokens.bound_tokens(added),
    )


def cap_completion(
    call: ChatCall,
    windows: Sequence[QuotaWindow],
    compute_cost: Callable[[Usage], int | None],
    *,
    tokens_max: int,
    calls_max: int = 1,
    held_tokens: int,
    held_nano_usd: int,
) -> int:
    """Return how many completion tokens per choice the quotas admit: 1 to `tokens_max`.

    `compute_cost`: nano-dollars; None without a price. `calls_max`: how many calls may use as many
    tokens. `held_…`: what this request holds already.
    """
    prompt = call.prompt_tokens_max + call.prediction_tokens_max
    limit = tokens_max
    for window in windows:
        left = window.limit - window.used - window.held
        if window.unit == "tokens":
            left = (left + held_tokens) // calls_max - prompt
        elif window.unit == "nano-usd":
            affordable = cap_by_amount(call, left + held_nano_usd, compute_cost)
            limit = limit if affordable is None else min(limit, affordable)
            continue
        else:
            continue
        limit = min(limit, left // call.choices)
    return max(limit, 1)


def cap_by_amount(
    call: ChatCall, nano_usd: int, compute_cost: Callable[[Usage], int | None]
) -> int | None:
    """Return how many completion tokens per choice an amount pays for; None without a price.

    Not positive if the amount does not pay for the prompt.
    """
    spent = compute_cost(
        Usage(
            prompt_tokens=call.prompt_tokens_max,
            completion_tokens=call.prediction_tokens_max,
        )
    )
    price = compute_cost(Usage(prompt_tokens=0, completion_tokens=_PROBE_TOKENS))
    if spent is None or not price:
        return None
    return (nano_usd - spent - 1) * _PROBE_TOKENS // price // call.choices
