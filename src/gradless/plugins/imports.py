"""Python code of the user's is imported: a file from the bytes that are hashed, with one sentence about what fails."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

from gradless.errors import BadInput

HERE: Final = Path(__file__).parent


def short_name(key: str) -> str:
    """Return the name of a file, or of a module."""
    return re.split(r"[/\\]", key)[-1] if key.endswith(".py") else key


def run_file(prefix: str, key: str, source: bytes | str) -> ModuleType:
    """Run the very bytes that were hashed, and return their module; no compiled copy of them is read or written.

    Args:
        prefix: of the module's name in `sys.modules`.
        key: absolute path of the file.
        source: what it holds.
    """
    module = ModuleType(f"{prefix}_{re.sub(r'[^A-Za-z0-9_]', '_', Path(key).stem)}")
    module.__file__ = key
    sys.modules[module.__name__] = module  # where dataclasses and typing look for it
    exec(compile(source, key, "exec", dont_inherit=True), module.__dict__)
    return module


@contextlib.contextmanager
def explained(title: str, key: str) -> Iterator[None]:
    """Turn whatever ends an import into one sentence with the line; what is printed goes to stderr.

    Args:
        title: what is imported, in the sentence.
        key: absolute path of a file, or dotted name of a module.

    Raises:
        BadInput: the import inside the block failed, or ended the program.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except SystemExit as error:
        advice = "put what only a script does below if __name__ == '__main__'"
        raise BadInput(f"{title} ends the program{line_of(error, key)} when it is imported: {advice}") from None
    except ModuleNotFoundError as error:
        if error.name == key or (error.name and key.startswith(f"{error.name}.")):
            raise BadInput(f"there is no module {key} to import: install it, or give a file that ends in .py") from None
        raise BadInput(f"{title} needs '{error.name}'{line_of(error, key)}: install it") from None
    except Exception as error:
        text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
        what = type(error).__name__ + (f" ({text})" if text else "")
        raise BadInput(f"{title} fails with {what}{line_of(error, key)}: correct it") from None


def line_of(error: BaseException, key: str) -> str:
    """Return where an error came from, as `` in line N``: the last line of the file of that name, or of any file."""
    if isinstance(error, SyntaxError) and error.lineno:
        own = error.filename == key
        return f" in line {error.lineno}" + ("" if own else f" of {error.filename}")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent != HERE]
    for frame in reversed(frames):
        if frame.filename == key:
            return f" in line {frame.lineno}"
    outside = [frame for frame in frames if not frame.filename.startswith("<")]
    return f" in line {outside[-1].lineno} of {outside[-1].filename}" if outside and not key.endswith(".py") else ""


def package_sha256(module: ModuleType) -> str:
    """Return a hash of the names and contents of all Python files of the package that a module belongs to.

    A namespace package, which several distributions share, does not count: the hash is of what lies next below it.
    """
    parts = module.__name__.split(".")
    parents = (sys.modules[".".join(parts[: count + 1])] for count in range(len(parts)))
    top = next((one for one in parents if getattr(one, "__file__", None)), module)
    digest = hashlib.sha256()
    if (file := getattr(top, "__file__", None)) is not None:
        root = Path(file).parent
        files = sorted(root.rglob("*.py")) if hasattr(top, "__path__") else [Path(file)]
        for path in files:
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()
