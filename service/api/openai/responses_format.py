"""Response objects and their events, from a `Stream`."""

from collections.abc import Callable
from typing import Any

import msgspec

from service.api.openai.chat_format import build_chunks, build_usage
from service.api.openai.errors import build_error_event
from service.api.openai.responses_output import OutputBuilder
from service.core.answering.answers import Stream, create_problem
from service.core.encoding import to_json
from service.core.grounding.citations import locate_citations
from service.core.records import Outcome, Status

RESPONSE_PREFIX = "resp_"  # of the id of an answer
BATCH_BYTES = 16_384
DONE = b"data: [DONE]\n\n"
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
# What a response has if the request does not say otherwise.
_DEFAULTS: dict[str, Any] = {
    "previous_response_id": None,
    "instructions": None,
    "tools": [],
    "tool_choice": "auto",
    "truncation": "disabled",
    "parallel_tool_calls": True,
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_logprobs": 0,
    "temperature": 1.0,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "store": True,
    "background": False,
    "service_tier": "default",
    "metadata": {},
    "safety_identifier": None,
    "prompt_cache_key": None,
}


class ResponseFormat:
    """One response. `members`: the body of its request.

    `get_documents_url`: returns the URL under which documents are.
    """

    def __init__(
        self, stream: Stream, get_documents_url: Callable[[], str], members: dict[str, Any]
    ) -> None:
        self.stream, self._members = stream, members
        self._get_documents_url = get_documents_url
        tools = members.get("tools") or ()
        self.searches_files = any(tool["type"] == "file_search" for tool in tools)

    def create_encoder(self) -> "ResponseEvents":
        """Its events from the first one, for one reader."""
        return ResponseEvents(self)

    def build_body(self, output: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """The response as it is now. `output`: its items; by default, those of the outcome."""
        stream, outcome = self.stream, self.stream.outcome
        created_at = int(stream.intent.created_at.timestamp())
        response: dict[str, Any] = {
            "id": f"{RESPONSE_PREFIX}{stream.intent.id}",
            "object": "response",
            "created_at": created_at,
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": stream.intent.model,
            "output": output or [],
            "usage": None,
        }
        response |= self._echo_members()
        if outcome is None:
            return response
        response["status"], incomplete = _read_status(outcome, failed=stream.error is not None)
        if response["status"] == "completed":
            duration = (outcome.response_time_ms or 0) // 1000
            response["completed_at"] = created_at + duration
        if incomplete:
            response["incomplete_details"] = {"reason": incomplete}
        if response["status"] == "failed":
            response["error"] = self._build_error()
        if output is None:
            builder = self.create_builder()
            self.add_outcome(builder, outcome)
            response["output"] = builder.items
        response["usage"] = _build_usage(stream, outcome)
        if outcome.status is Status.NO_CONTEXT:
            response["kotae"] = {"status": outcome.status}
        return response

    def create_builder(self) -> OutputBuilder:
        """A builder of the items of this response."""
        return OutputBuilder(self.stream.intent.id, self._build_annotations)

    def add_search(self, builder: OutputBuilder) -> list[dict[str, Any]]:
        """Add the search of the documents, if the request has the tool."""
        if not self.searches_files:
            return []
        results: list[dict[str, Any]] | None = None
        if "file_search_call.results" in (self._members.get("include") or ()):
            results = [
                {
                    "file_id": passage.document_id,
                    "filename": passage.title,
                    "score": None,
                    "text": passage.text,
                    "attributes": {},
                }
                for passage in self.stream.context
            ]
        return builder.add_search(self.stream.intent.prompt, results)

    def add_outcome(self, builder: OutputBuilder, outcome: Outcome) -> None:
        """Add what an ended answer contains."""
        self.add_search(builder)
        choice = _read_choice(self.stream, outcome)
        builder.add_delta(choice.get("message") or {}, choice.get("logprobs"))
        status, _ = _read_status(outcome, failed=self.stream.error is not None)
        builder.finish("completed" if status == "completed" else "incomplete")

    def _echo_members(self) -> dict[str, Any]:
        """The options of the request, with defaults in place of absent ones."""
        members = self._members
        echoed = _DEFAULTS | {
            name: value
            for name, value in members.items()
            if value is not None and name in _DEFAULTS
        }
        echoed["tools"] = [_complete_tool(tool) for tool in echoed["tools"]]
        reasoning = members.get("reasoning") or {}
        echoed["reasoning"] = {"effort": None, "summary": None} | reasoning
        text = members.get("text") or {}
        echoed["text"] = text | {"format": _complete_format(text.get("format"))}
        return echoed

    def _build_error(self) -> dict[str, Any]:
        error, outcome = self.stream.error, self.stream.outcome
        if error is None:  # replayed from the log
            code = outcome.error_code if outcome and outcome.error_code else "server_error"
            return {"code": code, "message": f"the answer ended with {code}"}
        problem = create_problem(error, self.stream.intent.request_id)
        described = build_error_event(problem, error)["error"]
        return {"code": described["code"] or "server_error", "message": described["message"]}

    def _build_annotations(self) -> list[dict[str, Any]]:
        """The citations in the text: of files if their search was a tool, otherwise of URLs."""
        stream = self.stream
        if not stream.context:
            return []
        citations = locate_citations(stream.text, stream.context)
        if self.searches_files:
            return [
                {
                    "type": "file_citation",
                    "file_id": citation.passage.document_id,
                    "filename": citation.passage.title,
                    "index": citation.start,
                }
                for citation in citations
            ]
        documents_url = self._get_documents_url()
        return [
            {
                "type": "url_citation",
                "url": f"{documents_url}{citation.passage.document_id}",
                "title": citation.passage.title,
                "start_index": citation.start,
                "end_index": citation.end,
            }
            for citation in citations
        ]


class ResponseEvents:
    """The events of a response for one reader, after the event with the number `after`."""

    def __init__(self, response: ResponseFormat, after: int = -1) -> None:
        self._response, self._after = response, after
        self._stream = response.stream
        self._builder = response.create_builder()
        self._number = -1  # of the last event
        self._ended = False

    def encode_batch(self, position: int) -> tuple[bytes, int]:
        """Return the events after the chunk at a position (-1: all), and the new position."""
        out = b""
        if position < 0:
            position = 0
            for name in ("created", "in_progress"):
                payload = {"type": f"response.{name}", "response": self._build_unfinished()}
                out += self._encode([payload])
            out += self._encode(self._response.add_search(self._builder))
        outcome = self._stream.outcome
        transcript = self._stream.transcript
        chunks = transcript.chunks if transcript is not None else []
        if not chunks and outcome is not None and self._stream.error is None:
            chunks = build_chunks(outcome)
        while position < len(chunks):
            for choice in msgspec.json.decode(chunks[position])["choices"]:
                if choice["index"] == 0:
                    delta = choice.get("delta") or {}
                    out += self._encode(self._builder.add_delta(delta, choice.get("logprobs")))
            position += 1
            if len(out) >= BATCH_BYTES:
                return out, position
        if outcome is not None and not self._ended:
            self._ended = True
            out += self._encode_end(outcome)
        return out, position

    def _encode_end(self, outcome: Outcome) -> bytes:
        status, _ = _read_status(outcome, failed=self._stream.error is not None)
        out = self._encode(
            self._builder.finish("completed" if status == "completed" else "incomplete")
        )
        # A stopped response ends like one that reached a limit: the protocol has no other event.
        name = "incomplete" if status == "cancelled" else status
        response = self._response.build_body(self._builder.items)
        return out + self._encode([{"type": f"response.{name}", "response": response}]) + DONE

    def _build_unfinished(self) -> dict[str, Any]:
        """The response before its end; the stream may have ended already."""
        response = self._response.build_body([])
        response |= {"status": "in_progress", "completed_at": None, "usage": None, "error": None}
        return response | {"incomplete_details": None}

    def _encode(self, events: list[dict[str, Any]]) -> bytes:
        """Number events and encode those after the last one that the reader has.

        A delta counts by its characters, so that a reader can continue within one: the log has the
        text of an answer, but not how it was cut into deltas.
        """
        out = b""
        for event in events:
            delta, before = event.get("delta"), self._number
            self._number += max(len(delta), 1) if delta is not None else 1
            if self._number <= self._after:
                continue
            if delta is not None and before < self._after:
                event = event | {"delta": delta[self._after - before :]}  # noqa: PLW2901
            numbered = {"type": event["type"], "sequence_number": self._number} | event
            out += b"event: %s\ndata: %s\n\n" % (event["type"].encode(), to_json(numbered))
        return out


def _read_status(outcome: Outcome, *, failed: bool) -> tuple[str, str | None]:
    """Return the status, and why a response is incomplete."""
    if outcome.status in {Status.STOPPED, Status.CLIENT_GONE}:
        return "cancelled", None
    if failed or outcome.status not in {Status.COMPLETED, Status.NO_CONTEXT}:
        return "failed", None
    reason = _INCOMPLETE.get(outcome.finish_reason or "")
    return ("incomplete", reason) if reason else ("completed", None)


def _read_choice(stream: Stream, outcome: Outcome) -> dict[str, Any]:
    """The first choice of an ended answer."""
    transcript = stream.transcript
    if transcript is not None and transcript.completion is not None:
        choice: dict[str, Any] = transcript.completion["choices"][0]
        return choice
    if outcome.choices:
        return outcome.choices[0]
    return {"message": {"content": outcome.response}}


def _build_usage(stream: Stream, outcome: Outcome) -> dict[str, Any] | None:
    """The usage under the names of this protocol, with `cost` and `source`."""
    usage = build_usage(stream, outcome)
    if usage is None or outcome.usage is None:
        return None
    return {
        "input_tokens": outcome.usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": outcome.usage.cached_tokens,
            "cache_write_tokens": 0,  # chat completions do not report them
        },
        "output_tokens": outcome.usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": outcome.usage.reasoning_tokens},
        "total_tokens": outcome.usage.total_tokens,
        "cost": usage["cost"],
        "source": usage["source"],
    }


def _complete_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A function with all members that the protocol requires."""
    if tool["type"] != "function":
        return tool
    return {"description": None, "parameters": None, "strict": None} | tool


def _complete_format(text_format: dict[str, Any] | None) -> dict[str, Any]:
    """The format of the text with all members that the protocol requires."""
    if not text_format or text_format["type"] != "json_schema":
        return text_format or {"type": "text"}
    return {"description": None, "strict": False} | text_format
