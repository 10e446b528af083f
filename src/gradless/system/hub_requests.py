"""One request to the Hugging Face hub, before its library tries each file six times within half a minute."""

from __future__ import annotations

from typing import Any, cast


def has_file(name: str, file: str, *, revision: str | None = None, kind: str = "model") -> bool | str:
    """Return whether something on the hub has a file, or why the hub cannot be asked.

    Args:
        name: ``owner/name``.
        file: its path there.
        revision: branch, tag or commit.
        kind: model or dataset.

    Cost: one request.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        return HfApi().file_exists(name, file, repo_type=kind, revision=revision)
    except (HfHubHTTPError, ValueError):  # it answered, or it is no name
        return False
    except (OSError, *cast(Any, HfHubHTTPError.__bases__)) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:100].rstrip(" .:;")
