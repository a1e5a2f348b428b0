"""Sign the provenance of a dataset, and check the signature: DSSE envelopes with Ed25519.

The envelope (https://github.com/secure-systems-lab/dsse) contains the bytes of ``provenance.json``,
an in-toto statement with the digest of every other file of the dataset. Who trusts the public key
therefore notices any change. Needs the package ``cryptography``.
"""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from pipeline.errors import UserError
from pipeline.local_files import read_local
from pipeline.storage import digest_bytes, json_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

MOST_KEY_BYTES = 2**20
PAYLOAD_TYPE = "application/vnd.in-toto+json"


class _Signature(BaseModel):
    model_config = ConfigDict(strict=True)
    keyid: str = ""
    sig: str


class _Envelope(BaseModel):
    model_config = ConfigDict(strict=True)
    payloadType: str
    payload: str
    signatures: list[_Signature]


def pre_authentication_encoding(kind: str, payload: bytes) -> bytes:
    """The bytes that are signed: the PAE of the DSSE protocol, version 1.

    Example:
        >>> pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
        b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    encoded = kind.encode()
    return b"DSSEv1 %d %s %d %s" % (len(encoded), encoded, len(payload), payload)


def sign(payload: bytes, key: Ed25519PrivateKey) -> bytes:
    """The envelope of an in-toto statement, as JSON.

    Args:
        payload: the bytes of the statement.
        key: the private key.
    """
    signature = key.sign(pre_authentication_encoding(PAYLOAD_TYPE, payload))
    return json_bytes(
        {
            "payloadType": PAYLOAD_TYPE,
            "payload": base64.b64encode(payload).decode(),
            "signatures": [
                {"keyid": key_id(key.public_key()), "sig": base64.b64encode(signature).decode()}
            ],
        }
    )


def payload_of(envelope: bytes) -> bytes | None:
    """The statement in an envelope, whoever signed it; None where there is no such envelope."""
    found = _parse(envelope)
    return None if found is None else found[0]


def is_signed(envelope: bytes, key: Ed25519PublicKey) -> bool:
    """Whether one of the envelope's signatures is by this key."""
    from cryptography.exceptions import InvalidSignature

    found = _parse(envelope)
    if found is None:
        return False
    payload, signatures = found
    for signature in signatures:
        try:
            key.verify(signature, pre_authentication_encoding(PAYLOAD_TYPE, payload))
        except InvalidSignature:
            continue
        return True
    return False


def key_id(key: Ed25519PublicKey) -> str:
    """The SHA-256 of a public key, which names it in envelopes."""
    return digest_bytes(key.public_bytes_raw())


def new_key(path: Path) -> Ed25519PrivateKey:
    """Make a key: the private one in ``path``, for its owner alone, the public one in ``path.pub``.

    Raises:
        UserError: one of the files exists, or cannot be written.
    """
    _need_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    other = path.with_name(f"{path.name}.pub")
    for file in (path, other):
        if file.exists():
            raise UserError(f"--new-key {path}: {file} exists: name a new file, or use --key")
    try:
        for file, data, mode in ((path, private, 0o600), (other, public, 0o644)):
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(handle, "wb") as opened:
                opened.write(data)
    except OSError as error:
        raise UserError(f"--new-key {path} cannot be written: {error.strerror}") from error
    return key


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key in PEM format, as :func:`new_key` and ``openssl genpkey`` write it.

    Raises:
        UserError: the file is missing, or holds no such key.
    """
    _need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read(path)
    try:
        key = load_pem_private_key(data, None)
    except TypeError as error:
        raise UserError(
            f"--key {path} is encrypted: decrypt it first, with `openssl pkey -in {path} -out FILE`"
        ) from error
    except Exception as error:
        raise UserError(
            f"--key {path} holds no private key in PEM format: make one with --new-key FILE"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"--key {path} is not an Ed25519 key: make one with --new-key FILE")
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key in PEM format.

    Raises:
        UserError: the file is missing, or holds no such key.
    """
    _need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _read(path)
    try:
        key = load_pem_public_key(data)
    except Exception as error:
        raise UserError(
            f"--key {path} holds no public key in PEM format: name the file that ends in .pub"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(
            f"--key {path} is not an Ed25519 key, so it cannot have signed a dataset: "
            "name the file that ends in .pub"
        )
    return key


def _read(path: Path) -> bytes:
    try:
        return read_local(path, MOST_KEY_BYTES)
    except OSError as error:
        raise UserError(f"--key {path} cannot be read: {error.strerror}") from error


def _parse(envelope: bytes) -> tuple[bytes, list[bytes]] | None:
    """The payload and the signatures of an envelope of an in-toto statement."""
    try:
        found = _Envelope.model_validate_json(envelope)
        payload = base64.b64decode(found.payload, validate=True)
        signatures = [base64.b64decode(each.sig, validate=True) for each in found.signatures]
    except (ValueError, binascii.Error):
        return None
    return (payload, signatures) if found.payloadType == PAYLOAD_TYPE else None


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise UserError(
            "signatures need the package cryptography: pip install -c constraints.txt -e '.[sign]'"
        ) from error
