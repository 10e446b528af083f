"""Converts a GGUF file to a Hugging Face folder with float32 safetensors, in a child process.

In a child, because conversion holds the weights twice and the parent's peak memory is a number people read;
because the child may silence and patch the libraries freely; and because a library that crashes on a broken
file then ends the child alone.

transformers opens one file three times, and each time `gguf.GGUFReader` walks a vocabulary of 262,144 entries, their
scores and their types through `numpy.memmap` slices, at a few microseconds each. Here a file is read once, and an array
in one go: 0.5 s for Gemma instead of three times 6 s or more. The parsing itself stays transformers'.

transformers leaves out tensors that it has no name for, and fills parameters that the file lacks with random numbers.
Here both are errors, and so is a scaling of rotary frequencies that the converted configuration would not hold.
"""

from __future__ import annotations

import functools
import gc
import json
import math
import os
import re
import struct
import sys
from pathlib import Path
from typing import Any, Final

BROKEN, NO_SPACE, UNUSABLE = 3, 4, 5
_VERSIONS: Final = (2, 3)
_SMALLEST_TENSOR, _SMALLEST_FIELD = 24, 13  # bytes that its entry takes in the header
_PART: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_KINDS: Final = {
    "adapter": "a LoRA adapter, not a model: merge it into its base model first",
    "mmproj": "the image projector of a model: give the file of the language model",
    "imatrix": "an importance matrix, not a model: give the file of the model",
}
"""What other files are, by ``general.type``."""
_ROPE_TENSORS: Final = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_ROPE_FIELDS: Final = ("type", "factor", "original_context_length", "finetuned")
_LLAMA3: Final = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


class Unusable(ValueError):
    """A whole file that is no language model, or that cannot be converted exactly; the message is a predicate."""


def parts(path: Path) -> list[Path]:
    """Return all files of a split model, in order, whichever of them is given; of another file, itself.

    Raises:
        ValueError: one is missing; the message is the predicate of a sentence.
    """
    named = _PART.fullmatch(path.name)
    if named is None:
        return [path]
    stem, _, count = named.groups()
    files = [path.with_name(f"{stem}-{part:05d}-of-{count}.gguf") for part in range(1, int(count) + 1)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(
            f"is one of {len(files)} parts, of which {', '.join(missing[:5])} is missing: put it beside it"
        )
    return files


def check(path: Path) -> None:
    """Check the header only, so that a file of another kind is refused at once.

    Raises:
        ValueError: not a GGUF file, or an outdated version; the message is the predicate of a sentence.
    """
    with path.open("rb") as stream:
        head = stream.read(24)
        size = stream.seek(0, os.SEEK_END)
    if head[:4] != b"GGUF":
        raise ValueError("is not a GGUF file (its first bytes are not 'GGUF'): download it again")
    if len(head) < 24:
        raise ValueError("is truncated, it ends inside the header: download it again")
    version, tensors, fields = struct.unpack("<IQQ", head[4:])
    if version not in _VERSIONS:
        raise ValueError(f"is GGUF version {version}, and only {_VERSIONS[0]} and {_VERSIONS[1]} are read: convert it")
    if tensors * _SMALLEST_TENSOR + fields * _SMALLEST_FIELD > size:
        raise ValueError(
            f"is broken or truncated, it cannot hold {tensors} tensors and {fields} fields: download it again"
        )


def convert(source: Path, target: Path) -> None:
    """Write configuration, tokenizer and de-quantised float32 weights of ``source`` into the folder ``target``.

    Cost: about 18 s on one core and 2.3 GB for Gemma 3 270M. Silences transformers for the whole process.

    Raises:
        Unusable: a file of something else, or one whose model transformers would not build exactly.
        ValueError: the file is broken, or of an architecture that transformers cannot read.
    """
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with _FastReader(source):
        reader = gguf.GGUFReader(source)
        _check_kind(reader)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model, report = AutoModelForCausalLM.from_pretrained(
            source.parent, dtype=torch.float32, gguf_file=source.name, output_loading_info=True
        )
        _check_whole(model, report, reader)
        _scale_rope(model.config, reader)
    # The weights are plain float32 now, yet transformers still calls the model quantized and refuses to save.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer.save_pretrained(target)
    model.save_pretrained(target)


def _field(reader: Any, name: str) -> Any:
    """Return the value of a metadata field, or None."""
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _check_kind(reader: Any) -> None:
    """Refuse files that hold no language model, or not all of it."""
    kind, architecture = _field(reader, "general.type"), _field(reader, "general.architecture")
    if kind in _KINDS or architecture == "clip":
        raise Unusable(f"is {_KINDS.get(kind, _KINDS['mmproj'])}")
    count, here = _field(reader, "split.count") or 1, reader.parts_read
    if count != here:
        name = f"NAME-00001-of-{count:05d}.gguf"
        raise Unusable(f"is one of {count} parts: name them {name} and so on, as they were when they were split")
    total = _field(reader, "split.tensors.count")
    if total is not None and total != len(reader.tensors):
        raise Unusable(f"should have {total} tensors, and its parts have {len(reader.tensors)}: download them again")
    if not reader.tensors:
        raise Unusable("holds a vocabulary and no weights: give the file of a model")
    tokens = _field(reader, "tokenizer.ggml.tokens")
    if not tokens or _field(reader, "tokenizer.ggml.model") in (None, "none", "no_vocab"):
        raise Unusable("holds no tokenizer: convert the model again with it, or choose it in safetensors")


def _check_layout(reader: Any) -> None:
    """Refuse a file whose tensors do not follow each other, as llama.cpp does: an offset is damaged.

    Raises:
        ValueError: with the first tensor that is out of place.
    """
    end = None
    for tensor in reader.tensors:
        if end is not None and tensor.data_offset != end:
            raise ValueError(f"{tensor.name} is not where the tensor before it ends")
        end = tensor.data_offset + -(-tensor.n_bytes // reader.alignment) * reader.alignment


def _check_whole(model: Any, report: dict[str, Any], reader: Any) -> None:
    """Refuse a model with a parameter that is not from the file, and a file with a tensor that is in no model."""
    name, fix = type(model).__name__, "choose the model in safetensors"
    if missing := sorted(report["missing_keys"]):
        raise Unusable(f"lacks {len(missing)} weights of {name} (such as {missing[0]}): {fix}")
    wrong = [*report["mismatched_keys"], *report["unexpected_keys"], *report.get("error_msgs", ())]
    if wrong:
        raise Unusable(f"has weights that do not fit {name} ({str(wrong[0])[:200]}): {fix}")
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    unused = {*_ROPE_TENSORS, *(["output.weight"] if tied else [])}
    theirs = sum(math.prod(map(int, one.shape)) for one in reader.tensors if one.name not in unused)
    ours = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.numel() for key, buffer in model.named_buffers() if key in model.state_dict())
    if theirs not in (ours, ours + buffers):
        raise Unusable(f"holds {theirs} weights, and {name} as transformers builds it {ours}: {fix}")


def _scale_rope(config: Any, reader: Any) -> None:
    """Write the scaling of rotary frequencies, which transformers does not read, into the configuration.

    Raises:
        Unusable: a scaling that cannot be said there exactly.
    """
    tensors = {tensor.name: tensor.data for tensor in reader.tensors if tensor.name in _ROPE_TENSORS}
    prefix = f"{_field(reader, 'general.architecture')}.rope.scaling."
    settings = {key.removeprefix(prefix): _field(reader, key) for key in reader.fields if key.startswith(prefix)}
    kind, factor = settings.get("type", "linear"), float(settings.get("factor") or 1.0)
    parameters = getattr(config, "rope_parameters", None) or {}
    if "rope_freqs.weight" in tensors and len(tensors) == 1 and kind in ("none", "linear") and factor == 1.0:
        scaling = _llama3(tensors["rope_freqs.weight"], parameters, config, settings)
    elif not tensors and (kind == "none" or factor == 1.0):
        return
    elif not tensors and {*settings} <= {*_ROPE_FIELDS} and kind == "linear":
        scaling = {"rope_type": "linear", "factor": factor}
    elif not tensors and {*settings} <= {*_ROPE_FIELDS} and kind == "yarn" and "original_context_length" in settings:
        original = int(settings["original_context_length"])
        scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    else:
        scaling = None
    if parameters.get("rope_type") not in (None, "default"):
        return  # transformers has read it
    # Gemma 3 scales the layers that see everything, in llama.cpp too.
    target = parameters.get("full_attention", parameters if "rope_theta" in parameters else None)
    if scaling is None or target is None:
        how = kind if kind not in ("none", "linear") else "a table"
        raise Unusable(f"scales rotary frequencies ({how}) in a way that is not converted: choose it in safetensors")
    target.update(scaling)


def _llama3(factors: Any, parameters: dict[str, Any], config: Any, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the settings of Llama 3 whose divisors of the frequencies are ``factors``, or None if they are others."""
    heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if "rope_theta" not in parameters or len(factors) != heads // 2:
        return None
    original = int(settings.get("original_context_length") or _LLAMA3["original_max_position_embeddings"])
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    turns = [original * parameters["rope_theta"] ** (-2 * i / heads) / (2 * math.pi) for i in range(len(factors))]
    smooth = [min(1.0, max(0.0, (turn - low) / (high - low))) for turn in turns]
    shares = [1 / float(divisor) for divisor in factors]  # of the frequency that is left
    rest = shares[-1] - smooth[-1]
    factor = (1 - smooth[-1]) / rest if rest > 0 else 1.0
    if any(abs(((1 - s) / factor + s) / share - 1) > 1e-3 for s, share in zip(smooth, shares, strict=True)):
        return None
    scaling = {"rope_type": "llama3", "factor": round(factor, 3), **_LLAMA3}
    return scaling | {"original_max_position_embeddings": original}


class _Text(bytes):
    """A string of the file, as `gguf` and transformers read the arrays that they expect in its place."""

    def tobytes(self) -> bytes:
        """Return it as NumPy does."""
        return bytes(self)


def _texts(data: memoryview, start: int, count: int) -> tuple[int, list[_Text]]:
    """Return where an array of strings ends, and the strings."""
    length, texts = struct.Struct("<Q"), []
    for _ in range(count):
        begin = start + 8
        start = begin + length.unpack_from(data, start)[0]
        texts.append(_Text(data[begin:start]))
    return start, texts


class _FastReader:
    """While active, ``gguf.GGUFReader`` reads each file once, through a plain array, and all parts of a split one."""

    def __init__(self, source: Path) -> None:
        self._parts = parts(source)

    def __enter__(self) -> None:
        import gguf
        import numpy as np

        others = self._parts[1:]

        class Reader(gguf.GGUFReader):
            data: Any
            tensors: Any

            def __init__(self, path: Any, *rest: Any) -> None:
                super().__init__(path, *rest)
                readers = [gguf_reader(part) for part in others]
                for number, reader in enumerate(readers, start=1):
                    if _field(reader, "split.no") != number:
                        raise Unusable(f"has a part of another file beside it ({others[number - 1].name}): replace it")
                for reader in (self, *readers):
                    _check_layout(reader)
                self.tensors = [*self.tensors, *(tensor for reader in readers for tensor in reader.tensors)]
                self.parts_read = 1 + len(readers)

            def _get(self, *args: Any, **kwargs: Any) -> Any:
                if isinstance(self.data, np.memmap):
                    self.data = self.data.view(np.ndarray)  # still a map of the file; only slicing is cheaper
                return super()._get(*args, **kwargs)

            def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
                kind = gguf.GGUFValueType
                if raw_type != kind.ARRAY or self.byte_order != "I" or sys.byteorder != "little":
                    return super()._get_field_parts(orig_offs, raw_type)
                (of,), (count,) = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
                start, count = orig_offs + 12, int(count)
                if count and of == kind.STRING:
                    end, parts = _texts(memoryview(self.data), start, count)
                elif count and (number := self.gguf_scalar_to_np.get(kind(of))) is not None:
                    values = self._get(start, number, count)
                    if len(values) < count:
                        raise ValueError(f"an array of {count} numbers ends behind {len(values)}")
                    end, parts = start + values.nbytes, list(values[:, None])
                else:
                    return super()._get_field_parts(orig_offs, raw_type)
                return end - orig_offs, parts, list(range(count)), [kind.ARRAY, kind(of)]

        read = functools.lru_cache(maxsize=1)(Reader)
        gguf_reader = gguf.GGUFReader
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
