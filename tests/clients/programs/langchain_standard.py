"""LangChain's standard tests of a chat model, run by pytest in the environment of the client."""

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestKotae(ChatModelIntegrationTests):
    """`ChatOpenAI` with Kotae as its service. Base URL and key are in the environment."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        """The class under test."""
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """Its arguments."""
        return {"model": "fake-model", "stream_usage": True}

    @property
    def supports_json_mode(self) -> bool:
        """Whether `json_object` is supported."""
        return True

    @property
    def model_override_value(self) -> str:
        """Another model that the service has."""
        return "other-model"
