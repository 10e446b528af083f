"""What a node of a Ray cluster does. Ray sends this module by value, so it must work where gradless is not installed.

It imports the standard library alone, and the functions that are tasks refer to nothing outside themselves and it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = "<folder of the task>"
"""Stands in texts and arguments for the folder that a task makes on its node."""
LIBRARIES = ("torch", "transformers", "numpy")
LOOK = 0.05  # seconds between two looks at a process
# Runs a module, and ends with the process that started it, whose end of stdin closes however that ended.
SCRIPT = """
import os, runpy, shutil, sys, threading
root, module, sys.argv = sys.argv[1], sys.argv[2], sys.argv[2:]
def watch():
    while os.read(0, 1):
        pass
    shutil.rmtree(root, ignore_errors=True)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def probe(modules: tuple[str, ...] = (), paths: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return what a node is and has.

    Args:
        modules: that a run imports.
        paths: files and folders that a run reads where they lie.
    """
    return {
        "host": socket.gethostname(),
        "gradless": source_digest(),
        "versions": {"Python": sys.version.split()[0], "gradless": version("gradless")}
        | {name: version(name) for name in LIBRARIES},
        "modules": [name for name in modules if importlib.util.find_spec(name.partition(".")[0]) is None],
        "sizes": {path: size_of(path) for path in paths},
    }


def version(package: str) -> str:
    """Return the version of an installed package, without that of its build; "" of none."""
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""


def source_digest() -> str:
    """Return the SHA-256 over the sources of gradless here; "" where there are none. Cost: milliseconds."""
    spec = importlib.util.find_spec("gradless")  # which does not import it
    if spec is None or spec.origin is None:
        return ""
    digest, folder = hashlib.sha256(), Path(spec.origin).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def size_of(path: str) -> int:
    """Return the bytes of a file, or of all files in a folder; -1 where there is none."""
    if os.path.isfile(path):
        return os.path.getsize(path)
    if not os.path.isdir(path):
        return -1
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)


def run(task: dict[str, Any], *contents: list[bytes]) -> dict[str, Any]:
    """Run a module of gradless in a process and a temporary folder; returns the files that it has written.

    Args:
        task: ``module`` and its ``arguments``; ``environment``; ``texts``, by path below the folder of the task, with
            `ROOT` in them; ``sources``, a list of files, each a path below that folder and its SHA-256, for each of
            ``contents``; ``folder``, whose files are returned, and ``kept``, its files before the run by path.
        contents: bytes of files.

    Raises:
        KeyboardInterrupt: the task is cancelled.
        OSError: a file has not arrived as it was sent.
    """
    root = os.path.realpath(tempfile.mkdtemp(prefix="gradless-"))
    try:
        files = {os.path.join(task["folder"], name): data for name, data in task["kept"].items()}
        files |= {name: text.replace(ROOT, root).encode() for name, text in task["texts"].items()}
        for names, parts in zip(task["sources"], contents, strict=True):
            for (name, digest), data in zip(names, parts, strict=True):
                if hashlib.sha256(data).hexdigest() != digest:
                    raise OSError(f"{name} has not arrived as it was sent")
                files[name] = data
        for name, data in files.items():
            path = Path(root, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        folder = Path(root, task["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        begun = time.perf_counter()
        code, stderr = _process(root, task)
        seconds = time.perf_counter() - begun
        written = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        return {
            "host": socket.gethostname(),
            "root": root,
            "code": code,
            "stderr": stderr,
            "seconds": seconds,
            "files": {name: path.read_bytes() for name, path in written.items()},
        }
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _process(root: str, task: dict[str, Any]) -> tuple[int, str]:
    """Run the process of a task; returns its exit code and stderr."""
    arguments = [one.replace(ROOT, root) for one in task["arguments"]]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", **task["environment"]}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", SCRIPT, root, task["module"], *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
            cwd=root,
        )
        try:
            while process.poll() is None:
                time.sleep(LOOK)  # a cancelled task is interrupted between two instructions, and not while it waits
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdin.close()  # type: ignore[union-attr]
        errors.seek(0)
        return process.returncode, errors.read().decode(errors="replace")
