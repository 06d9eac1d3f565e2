"""Secret keys: parsing `KOTAE_SECRET_KEY`, and deriving a key for each purpose; webhook secrets.

A key that signs one kind of message is of no use for another kind.
"""

import base64
import binascii
import hmac

KEY_BYTES = 32
WEBHOOK_BYTES_MIN, WEBHOOK_BYTES_MAX = 24, 64  # as recommended by Standard Webhooks
_WEBHOOK_PREFIX = "whsec_"
KEYS_MAX = 2  # during a rotation: the new one, which signs, and the one that it replaces


def parse_secret_keys(text: str) -> list[bytes]:
    """Return the keys of a setting, separated by commas; the first one signs.

    Each has 32 bytes, as hexadecimal digits or base64url. Raises `ValueError`, without the text.
    """
    keys = [_decode_key(part.strip()) for part in text.split(",") if part.strip()]
    if not 1 <= len(keys) <= KEYS_MAX:
        raise ValueError(f"KOTAE_SECRET_KEY must be one key, or {KEYS_MAX} separated by a comma")
    return keys


def _decode_key(text: str) -> bytes:
    try:
        if len(text) == KEY_BYTES * 2:
            return bytes.fromhex(text)
        key = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(
            f"KOTAE_SECRET_KEY must have {KEY_BYTES} bytes as hexadecimal digits or base64url; "
            "generate one with `openssl rand -hex 32`"
        ) from None
    return key


def derive_key(key: bytes, purpose: str) -> bytes:
    """Derive the key of a purpose: HKDF-Expand of RFC 5869 §2.3 with SHA-256, one block."""
    return hmac.digest(key, purpose.encode() + b"\x01", "sha256")


def parse_webhook_secret(secret: str) -> bytes:
    """The key in a secret of Standard Webhooks. Raises `ValueError`, without the secret."""
    form = f"{_WEBHOOK_PREFIX} and {WEBHOOK_BYTES_MIN} to {WEBHOOK_BYTES_MAX} bytes in base64"
    try:
        key = base64.b64decode(secret.removeprefix(_WEBHOOK_PREFIX), validate=True)
    except ValueError as error:
        raise ValueError(f"it is not {form}") from error
    is_long_enough = WEBHOOK_BYTES_MIN <= len(key) <= WEBHOOK_BYTES_MAX
    if not (secret.startswith(_WEBHOOK_PREFIX) and is_long_enough):
        raise ValueError(f"it is not {form}")
    return key
