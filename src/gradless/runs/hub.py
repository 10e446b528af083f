"""Uploads of a saved folder to the Hugging Face hub, when the user asked for one and only then."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradless.errors import BadInput

Say = Callable[[str], None]


def check(repo_id: str) -> None:
    """Check what can be known without the network: the library, the name, a token.

    Raises:
        BadInput: huggingface_hub is missing, the name is not valid, or there is no token.
    """
    try:
        from huggingface_hub import constants, get_token
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
    except ModuleNotFoundError:
        raise BadInput("huggingface_hub is not installed: pip install 'gradless[lm]'") from None
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise BadInput(f"--push {repo_id} is no name on the hub ({_first_line(error)}): write OWNER/NAME") from None
    if "/" not in repo_id:  # the hub would add the owner, but the card says where to load the model from
        raise BadInput(f"--push {repo_id} leaves out whose it is: write OWNER/{repo_id}")
    if constants.HF_HUB_OFFLINE or os.environ.get("TRANSFORMERS_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES:
        raise BadInput("--push needs the hub, but HF_HUB_OFFLINE is set: unset it")
    if not get_token():
        raise BadInput("--push needs a token with write access: run 'hf auth login', or set HF_TOKEN")


def push(folder: Path, repo_id: str, *, public: bool = False, say: Say = print) -> str:
    """Upload a folder as a model, to a private repository unless ``public``.

    A repository that exists is used; files of the same names are replaced, others stay.

    Returns:
        The address of the model.

    Raises:
        BadInput: no access, no network, a public repository where none was asked for.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # The hub's errors are kinds of those of its HTTP library, which is another one in other releases.
    failures: Any = (OSError, *HfHubHTTPError.__bases__)
    again = f"nothing is lost, try again with 'gradless replay RUN_DIR --push {repo_id}'"
    try:
        api = HfApi()
        address = api.create_repo(repo_id, exist_ok=True, private=not public)
        private = api.model_info(repo_id).private  # a repository that existed stays what it was
        if public and private:
            say(f"{repo_id} exists and stays private; its settings page on the hub can make it public")
        elif not public and not private:
            raise BadInput(f"{repo_id} is public: add --public if everybody may see this model, or choose another name")
        say(f"uploading to {address}")
        api.upload_folder(repo_id=repo_id, folder_path=str(folder), commit_message="Upload a model tuned with gradless")
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else None
        if code in (401, 403):
            fix = "log in with a token that may write there ('hf auth login')"
            raise BadInput(f"the hub refused to write {repo_id} (HTTP {code}): {fix}") from error
        raise BadInput(f"the hub refused {repo_id} ({_first_line(error)}): {again}") from error
    except failures as error:
        raise BadInput(f"the hub could not be reached ({_first_line(error)}): check the network; {again}") from error
    return str(address)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".:") or type(error).__name__
