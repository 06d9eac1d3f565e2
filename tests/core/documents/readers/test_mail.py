"""E-mails."""

import datetime as dt
from email.message import EmailMessage

from service.core.documents.readers.mail import read_mail


def build_mail(text: str) -> EmailMessage:
    """A message with encoded headers."""
    message = EmailMessage()
    message["From"] = "Ane <ane@example.org>"
    message["To"] = "Bo <bo@example.org>"
    message["Subject"] = "保証 warranty"
    message["Date"] = "Mon, 06 May 2024 07:08:09 +0900"
    message.set_content(text, charset="iso-2022-jp")
    return message


def test_headers_and_text_are_read() -> None:
    """The subject is the title, and the date that of the message."""
    extracted = read_mail(build_mail("二年です。\n").as_bytes(), 1000)

    assert (extracted.title, extracted.date) == ("保証 warranty", dt.date(2024, 5, 6))
    assert extracted.text == (
        "# 保証 warranty\n\n- From: Ane <ane@example.org>\n- To: Bo <bo@example.org>\n"
        "- Date: Mon, 06 May 2024 07:08:09 +0900\n\n二年です。"
    )


def test_attachments_are_named() -> None:
    """Their content is not read."""
    message = build_mail("See below.")
    message.add_attachment(b"\0secret", maintype="image", subtype="png", filename="photo.png")
    text = read_mail(message.as_bytes(), 1000).text

    assert "- Attachments: photo.png\n\nSee below." in text
    assert "secret" not in text


def test_html_is_read_without_markup() -> None:
    """If there is no plain text."""
    message = build_mail("x")
    message.set_content("<p>Two<script>x()</script> years</p>", subtype="html")

    assert read_mail(message.as_bytes(), 1000).text.endswith("\n\nTwo years")


def test_an_unknown_encoding_is_detected() -> None:
    """By the bytes of the text."""
    raw = b"Subject: x\nContent-Type: text/plain; charset=wrong\n\n" + "灯台".encode()

    assert read_mail(raw, 1000).text == "# x\n\n灯台"
