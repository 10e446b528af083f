"""Converts a GGUF file to a Hugging Face folder with float32 safetensors, in a child process.

For architectures that `gradless.lm.gguf_model` has no row of. In a child, because conversion holds the weights twice
and the parent's peak memory is a number people read; because the child may silence and patch the libraries freely; and
because a library that crashes on a broken file then ends the child alone.

transformers leaves out tensors that it has no name for, and fills parameters that the file lacks with random numbers.
Here both are errors, and so is a scaling of rotary frequencies that the converted configuration would not hold.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from gradless.lm import gguf_config, gguf_file
from gradless.lm.gguf_file import Unusable

BROKEN, NO_SPACE, UNUSABLE = 3, 4, 5


def convert(source: Path, target: Path) -> None:
    """Write configuration, tokenizer and de-quantised float32 weights of ``source`` into the folder ``target``.

    Cost: about 18 s on one core and 2.3 GB for Gemma 3 270M. Silences transformers for the whole process.

    Raises:
        Unusable: a file of something else, or one whose model transformers would not build exactly.
        ValueError: the file is broken, or of an architecture that transformers cannot read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    reader = gguf_file.read(source)
    gguf_file.check_kind(reader)
    with gguf_file.given_to_transformers(reader):
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model, report = AutoModelForCausalLM.from_pretrained(
            source.parent, dtype=torch.float32, gguf_file=source.name, output_loading_info=True
        )
    _check_whole(model, report, reader)
    gguf_config.scale_rope(model.config, reader)
    # The weights are plain float32 now, yet transformers still calls the model quantized and refuses to save.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer.save_pretrained(target)
    model.save_pretrained(target)


def _check_whole(model: Any, report: dict[str, Any], reader: Any) -> None:
    """Refuse a model with a parameter that is not from the file, and a file with a tensor that is in no model."""
    name, fix = type(model).__name__, "choose the model in safetensors"
    if missing := sorted(report["missing_keys"]):
        raise Unusable(f"lacks {len(missing)} weights of {name} (such as {missing[0]}): {fix}")
    wrong = [*report["mismatched_keys"], *report["unexpected_keys"], *report.get("error_msgs", ())]
    if wrong:
        raise Unusable(f"has weights that do not fit {name} ({str(wrong[0])[:200]}): {fix}")
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    unused = {*gguf_config.ROPE_TENSORS, *(["output.weight"] if tied else [])}
    theirs = sum(math.prod(map(int, one.shape)) for one in reader.tensors if one.name not in unused)
    ours = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.numel() for key, buffer in model.named_buffers() if key in model.state_dict())
    if theirs not in (ours, ours + buffers):
        raise Unusable(f"holds {theirs} weights, and {name} as transformers builds it {ours}: {fix}")


def main(arguments: list[str]) -> int:
    """Run ``python -m gradless.lm.gguf SOURCE TARGET``; the last line on stderr of a failure is JSON."""
    source, target = map(Path, arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"
    gc.disable()  # millions of small live objects, no cycles: collecting would cost a tenth of the time
    try:
        convert(source, target)
    except Unusable as error:
        print("\n" + json.dumps({"type": "Unusable", "reason": str(error)}), file=sys.stderr)
        return UNUSABLE
    except Exception as error:
        # safetensors reports a full disk as its own exception with the system's text inside.
        full = "No space left" in str(error) or "Disk quota" in str(error)
        reason = " ".join(str(error).split()) or "no reason given"
        print("\n" + json.dumps({"type": type(error).__name__, "reason": reason}), file=sys.stderr)
        return NO_SPACE if full else BROKEN
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
