"""A Python without some packages: what is imported and what is listed as installed, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

# What the extras bring, and what these bring along. What the core needs stays.
OPTIONAL = (
    *("transformers", "tokenizers", "peft", "accelerate", "gguf", "sentencepiece", "google", "protobuf", "sklearn"),
    *("scikit-learn", "scipy", "joblib", "numba", "llvmlite", "matplotlib", "PIL", "pillow", "datasets", "pandas"),
    *("pyarrow", "huggingface_hub", "huggingface-hub", "hf_xet", "tensorboard", "trl", "triton", "byzfl", "regex"),
    *("requests", "tqdm", "yaml", "PyYAML", "psutil", "httpx", "mkdocs", "pytest", "hypothesis"),
    *("zenoh", "eclipse-zenoh", "cryptography", "cffi", "pycparser", "ray"),
)
HIDE = """
import sys
from importlib.machinery import PathFinder
HIDDEN = {name.lower() for name in sys.argv.pop(1).split(",")}
class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0].lower() in HIDDEN else PathFinder.find_spec(name, path, target)
    @classmethod
    def find_distributions(cls, *args, **kwargs):
        return (d for d in PathFinder.find_distributions(*args, **kwargs) if d.metadata["Name"].lower() not in HIDDEN)
sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
"""


def python(code: str, *arguments: object, hidden: Sequence[str] = OPTIONAL, **env: str) -> subprocess.CompletedProcess:
    """Run code in a Python that lacks ``hidden``."""
    return subprocess.run(
        [sys.executable, "-c", HIDE + code, ",".join(hidden), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **env},
    )


def gradless(*arguments: object, hidden: Sequence[str] = OPTIONAL, **env: str) -> subprocess.CompletedProcess:
    """Run the command line in it."""
    return python("from gradless.cli import main\nmain(prog_name='gradless')", *arguments, hidden=hidden, **env)
