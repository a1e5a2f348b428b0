"""Check who signed a dataset, and that every file is the one that was signed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from pipeline.dataset.layout import CLAIM, PLACEHOLDERS, PROVENANCE, SIGNATURE, is_lock, marker_of
from pipeline.dataset.lock import locked
from pipeline.dataset.odd_files import odd_files
from pipeline.dataset.signature import is_signed, payload_of, sign
from pipeline.errors import UserError
from pipeline.storage import (
    Location,
    digest_file,
    listing,
    read_bytes,
    read_many,
    size_of,
    write_bytes,
)
from pipeline.synthesis.outputs import claim_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

LARGEST = 2**32  # bytes of a provenance or an envelope
AGAIN = "run verify, then sign again"


class _Digest(BaseModel):
    model_config = ConfigDict(strict=True)
    sha256: str


class _Subject(BaseModel):
    model_config = ConfigDict(strict=True)
    name: str
    digest: _Digest


class _Statement(BaseModel):
    model_config = ConfigDict(strict=True)
    subject: list[_Subject]


def authenticate(root: Location, key: Ed25519PublicKey) -> list[str]:
    """Check a dataset without its parameters and its teacher.

    Args:
        root: the folder of the dataset.
        key: the public key of the signer whom the reader trusts.

    Returns:
        One line for each problem: a missing or wrong signature, a file that was changed or lost,
        and a file that was not signed.
    """
    problems = signature_problems(root, key)
    return problems if problems else subject_problems(root)


def signature_problems(root: Location, key: Ed25519PublicKey | None) -> list[str]:
    """Find what is wrong with the signature of a dataset.

    Args:
        root: the folder of the dataset.
        key: the public key of the signer; None checks only that an existing signature is of
            today's provenance.
    """
    provenance, envelope = read_many([root / PROVENANCE, root / SIGNATURE], LARGEST)
    if envelope is None:
        if key is None:
            return []
        if size_of(root / SIGNATURE) >= 0:
            return [f"{SIGNATURE} is not a file of a signature's size: do not trust the dataset"]
        return [f"the dataset is unsigned: there is no {SIGNATURE}"]
    payload = payload_of(envelope)
    if payload is None:
        return [f"{SIGNATURE} is not a DSSE envelope of an in-toto statement: {AGAIN}"]
    if key is not None and not is_signed(envelope, key):
        return [f"{SIGNATURE} is not signed by this key, or was changed: do not trust the dataset"]
    if payload != provenance:
        return [f"{SIGNATURE} is outdated: it signs another {PROVENANCE}: {AGAIN}"]
    return []


def subject_problems(root: Location) -> list[str]:
    """Compare every file of a dataset with the digests in its provenance."""
    (text,) = read_many([root / PROVENANCE], LARGEST)
    try:
        statement = _Statement.model_validate_json(text or b"")
    except ValueError:
        return [f"{PROVENANCE} is missing, or it is not an in-toto statement"]
    digests = {subject.name: subject.digest.sha256 for subject in statement.subject}
    return list(_file_problems(root, digests))


def sign_dataset(
    root: Location, get_key: Callable[[], Ed25519PrivateKey]
) -> tuple[int, Ed25519PrivateKey]:
    """Sign the provenance of a dataset whose files are those that it names.

    Args:
        root: the folder of the dataset.
        get_key: returns the private key. It is called only if the dataset can be signed.

    Returns:
        The number of files that the signature covers, without the provenance itself, and the key.

    Raises:
        UserError: the dataset is not finished, or a file was changed.
    """
    with locked(root, "paths.dataset"):
        problems = subject_problems(root)
        if problems:
            raise UserError(
                f"{root} cannot be signed: {problems[0]}: move files of your own elsewhere, then "
                "run verify --repair"
            )
        (text,) = read_many([root / PROVENANCE], LARGEST)
        key = get_key()
        write_bytes(root / SIGNATURE, sign(text or b"", key))
    return len(_Statement.model_validate_json(text or b"").subject), key


def _file_problems(root: Location, digests: dict[str, str]) -> Iterator[str]:
    signed = {*digests, PROVENANCE, SIGNATURE}
    files, odd = listing(root), odd_files(root, signed)
    for name, kind in odd.items():
        yield f"{name} is {kind}, not a file"
    for name, digest in digests.items():
        if name in odd:
            continue
        if name not in files:
            yield f"{name} is missing"
        elif digest_file(root / name) != digest:
            yield f"{name} was changed: its sha256 is not that of {PROVENANCE}"
    if CLAIM not in files:
        yield f"{CLAIM} is missing"
    elif read_bytes(root / CLAIM) != claim_bytes("dataset"):
        yield f"{CLAIM} was changed: it is not the claim of a dataset"
    for name in files:
        ours = name == CLAIM or name in PLACEHOLDERS or marker_of(name) or is_lock(name)
        if name not in signed and name not in odd and not ours:
            yield f"{name} is not named by {PROVENANCE}"
