"""GGUF files as folders: converted once in a child process, then read from the cache."""

from __future__ import annotations

import errno
import json
import subprocess
from pathlib import Path

from gradless.errors import BadInput
from gradless.lm import gguf, gguf_file
from gradless.system import cache
from gradless.system.cache import Say
from gradless.system.children import PYTHON, environment
from gradless.system.file_hashes import files_sha256


def folder(path: Path, digest: str | None, root: Path, say: Say) -> Path:
    """Return the cached folder of a GGUF file, keyed by its hash; a child process converts it the first time.

    Args:
        path: the file, or one part of a split one.
        digest: its hash, if it is known.
        root: of the cache.
        say: receives a line if it has to be converted.

    Raises:
        BadInput: it cannot be read or converted.
    """
    try:
        files = gguf_file.parts(path)
        for file in files:
            gguf_file.check(file)
        digest = digest or files_sha256(files)
    except ValueError as error:
        raise BadInput(f"{path} {error}") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error

    def build(target: Path) -> None:
        seconds = max(10, round(sum(file.stat().st_size for file in files) / 12e6 / 10) * 10)
        say(f"converting {path.name} once, about {seconds} s")
        command = [*PYTHON, "-m", "gradless.lm.gguf", str(files[0].absolute()), str(target)]
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
        if run.returncode == gguf.NO_SPACE:
            raise OSError(errno.ENOSPC, "No space left on device")
        if run.returncode != 0:
            raise BadInput(_conversion_failure(path, run.stderr))

    return cache.ensure(root / "gguf" / digest, build)


def _conversion_failure(path: Path, stderr: str) -> str:
    last = next((line for line in reversed(stderr.splitlines()) if line.startswith("{")), "")
    reason = json.loads(last) if last else {"type": "", "reason": "the converter was killed, out of memory?"}
    if reason["type"] == "Unusable":
        return f"{path} {reason['reason']}"
    if reason["type"] in ("ImportError", "ModuleNotFoundError"):
        return f"reading {path} needs more packages ({reason['reason']}): pip install 'gradless[lm]'"
    if "not supported" in reason["reason"] or reason["type"] == "NotImplementedError":
        return f"{path} cannot be used ({reason['reason']}): choose a model in safetensors"
    return f"{path} is broken or truncated ({reason['reason']}): download it again"
