"""A folder to a hub repository, through huggingface_hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from limbeck.errors import RecipeError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def check(repository: str) -> None:
    """Refuse what cannot be pushed before anything is written.

    Raises:
        RecipeError: not `owner/name`, or huggingface_hub is not installed.
    """
    import importlib.util

    if not _REPOSITORY.fullmatch(repository):
        raise RecipeError(f"--push '{repository}': a repository is owner/name, for example my-lab/digits-student.")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise RecipeError("--push needs huggingface_hub: pip install 'limbeck[export]', then: hf auth login")


def push(folder: Path, repository: str, message: str) -> str:
    """Create the repository if it is not there, upload the folder in one commit, and give its address.

    HF_ENDPOINT and HF_TOKEN (or `hf auth login`) say where and as whom.

    Raises:
        RecipeError: the hub cannot be reached, or refuses; the folder stays.
    """
    check(repository)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    transport: Any = HfHubHTTPError.__mro__[
        1
    ]  # the base of all errors of whichever HTTP library this version is built on
    api = HfApi()
    try:
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except (transport, LocalTokenNotFoundError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(
            f"{repository} could not be pushed to {api.endpoint}: {first} The export is in {folder}; log in with hf auth login and run the same command again."
        ) from error
    return str(address)
