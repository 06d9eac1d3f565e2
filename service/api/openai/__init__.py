"""The OpenAI protocol under `/v1`: translation only; the request flow is in `core/answering`."""
