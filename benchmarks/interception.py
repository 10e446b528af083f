"""What three ways of intercepting reads of tuned weights cost the host: writes results/interception-cpu.json.

Each runs the same forward of a Llama of 30 layers with tiny widths and hands every read on unchanged, so that only the
interception is measured:

- ``mode``: a `TorchFunctionMode`, which sees every function of the forward;
- ``class``: a subclass of each tuned tensor's class (`gradless.forward.interception`);
- ``swap``: the modules' own entries replaced by other tensors before the forward and put back after it
  (`torch.func.functional_call` does the same). A linear layer with two copies of its weight, rows of an embedding and
  low-rank products would still need one of the other two.

Run: python benchmarks/interception.py [--rounds 15] [--out benchmarks/results/interception-cpu.json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gradless.forward.interception import Interception
from gradless.system.machine import processor


class _Mode(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _swapped(entries: list[tuple[dict[str, Any], str, torch.Tensor]]) -> Iterator[None]:
    own = [members[name] for members, name, _ in entries]
    for members, name, tensor in entries:
        members[name] = tensor
    try:
        yield
    finally:
        for (members, name, _), tensor in zip(entries, own, strict=True):
            members[name] = tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = {scheme: measure(scheme, options.layers, options.rounds) for scheme in ("full", "lora")} | {
        "processor": processor(),
        "threads": 1,
        "rounds": options.rounds,
        "layers": options.layers,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


@torch.no_grad()
def measure(scheme: str, layers: int, rounds: int) -> dict[str, Any]:
    """Return the median processor time of a forward, plain and with each design, and the ratios."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=2, vocab_size=100
    )
    model: Any = LlamaForCausalLM(config).eval()
    if scheme == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"])).eval()
    tuned = [param for param in model.parameters() if param.requires_grad]
    ids = torch.arange(24).reshape(2, 12)
    owners = [
        (module._parameters, name, param.detach().clone())
        for module in model.modules()
        for name, param in module._parameters.items()
        if param is not None and param.requires_grad
    ]
    designs: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
        "plain": contextlib.nullcontext,
        "mode": _Mode,
        "class": lambda: Interception(tuned, lambda func, args, kwargs: func(*args, **kwargs)),
        "swap": lambda: _swapped(owners),
    }
    times: dict[str, list[float]] = {name: [] for name in designs}
    for turn in range(rounds + 2):
        for name, block in designs.items():
            begun = time.process_time()
            with block():
                model(input_ids=ids, use_cache=False)
            if turn > 1:
                times[name].append(time.process_time() - begun)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "tuned_tensors": len(tuned),
        "seconds": medians,
        "ratio_to_plain": {name: value / medians["plain"] for name, value in medians.items()},
    }


if __name__ == "__main__":
    main()
