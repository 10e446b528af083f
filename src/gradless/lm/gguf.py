"""Converts a GGUF file to a Hugging Face folder with float32 safetensors, in a child process.

In a child, because conversion holds the weights twice and the parent's peak memory is a number people read;
because the child may silence and patch the libraries freely; and because a library that crashes on a broken
file then ends the child alone.

transformers opens one file three times, and each time `gguf.GGUFReader` walks a vocabulary of 262,144 entries
through `numpy.memmap` slices, at a few microseconds each. Reading through a plain array, once, is what makes
Gemma's conversion take about 30 s instead of 75 s; the parsing itself stays transformers'.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any, Final

BROKEN, NO_SPACE = 3, 4
_VERSIONS: Final = (2, 3)


def check(path: Path) -> None:
    """Check the header only, so that a file of another kind is refused at once.

    Raises:
        ValueError: not a GGUF file, or an outdated version; the message is the predicate of a sentence.
    """
    with path.open("rb") as stream:
        head = stream.read(24)
    if head[:4] != b"GGUF":
        raise ValueError("is not a GGUF file (its first bytes are not 'GGUF')")
    if len(head) < 24:
        raise ValueError("is truncated: it ends inside the header")
    (version,) = struct.unpack("<I", head[4:8])
    if version not in _VERSIONS:
        raise ValueError(f"is GGUF version {version}; versions {_VERSIONS[0]} and {_VERSIONS[1]} can be read")


def convert(source: Path, target: Path) -> None:
    """Write configuration, tokenizer and de-quantised float32 weights of ``source`` into the folder ``target``.

    Cost: about 30 s on one core and 2.3 GB for Gemma 3 270M. Silences transformers for the whole process.

    Raises:
        ValueError: the file is broken, or of an architecture that transformers cannot read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with _FastReader():
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, gguf_file=source.name)
    # The weights are plain float32 now, yet transformers still calls the model quantized and refuses to save.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer.save_pretrained(target)
    model.save_pretrained(target)


class _FastReader:
    """While active, ``gguf.GGUFReader`` reads each file once, through a plain array."""

    def __enter__(self) -> None:
        import gguf
        import numpy as np

        class Reader(gguf.GGUFReader):
            data: Any

            def _get(self, *args: Any, **kwargs: Any) -> Any:
                if isinstance(self.data, np.memmap):
                    self.data = self.data.view(np.ndarray)  # still a map of the file; only slicing is cheaper
                return super()._get(*args, **kwargs)

        read = functools.lru_cache(maxsize=1)(Reader)
        self._module, self._original = gguf, gguf.GGUFReader
        gguf.GGUFReader = lambda path, *rest: read(os.path.realpath(path), *rest)  # asked for as str and as Path

    def __exit__(self, *_: object) -> None:
        self._module.GGUFReader = self._original


def main(arguments: list[str]) -> int:
    """Run ``python -m gradless.lm.gguf SOURCE TARGET``; the last line on stderr of a failure is JSON."""
    source, target = map(Path, arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"
    gc.disable()  # millions of small live objects, no cycles: collecting would cost a tenth of the time
    try:
        check(source)
        convert(source, target)
    except Exception as error:
        # safetensors reports a full disk as its own exception with the system's text inside.
        full = "No space left" in str(error) or "Disk quota" in str(error)
        reason = " ".join(str(error).split()) or "no reason given"
        print("\n" + json.dumps({"type": type(error).__name__, "reason": reason}), file=sys.stderr)
        return NO_SPACE if full else BROKEN
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
