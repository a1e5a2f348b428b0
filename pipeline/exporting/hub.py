"""The format ``hub``: the files of a dataset, uploaded to the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from pipeline.dataset.layout import CLAIM, PROVENANCE, SIGNATURE, dataset_names
from pipeline.errors import TryAgainError, UserError, first_line
from pipeline.exporting.source import ADVICE, Source, changed
from pipeline.redaction import REDACTED, redact_secrets
from pipeline.storage import digest_file

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_OF_THE_HUB = {".gitattributes"}  # a new repository has this file


def upload(source: Source, out: str, *, public: bool = False) -> str:
    """Upload the files of a dataset that its provenance names, in one commit.

    The repository is made if there is none. It is private, because the images can reveal the
    training data. A file that the provenance does not name is not uploaded.

    Args:
        source: all images of a dataset in a local folder.
        out: the name of the repository, ``ORG/NAME``.
        public: make the new repository public.

    Returns:
        The address of the dataset.

    Raises:
        UserError: the name is wrong, files were changed, or the repository has files.
        TryAgainError: the Hub cannot be reached, or it refuses.
    """
    if not _NAME.fullmatch(out):
        raise UserError(f"{out} is no name of a repository of the Hub: write ORG/NAME")
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise UserError(
            "the Hub needs the package huggingface_hub: pip install -c constraints.txt -e '.[hub]'"
        ) from error
    files = _checked_files(source)
    try:
        return _commit(HfApi(), files, out, public)
    except UserError:
        raise
    except Exception as error:  # the library raises errors of several others
        raise TryAgainError(
            f"the Hub did not take {out}: {_without_token(error)}: check the name, and the token "
            "that `hf auth login` or HF_TOKEN sets"
        ) from None


def _checked_files(source: Source) -> dict[str, Path]:
    """The files to upload by name, each with the digest in the provenance."""
    root, plan = source.dataset.root, source.dataset.plan
    if not isinstance(root, Path):
        raise UserError(f"{root} is no local folder: copy the dataset to one, and export from it")
    if not source.chosen.all():
        raise UserError("the Hub gets the whole dataset: export without a number of images")
    rounds = max(round_ for round_, _, _ in plan.bounds)
    files = {}
    for name in tqdm(sorted(dataset_names(len(plan), rounds, captions=True)), desc="check"):
        if name not in source.digests:
            continue
        if not (root / name).is_file():
            raise UserError(f"{root / name} is missing: {ADVICE}")
        if digest_file(root / name) != source.digests[name]:
            raise changed(name)
        files[name] = root / name
    others = {name: root / name for name in (PROVENANCE, SIGNATURE, CLAIM)}
    return files | {name: path for name, path in others.items() if path.is_file()}


def _commit(api: HfApi, files: dict[str, Path], out: str, public: bool) -> str:
    """Make the repository and one commit of all files."""
    from huggingface_hub import CommitOperationAdd

    address = api.create_repo(out, repo_type="dataset", private=not public, exist_ok=True)
    present = set(api.list_repo_files(out, repo_type="dataset")) - _OF_THE_HUB
    if present:
        raise UserError(
            f"{out} has files on the Hub, such as {min(present)}: name a new dataset, since "
            "nothing is overwritten"
        )
    operations = [CommitOperationAdd(name, path) for name, path in files.items()]
    message = "Upload a dataset of dreamshard"
    api.create_commit(out, operations, repo_type="dataset", commit_message=message)
    return str(address)


def _without_token(error: Exception) -> str:
    from huggingface_hub import get_token

    text, token = first_line(error), get_token()
    return redact_secrets(text.replace(token, REDACTED) if token else text)
