"""Names of models on the hub: told from paths where nothing is, and asked for once before libraries try six times."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Collection
from pathlib import Path

from gradless.errors import BadInput, unknown
from gradless.lm import checkpoint_files
from gradless.system import hub_requests


def split(source: str) -> tuple[str, str | None]:
    """Return the name and the revision of a hub id.

    Example:
        >>> split("facebook/opt-1.3b@main"), split("gpt2")
        (('facebook/opt-1.3b', 'main'), ('gpt2', None))
    """
    name, _, revision = source.partition("@")
    return name, revision or None


def checked(source: str, known: Collection[str]) -> tuple[str, str | None]:
    """Return the name and the revision of a model that is no local path, known to the hub or at least to its cache.

    Args:
        source: what the user named, where no file or folder is.
        known: names that need no hub, for typing errors.

    Raises:
        BadInput: it is a path or a typing error, or the hub cannot be reached and its cache has no such model.

    Cost: one request, if the cache has no such model.
    """
    path = Path(source).expanduser()
    if path.is_absolute() or source.startswith((".", "~")) or path.suffix == ".gguf" or source.count("/") > 1:
        raise BadInput(f"there is no model at {source}: check the path{_near(path)}")
    name, revision = split(source)
    if "/" not in name and difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.7):
        raise BadInput(unknown("model", name, known))  # a typing error is no reason to call the hub
    if any(_cached(name, revision, file) for file in ("config.json", checkpoint_files.ADAPTER)):
        return name, revision
    if revision is None and name.count("/") == 1 and path.parent.is_dir():
        raise BadInput(
            f"there is no file or folder {source}: check the path{_near(path)} (the hub is not asked, as {path.parent} "
            f"is a folder here; {name}@main asks it)"
        )
    if isinstance(reason := hub_requests.has_file(name, "config.json", revision=revision), str):
        raise BadInput(
            f"there is no file or folder {source}, it is not in the hub's cache here, and the hub cannot be reached "
            f"({reason}): check the path, or the network for a model of the hub"
        )
    return name, revision


def _near(path: Path) -> str:
    """What else is in a folder in which something was not."""
    if not path.parent.is_dir():
        return ""
    names = [one.name for one in path.parent.iterdir() if not one.name.startswith(".")]
    near = difflib.get_close_matches(path.name, sorted(names), n=1, cutoff=0.6)
    return f", did you mean {path.parent / near[0]}?" if near else ""


def fetched(name: str, revision: str | None, file: str) -> Path | None:
    """Return a small file of a model on the hub, from the cache or fetched; None if it has none, or cannot be asked."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    if (path := _cached(name, revision, file)) is not None:
        return path
    with contextlib.suppress(OSError, ValueError, HfHubHTTPError):  # which loading the model tells
        if hub_requests.has_file(name, file, revision=revision) is True:
            return Path(hf_hub_download(name, file, revision=revision))
    return None


def _cached(name: str, revision: str | None, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        path = try_to_load_from_cache(name, file, revision=revision)
    except ValueError:  # no name of the hub
        return None
    return Path(path) if isinstance(path, str) else None
