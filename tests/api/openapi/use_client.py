"""Use a generated client: `python use_client.py URL KEY`, with the client in PYTHONPATH.

Runs in the environment of the generator, which lacks the dependencies of the service.
"""

import sys

from kotae_client import AuthenticatedClient, models
from kotae_client.api.answers import create_answer, stream_answer
from kotae_client.api.documents import search_documents, upload_documents
from kotae_client.api.logs import list_logs
from kotae_client.api.quotas import get_quota, put_quota


def main(url: str, key: str) -> None:
    """Upload, search, ask, stream, read the log, and write a quota back as it was read."""
    client = AuthenticatedClient(base_url=url, token=key)
    document = models.TextBody(title="Opening hours", text="The library opens at nine.")
    upload = upload_documents.sync(client=client, body=document)
    assert isinstance(upload, models.UploadResult), upload

    results = search_documents.sync(client=client, q="When does the library open?")
    assert isinstance(results, models.SearchResults), results
    assert results.items[0].document_id == upload.document_id

    question = models.AskBody(prompt="When does the library open?")
    answer = create_answer.sync(client=client, body=question)
    assert isinstance(answer, models.Answer), answer
    assert answer.sources[0].sentence == [0, len(document.text)]

    stream = stream_answer.sync(client=client, body=question)
    assert "event: done" in stream, stream

    page = list_logs.sync(client=client)
    assert isinstance(page, models.LogRowPage), page
    row = page.items[-1]  # whose sources have no texts in lists
    assert (row.id, row.response, row.total_tokens) == (
        answer.id,
        answer.response,
        answer.total_tokens,
    )

    quota = get_quota.sync("alice", client=client)
    assert isinstance(quota, models.UserQuota), quota
    body = models.QuotaBody.from_dict(quota.to_dict())
    settings = put_quota.sync("alice", client=client, body=body)
    assert isinstance(settings, models.UserSettings), settings

    failure = create_answer.sync(
        client=client, body=models.AskBody(prompt="Why?", model="no-such-model")
    )
    assert isinstance(failure, models.Problem), failure
    assert failure.code == "unknown_model"


if __name__ == "__main__":
    main(*sys.argv[1:])
