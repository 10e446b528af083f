"""What names a model: known names, folders, GGUF files and hub ids, and where its files are."""

from __future__ import annotations

from pathlib import Path

from gradless.errors import BadInput
from gradless.lm import assets, checkpoint_files, conversion, hub_ids, tiny_models
from gradless.system.cache import Say


def sources() -> dict[str, str]:
    """Return the names that `load` knows without a model hub, each with one line about it."""
    known = {name: asset.about for name, asset in assets.ASSETS.items() if asset.kind == "model"}
    return known | {f"tiny-{name}": "random weights, two layers, for tests" for name in tiny_models.FAMILIES}


def is_gguf(source: str) -> bool:
    """Return whether a source of `load` is a GGUF file, by its name; without ``dtype`` its weights stay in the file."""
    asset = assets.ASSETS.get(source)
    return (source if asset is None else asset.entry).lower().endswith(".gguf")


def gguf_file(source: str, root: Path, say: Say) -> Path | None:
    """Return the GGUF file that a source names, or None; a known one is fetched."""
    asset = assets.ASSETS.get(source)
    path = Path(source).expanduser()
    if asset is not None and asset.kind == "model":
        path = assets.fetch(source, say, cache=root)
    return path if path.is_file() and path.suffix.lower() == ".gguf" else None


def resolve(source: str, file: Path | None, root: Path, say: Say) -> tuple[str, str | None]:
    """Return the folder or hub id of a source, and the hub revision; a GGUF file is converted."""
    asset = assets.ASSETS.get(source)
    if file is not None:
        digest = None if asset is None else next((one.sha256 for one in asset.files if one.name == asset.entry), None)
        return str(conversion.folder(file, digest, root, say)), None
    if asset is not None and asset.kind == "model":
        return str(assets.fetch(source, say, cache=root)), None
    path = Path(source).expanduser()
    if path.is_dir():
        return str(checkpoint_files.checked_folder(path)), None
    if path.is_file():
        raise BadInput(f"{source} is neither a folder nor a .gguf file: give the folder with its config.json")
    return hub_ids.checked(source, sources())


def short_name(source: str) -> str:
    """Return a source as tables have it."""
    return source if source in assets.ASSETS else Path(source.partition("@")[0]).name.removesuffix(".gguf")
