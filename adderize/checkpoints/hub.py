"""Folders on the Hugging Face Hub: ``hf://owner/name``, or ``hf://owner/name@revision``."""

from __future__ import annotations

import re
from pathlib import Path

from adderize.arguments import own_path
from adderize.checkpoints.manifest import MANIFEST, WEIGHTS
from adderize.errors import AdderizeError, one_line

PREFIX = "hf://"
_NAME = re.compile(r"hf:/{1,2}(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@\s]+))?")


def is_on_hub(source: str | Path) -> bool:
    # A Path has lost one of the slashes.
    return str(source).startswith("hf:/")


def repository_of(source: str | Path) -> str:
    """``owner/name``.

    Raises:
        AdderizeError: something else than ``hf://owner/name[@revision]``.
    """
    return _parts(source)[0]


def local_folder(source: str | Path) -> Path:
    """A folder as it is; of one on the Hub its copy on this machine, downloaded where it is new.

    ``~`` is the user's own folder. A file of a saved model stands for its folder: the weights alone
    do not say which layers they belong to.

    Raises:
        AdderizeError: no such repository or revision, one without a saved model, no network.
    """
    if not is_on_hub(source):
        path = own_path(source)
        of_a_saved_model = path.name in (MANIFEST, WEIGHTS) and (path.parent / MANIFEST).is_file()
        return path.parent if of_a_saved_model else path
    repository, revision = _parts(source)
    folder = _downloaded(repository, revision, f"{PREFIX}{str(source)[3:].lstrip('/')}")
    if not (folder / MANIFEST).is_file():
        raise AdderizeError(
            f"{repository} on the Hugging Face Hub has no {MANIFEST}; expected a folder that "
            "save_model wrote"
        )
    return folder


def _parts(source: str | Path) -> tuple[str, str | None]:
    found = _NAME.fullmatch(str(source))
    if found is None:
        raise AdderizeError(
            f"{str(source)!r} is no network on the Hugging Face Hub; expected "
            "hf://owner/name or hf://owner/name@revision"
        )
    return found["repository"], found["revision"]


def _downloaded(repository: str, revision: str | None, source: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        files = [MANIFEST, WEIGHTS]
        return Path(snapshot_download(repository, revision=revision, allow_patterns=files))
    except errors.RevisionNotFoundError as error:
        raise AdderizeError(
            f"{repository} on the Hugging Face Hub has no revision {revision}; expected a branch, "
            "a tag or a commit"
        ) from error
    except errors.GatedRepoError as error:
        raise AdderizeError(
            f"{repository} on the Hugging Face Hub asks for its terms to be accepted: do so on its "
            "page, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise AdderizeError(
            f"there is no {repository} on the Hugging Face Hub, or it is private: compare the "
            "name, or `hf auth login`"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise AdderizeError(
            f"{source} is not on this machine yet, and the Hugging Face Hub cannot be reached: "
            "connect this machine, or copy the folder here and name it"
        ) from error
    except Exception as error:
        raise AdderizeError(f"{source} cannot be downloaded: {one_line(error)}") from error
