"""Time to write completions with a population of perturbed copies of the weights, over that with the plain model.

    python benchmarks/reward_generation.py [--model smollm2-135m] [--out FILE]

A population of 8 members writes 32 tokens behind each of 8 prompts, and so does the plain model (`transformers`'
``generate``) behind all prompts 8 times in one batch. Both sample at temperature 1, float32, and no token ends a text,
so that all write as many. Times are CPU seconds of this process with one thread, since the machine is shared; rounds
alternate, and what is reported are medians and ratios within this run. What members do more than the plain model:
perturbed copies of norms and embeddings, thin products or LoRA's layers for each member.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

import gradless as gl
from gradless.lm import generation, load, schemes
from gradless.lm.batching import Prompts, collate_prompts
from gradless.lm.encoded import Encoded
from gradless.lm.loading import LanguageModel
from gradless.lm.rewarded import Sampling, drawn
from gradless.runs.record import versions
from gradless.system.atomic import write_json
from gradless.system.machine import processor

MEMBERS, PROMPTS, NEW_TOKENS, ROUNDS = 8, 8, 32, 3
SCHEMES: Final[dict[str, dict[str, Any]]] = {
    "full": {"rank": 1},
    "lora": {},
}


class Generation:
    """A closure that writes with all copies of the weights; what they write does not matter here."""

    def __init__(self, lm: LanguageModel, prompts: Prompts) -> None:
        self.lm, self.prompts, self.choose = lm, prompts, Sampling(1.0, 0).of(prompts)

    def __call__(self) -> torch.Tensor:
        raise AssertionError("members are evaluated together")

    def side_by_side(self, call: generation.Call) -> torch.Tensor:
        texts = generation.write_members(self.lm, self.prompts, self.choose, call)
        return torch.tensor([[float(one.tokens) for one in member] for member in texts])


def prompts_of(lm: LanguageModel, copies: int) -> Prompts:
    texts = [
        f"What is {11 * n} + {7 * n + 10}? Write the answer as <answer>n</answer>.\n" for n in range(1, PROMPTS + 1)
    ]
    encoded = [Encoded(tuple(lm.tokenizer(text)["input_ids"]), (), (), None, ()) for text in texts] * copies
    return collate_prompts(lm, drawn(encoded, "step/0"), (), NEW_TOKENS)


def plain(model: str) -> Callable[[], object]:
    """The plain model, all completions in one batch."""
    lm = load(model, dtype="float32")
    prompts = prompts_of(lm, MEMBERS)
    choose = Sampling(1.0, 0).of(prompts)
    return lambda: generation.write(lm, prompts, choose)


def population(model: str, scheme: str, options: dict[str, Any]) -> Callable[[], object]:
    """A population, as a step of evolution strategies evaluates it."""
    lm = schemes.apply(load(model, dtype="float32"), scheme)
    settings = {"lr": 1e-3, "eps": 1e-3, "queries": MEMBERS // 2, "engine": "dual", "check": False}
    opt = gl.es(schemes.trainable(lm), **settings, **options)
    closure = Generation(lm, prompts_of(lm, 1))
    return lambda: opt.probe(closure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    generation.end_tokens = lambda lm, stops: []  # all texts are equally long
    seconds: dict[str, list[float]] = {}
    timed = {"plain": plain(args.model)}
    timed |= {scheme: population(args.model, scheme, options) for scheme, options in SCHEMES.items()}
    for number in range(ROUNDS + 1):
        for name, run in timed.items():
            begin = time.process_time()
            with torch.no_grad():
                run()
            if number:  # the first one warms up
                seconds.setdefault(name, []).append(time.process_time() - begin)
                print(number, name, round(seconds[name][-1], 2), flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "model": args.model,
        "members": MEMBERS,
        "prompts": PROMPTS,
        "new_tokens": NEW_TOKENS,
        "cpu_seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
        "ratio_to_plain": {name: round(medians[name] / medians["plain"], 3) for name in SCHEMES},
        "processor": processor(),
        "versions": versions(),
    }
    print(json.dumps(result, indent=2))
    if args.out is not None:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
