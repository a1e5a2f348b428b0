"""Keep secrets and private paths out of everything that is published or logged."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

REDACTED = "redacted"

_SECRET_KEY = re.compile(
    r"passw|passphrase|secret|token|credential|bearer|cookie|signature|api_?key|"
    r"(^|[^a-z])(auth|authorization|key|pwd|pw|pat|pin|sas|sig|dsn)($|[^a-z])",
    re.IGNORECASE,
)
_NUMBER_KEY = re.compile(r"passw|passphrase|secret|(^|[^a-z])pin($|[^a-z])", re.IGNORECASE)
_TOKENS = re.compile(
    r"hf_\w{8,}|gh[pousr]_\w{8,}|github_pat_\w{8,}|glpat-[\w-]{8,}|(?:AKIA|ASIA)[0-9A-Z]{12,}|"
    r"xox[a-z]-[\w-]{8,}|sk-[\w-]{16,}|AIza[\w-]{20,}|pypi-[\w-]{16,}|dckr_pat_[\w-]{8,}|"
    r"eyJ[\w-]{8,}\.[\w-]+\.[\w-]*|-----BEGIN [A-Z ]*PRIVATE KEY-----.*|"
    r"(?:Bearer|Basic)\s+[\w+/=.~-]{8,}",
    re.DOTALL,
)
_USER = re.compile(r"(\w+://)[^/\s]+@")
_PARAMETER = re.compile(r"([?&;](?:[\w-]*[_-])?(\w+)=)[^&;#\s]+")
_HOME = re.compile(r"(?:/home|/Users)/[^/\s]+/|(?<![\w.])/(?:root)/|[A-Za-z]:\\Users\\[^\\\s]+\\")


def redact_secrets(text: str) -> str:
    """Remove tokens and credentials of URLs from a text."""
    text = _USER.sub(rf"\1{REDACTED}@", _TOKENS.sub(REDACTED, text))
    return _PARAMETER.sub(_without_value, text)


def redact_text(text: str) -> str:
    """Remove tokens, credentials of URLs and the folder of a user's home from a text."""
    return _HOME.sub("~/", redact_secrets(text))


def redact(value: Any, key: str = "") -> Any:
    """Copy a value of the parameters without its secrets and without folders of this machine.

    A text is redacted if the name of its key looks like that of a secret, and in a text every
    token and every URL's credentials are. An absolute path becomes its last name.

    Args:
        value: a JSON value.
        key: the key that leads to the value.

    Example:
        >>> redact({"width": 4, "token": "hf_abcdefgh", "file": "/data/mine/net.json"})
        {'width': 4, 'token': 'redacted', 'file': 'net.json'}
    """
    if isinstance(value, list | tuple):
        return [redact(inner, key) for inner in value]
    if _SECRET_KEY.search(_words(key)) and not (
        value is None or (isinstance(value, bool | int | float) and not _NUMBER_KEY.search(key))
    ):
        return REDACTED
    if isinstance(value, dict):
        return {_text_key(name): redact(inner, f"{name}") for name, inner in value.items()}
    return _redact_path(value) if isinstance(value, str) else value


def _text_key(name: Any) -> Any:
    return redact_text(name) if isinstance(name, str) else name


def _words(key: str) -> str:
    """A key with its words apart: ``hfToken`` as ``hf_Token``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key)


def _redact_path(text: str) -> str:
    if text.startswith(("/", "~", "file://")) and "\n" not in text:
        return redact_text(PurePosixPath(text).name) or text
    if re.match(r"[A-Za-z]:[\\/]|\\\\", text):
        return redact_text(PureWindowsPath(text).name) or text
    return redact_text(text)


def _without_value(match: re.Match[str]) -> str:
    secret = _SECRET_KEY.search(match[1][1:-1])
    return f"{match[1]}{REDACTED}" if secret else match[0]
