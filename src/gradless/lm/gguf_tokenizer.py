"""The tokenizer of a GGUF file, by transformers' own conversion, kept in the cache.

Building it takes seconds to half a minute (Gemma's 262,144 entries), reading the result a few; so ``tokenizer.json``
and what lies beside it are kept, under the hash of the file's header. Weights are never copied there.
"""

from __future__ import annotations

import gc
import hashlib
from pathlib import Path
from typing import Any

from gradless.lm import checkpoint_config, gguf_file
from gradless.system import cache


def load(reader: Any, root: Path) -> Any:
    """Return the tokenizer of a file, with its chat template.

    Args:
        reader: see `gradless.lm.gguf_file.read`.
        root: of the cache.
    """
    from transformers import AutoTokenizer

    folder = cache.ensure(root / "gguf-tokenizers" / _key(reader), lambda target: _build(reader, target))
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, **checkpoint_config.OWN_CODE)


def _key(reader: Any) -> str:
    """A hash of all that a tokenizer is made of: the first file up to its weights, and who converts."""
    import transformers

    end = min((int(one.data_offset) for one in reader.tensors), default=0)
    with reader.files[0].open("rb") as stream:
        header = stream.read(end if reader.owners[:1] == [0] else -1)
    return hashlib.sha256(f"{transformers.__version__}\0".encode() + header).hexdigest()


def _build(reader: Any, target: Path) -> None:
    """Convert the vocabulary of a file into a folder."""
    from transformers import AutoTokenizer

    collected = gc.isenabled()
    gc.disable()  # millions of small live objects, no cycles: collecting would cost a tenth of the time
    try:
        with gguf_file.given_to_transformers(reader):
            first = reader.files[0]
            tokenizer = AutoTokenizer.from_pretrained(first.parent, gguf_file=first.name, **checkpoint_config.OWN_CODE)
        tokenizer.save_pretrained(target)
    finally:
        if collected:
            gc.enable()
