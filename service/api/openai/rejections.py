"""The error of a member of a body."""

from service.core.errors import InvalidRequest


def reject(param: str, what: str) -> InvalidRequest:
    """The error of a member. `param`: its place, as OpenAI names it."""
    return InvalidRequest(f"{param}: {what}", extra={"param": param})
