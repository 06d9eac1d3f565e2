"""`kotae receipts` and `kotae verify`: fetch receipts of answers, and verify them offline."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from service.cli.client import Url, get_json, list_items, open_client
from service.cli.output import Json, make_printable, print_json, print_table
from service.core.accounting.receipts import (
    Receipt,
    ReceiptClaims,
    ReceiptInvalid,
    check_chain,
    decode_base64,
    hash_texts,
    list_gaps,
)
from service.core.errors import KotaeError
from service.core.lazy import LazyModule

if TYPE_CHECKING:
    from service.core.accounting import receipt_keys
else:
    receipt_keys = LazyModule("service.core.accounting.receipt_keys")

KEYS_PATH = "/.well-known/jwks.json"
FILE_BYTES_MAX = 200_000_000
_NUMBERS = ("NUMBER", "TOKENS", "COST")


def receipts(
    answer_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Of this answer; default: all.")
    ] = None,
    url: Url = None,
    user: Annotated[str | None, typer.Option(help="Those of this user; for admins.")] = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="Print the public keys that verify receipts.")
    ] = False,
) -> None:
    """Print receipts as JSON, one per line, for `kotae verify`."""
    with open_client(url) as client:
        if keys:
            print_json([get_json(client, KEYS_PATH)])
        elif answer_id is not None:
            print_json([get_json(client, f"/ai/logs/{answer_id}/receipt")])
        else:
            print_json(list_items(client, "/ai/receipts", **({"user_id": user} if user else {})))


def verify(
    file: Annotated[Path, typer.Argument(help="Receipts as `kotae receipts` prints them.")],
    keys: Annotated[
        Path | None,
        typer.Option(help="The public keys (JWKS). Default: fetched from the service."),
    ] = None,
    url: Url = None,
    answer: Annotated[
        Path | None, typer.Option(help="An answer as JSON, whose texts are compared.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify signatures, chain and texts of receipts. Exit code 1 if anything is wrong."""
    key_set = _read_keys(keys) if keys else receipt_keys.read_key_set(_fetch_keys(url))
    texts = _read_texts(answer) if answer else {}
    verified: list[tuple[str, ReceiptClaims]] = []
    problems: list[str] = []
    rows = []
    for receipt in _read_receipts(file):
        try:
            claims = receipt_keys.verify_receipt(receipt.receipt, key_set)
            compared = _compare_texts(receipt, claims, texts)
        except ReceiptInvalid as error:
            problems.append(f"receipt {receipt.number} of {receipt.user_id}: {error}")
            continue
        verified.append((receipt.receipt, claims))
        rows.append(msgspec.to_builtins(claims) | {"texts_compared": compared})
    problems += check_chain(verified)
    _report(rows, verified, as_json=as_json)
    for problem in problems:
        typer.echo(f"INVALID: {make_printable(problem)}", err=True)
    raise typer.Exit(1 if problems else 0)


def _report(
    rows: list[dict[str, Any]], verified: list[tuple[str, ReceiptClaims]], *, as_json: bool
) -> None:
    """Print the valid receipts, and which ones are absent from the file."""
    if as_json:
        print_json(rows)
        return
    print_table(
        ("NUMBER", "USER", "ANSWER", "TIME", "MODEL", "USAGE", "TOKENS", "COST", "TEXTS"),
        (_list_cells(row) for row in rows),
        right=_NUMBERS,
        empty="no valid receipts",
    )
    for user_id in dict.fromkeys(claims.sub for _, claims in verified):
        numbers = [claims.number for _, claims in verified if claims.sub == user_id]
        for first, last in list_gaps(numbers):
            name = f"receipt {first}" if first == last else f"receipts {first} to {last}"
            typer.echo(f"{name} of {make_printable(user_id)}: not in this file", err=True)


def _list_cells(row: Mapping[str, Any]) -> tuple[object, ...]:
    account = row["answer"]
    counts = account["prompt_tokens"], account["completion_tokens"]
    return (
        row["number"],
        row["sub"],
        account["id"],
        account["created_at"][:19],
        account["model"],
        account["usage_source"],
        "?" if None in counts else sum(counts),
        "?" if account["estimated_cost"] is None else account["estimated_cost"],
        "compared" if row["texts_compared"] else "",
    )


def _read(path: Path) -> bytes:
    """The content of a file. Raises `KotaeError` if it is too large, and `OSError`."""
    if path.stat().st_size > FILE_BYTES_MAX:
        raise KotaeError(f"{path} has more than {FILE_BYTES_MAX} bytes")
    return path.read_bytes()


def _read_keys(path: Path) -> dict[str, Mapping[str, Any]]:
    """The public keys in a file. Raises `KotaeError`."""
    try:
        return receipt_keys.read_key_set(_read(path))
    except ReceiptInvalid as error:
        raise KotaeError(f"{path} is not a JSON Web Key Set") from error


def _fetch_keys(url: str | None) -> bytes:
    with open_client(url) as client:
        return msgspec.json.encode(get_json(client, KEYS_PATH))


def _read_receipts(path: Path) -> Iterator[Receipt]:
    """The receipts of a file, one JSON object per line. Raises `KotaeError`."""
    for n, line in enumerate(_read(path).splitlines(), 1):
        if line.strip():
            try:
                yield msgspec.json.decode(line, type=Receipt)
            except msgspec.DecodeError as error:
                raise KotaeError(f"line {n} of {path} is not a receipt: {error}") from error


def _read_texts(path: Path) -> dict[str, tuple[str, str]]:
    """The prompt and the response of an answer, by its id. Raises `KotaeError`."""
    try:
        answer = msgspec.json.decode(_read(path), type=dict[str, Any])
        return {str(answer["id"]): (str(answer["prompt"]), str(answer["response"]))}
    except (msgspec.DecodeError, KeyError) as error:
        raise KotaeError(f"{path} is not an answer with prompt and response") from error


def _compare_texts(
    receipt: Receipt, claims: ReceiptClaims, texts: Mapping[str, tuple[str, str]]
) -> bool:
    """Whether the texts of this answer were compared. Raises `ReceiptInvalid` if they differ."""
    if claims.answer.id not in texts:
        return False
    if receipt.nonce is None or claims.texts is None:
        raise ReceiptInvalid("its texts are erased and cannot be compared")
    try:
        nonce = decode_base64(receipt.nonce)
    except ValueError as error:
        raise ReceiptInvalid("its nonce is not base64url") from error
    if hash_texts(*texts[claims.answer.id], nonce) != claims.texts:
        raise ReceiptInvalid("the texts are not those of the answer")
    return True
