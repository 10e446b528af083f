"""Data sets of the Hugging Face hub, fetched through `datasets` when a user names them, and never else.

``hub:owner/name/configuration@revision:split`` names one; configuration, revision and split may be left out.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from gradless.errors import BadInput
from gradless.system import hub_requests

PREFIX: Final = "hub:"
SCRIPTLESS: Final = "refs/convert/parquet"
"""The hub's branch with a Parquet copy of a data set whose loading script `datasets` does not run."""
FORM: Final = re.compile(
    r"hub:(?P<repo>[^/@:\s]+(?:/[^/@:\s]+)?)(?:/(?P<config>[^@:]+))?(?:@(?P<revision>[^:]+))?(?::(?P<split>.+))?"
)
COMMIT: Final = re.compile(r"[0-9a-f]{40}")


class Name(NamedTuple):
    """What a name of a data set on the hub says."""

    repo: str
    config: str | None = None
    revision: str | None = None
    split: str | None = None

    def __str__(self) -> str:
        parts = (("", self.repo), ("/", self.config), ("@", self.revision), (":", self.split))
        return PREFIX + "".join(f"{sign}{part}" for sign, part in parts if part)


def is_name(source: object) -> bool:
    """Return whether a source of rows is a name of the hub."""
    return str(source).startswith(PREFIX)


def parse(source: str) -> Name:
    """Return the parts of a name.

    Raises:
        BadInput: it is none.

    Example:
        >>> parse("hub:nyu-mll/glue/sst2@main:validation")
        Name(repo='nyu-mll/glue', config='sst2', revision='main', split='validation')
        >>> parse("hub:stanfordnlp/imdb").split is None
        True
    """
    match = FORM.fullmatch(source)
    if match is None:
        raise BadInput(f"'{source}' is no name of a data set on the hub: write hub:owner/name or hub:owner/name:split")
    return Name(**match.groupdict())


def load(name: Name, instead: str = "give local files") -> Any:
    """Return a `datasets.DatasetDict` of all splits, or one `datasets.Dataset` if the split is a slice of one.

    Cost: a download, once; then it comes from the cache of `datasets`, though the hub is asked whether it changed
    unless a commit is named.

    Args:
        name: the data set.
        instead: what to do without it, for the sentences.

    Raises:
        BadInput: `datasets` is missing; no network; no such data set, or one that needs a login; the cache holds
            another revision than the one that is asked for.
    """
    library = need_datasets(str(name), instead)
    sliced = name.split if name.split and set("[+") & set(name.split) else None
    repo = f"hf://datasets/{name.repo}" if Path(name.repo).exists() else name.repo  # a folder of that name is not meant
    asked = {key: value for key, value in (("revision", name.revision), ("split", sliced)) if value is not None}
    with _reachable(name, instead):
        _check_reach(name, library)
        try:
            loaded = library.load_dataset(repo, name.config, **asked)
        except RuntimeError as error:
            if "script" not in str(error) or name.revision is not None:
                raise
            loaded = library.load_dataset(repo, name.config, **asked, revision=SCRIPTLESS)
    if name.revision and COMMIT.fullmatch(name.revision) and commit(loaded) not in (None, name.revision):
        raise BadInput(f"{name}: the hub is out of reach, and the cache holds revision {commit(loaded)}: go online")
    return loaded


def commit(loaded: Any) -> str | None:
    """Return the commit of the hub that a data set was read from, if its cache tells."""
    for one in loaded.values() if isinstance(loaded, dict) else [loaded]:
        for file in one.cache_files:
            if COMMIT.fullmatch(folder := Path(file["filename"]).parent.name):
                return folder
        for address in one.info.download_checksums or ():
            if commit := re.search(r"@([0-9a-f]{40})/", address):
                return commit[1]
    return None


def pinned(source: str, recorded: str = "") -> str:
    """Return a name with the commit that it stands for; other sources, and names that have one, stay as they are.

    Args:
        source: as a user wrote it.
        recorded: what a run that goes on has recorded; its commit stays if ``source`` names no revision.

    Raises:
        BadInput: as `load`.
    """
    if not is_name(source):
        return source
    name = parse(source)
    if name.revision is None and is_name(recorded) and parse(recorded)._replace(revision=None) == name:
        return recorded
    if name.revision and COMMIT.fullmatch(name.revision):
        return source
    return str(name._replace(revision=commit(load(name)) or name.revision))


def need_datasets(what: object, instead: str = "give a CSV or JSONL file") -> Any:
    """Return the module `datasets`.

    Raises:
        BadInput: it is not installed; the message names what asked for it.
    """
    try:
        import datasets
    except ImportError as error:
        fix = f"pip install 'gradless[data]', or {instead}"
        raise BadInput(f"reading {what} needs the package 'datasets': {fix}") from error
    return datasets


def _check_reach(name: Name, library: Any) -> None:
    """Fail at once where a data set is not in the cache and the hub cannot be asked."""
    cache = getattr(getattr(library, "config", None), "HF_DATASETS_CACHE", None)
    if cache is None or (Path(cache) / name.repo.replace("/", "___")).exists():
        return
    if isinstance(reason := hub_requests.has_file(name.repo, "README.md", kind="dataset"), str):
        raise ConnectionError(reason)


@contextlib.contextmanager
def _reachable(name: Name, instead: str) -> Iterator[None]:
    """Tell in one sentence why the hub does not give a data set."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # whatever the library, the network or a damaged data set does
        raise BadInput(_sentence(name, error, instead)) from error


def _sentence(name: Name, error: Exception, instead: str) -> str:
    import huggingface_hub.constants

    text = " ".join(str(error).split())
    kind = type(error).__name__
    if configs := re.search(r"[Aa]vailable(?: configs)?(?: in the cache)?: (\[.*?\])", text):
        what = f"has no configuration '{name.config}'" if name.config else "has several configurations"
        return f"{name} {what}: write {PREFIX}{name.repo}/CONFIGURATION with one of {_quoted(configs[1])}"
    if splits := re.search(r"Unknown split .*?Should be one of (\[.*?\])", text):
        return f"{name}: there is no such split: write one of {_quoted(splits[1])}"
    if kind == "DatasetNotFoundError":
        return f"{name}: {text.rstrip('.')}: check the name; a private or gated one needs 'hf auth login' first"
    if isinstance(error, ConnectionError) or kind in (
        "ConnectError",
        "OfflineModeIsEnabled",
        "LocalEntryNotFoundError",
    ):
        offline = huggingface_hub.constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        fix = "unset it" if offline else "connect to the network"
        return f"{name} is not in the cache and {reason}: {fix}, or {instead}"
    if "script" in text:
        return f"{name} is made by a script, which is not run: look for a copy in Parquet, or {instead}"
    return f"cannot read {name} from the hub ({kind}: {text[:200]}): {instead}"


def _quoted(text: str) -> str:
    """Return the first names of a list that Python wrote."""
    return ", ".join(re.findall(r"'([^']+)'", text)[:10])
