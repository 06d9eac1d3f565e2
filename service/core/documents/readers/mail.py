"""Reads e-mails with the standard library: subject, sender, recipients, date, and the text."""

from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default

from service.core.documents.readers.extracted import Extracted, Format, TextBuilder, clean_title
from service.core.documents.readers.html import convert_html
from service.core.text.decoding import decode_text

_HEADERS = ("From", "To", "Cc", "Date")
ADDRESSES_CHARACTERS_MAX = 500  # of a header; mailing lists have many recipients


def read_mail(data: bytes, bytes_max: int) -> Extracted:
    """Read a message; attachments are only named. Raises `NotText`, `TooLarge`."""
    message = message_from_bytes(data, policy=default)
    assert isinstance(message, EmailMessage)  # noqa: S101 - for the type checker
    subject = clean_title(message["Subject"])
    builder = TextBuilder(bytes_max)
    builder.add(f"# {subject}\n\n" if subject else "")
    for name in _HEADERS:
        if value := " ".join(str(message[name] or "").split()):
            builder.add(f"- {name}: {value[:ADDRESSES_CHARACTERS_MAX]}\n")
    names = [part.get_filename() or "without a name" for part in message.iter_attachments()]
    builder.add(f"- Attachments: {', '.join(names)}\n" if names else "")
    builder.add("\n" + _read_body(message))
    date = message["Date"]
    time = getattr(date, "datetime", None)
    return Extracted(
        text=builder.build(), format=Format.EMAIL, title=subject, date=time.date() if time else None
    )


def _read_body(message: EmailMessage) -> str:
    body = message.get_body(("plain", "html"))
    if body is None:
        return ""
    content = body.get_payload(decode=True)
    if not isinstance(content, bytes) or not content.strip():
        return ""
    try:
        text = content.decode(body.get_content_charset() or "utf-8")
    except (LookupError, UnicodeError):
        text, _ = decode_text(content)
    return convert_html(text) if body.get_content_type() == "text/html" else text
