"""Settings of ``gradless plan`` and ``gradless profile``: fields that are options, known without importing torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from gradless.errors import BadInput
from gradless.runs.config import ComputeDType, Device, DType, Engine, MethodName, Model, Offload, Quantise, Scheme
from gradless.system import typed
from gradless.system.typed import Amount, Count, Few, Flag, Names, Processes, Seed

FLOOR, EAGER = "floor", "eager-mezo"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """What to plan for."""

    model: Model
    """Known name, shape:NAME, folder, adapter, GGUF file or hub id.

    Anything that `gradless.cost.meta_models.load` takes."""
    method: MethodName = "mezo"
    """gradless list methods"""
    scheme: Scheme = "full"
    """full, lora, prefix, prompt or head."""
    batch_size: Few = 16
    """Sequences of a forward."""
    length: Few = 256
    """Tokens of each sequence."""
    dtype: DType | None = None
    """float32, bfloat16 or float16; by default the checkpoint's own."""
    compute_dtype: ComputeDType | None = None
    """float32 where weights of 16 bits are computed with in float32; by default the type of the weights."""
    attention: str = "flash"
    """flash (fused, where the model can) or eager.

    Eager attention has its scores in memory."""
    objective: Literal["option_ce", "lm"] = "option_ce"
    """option_ce (label words) or lm (every token)."""
    engine: Engine = "auto"
    """auto, stream, dual or in-place.

    auto, which a run measures, is planned as dual on a CPU and as stream on other devices."""
    device: Device = "cpu"
    """Decides the engine, and nothing else."""
    quantise: Quantise = None
    """nf4, fp4 or int8: quantise the frozen weights of linear layers."""
    offload: Offload = None
    """disk or cpu: frozen matrices are not on the device, but for a buffer of the largest."""
    rank: Few = 8
    """LoRA rank."""
    num_prefix: Few = 5
    """Virtual tokens of prefix tuning."""
    num_prompt: Few = 10
    """Virtual tokens of prompt tuning."""


def _engines() -> tuple[str, ...]:
    from gradless.forward.engines import ENGINES

    return ENGINES


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSettings:
    """What to measure, and how often."""

    model: Model
    """Known name (gradless list models), folder, adapter, GGUF file or hub id.

    Or ``shape:NAME`` (`gradless.lm.shapes.SHAPES`)."""
    scheme: Scheme = "full"
    """full, lora, prefix, prompt or head."""
    method: MethodName = "mezo"
    """gradless list methods"""
    batch_size: Few = 16
    """Sequences of a batch."""
    length: Few = 40
    """Tokens of each sequence."""
    dtype: DType | None = None
    """float32, bfloat16 or float16; by default float32 on a CPU, else the checkpoint's; of a GGUF its own blocks."""
    compute_dtype: ComputeDType | None = None
    """auto, float32, or the type of the weights: of activations and products. auto: as in a run of the method."""
    device: Device = "cpu"
    """cpu, cuda, cuda:1, mps; auto: all GPUs."""
    quantise: Quantise = None
    """nf4, fp4 (bitsandbytes) or int8 (torchao): quantise frozen weights as they are loaded."""
    offload: Offload = None
    """disk or cpu: where frozen weights stay until their layer runs."""
    engines: Annotated[tuple[str, ...], Names("engine", "forward.engines:ENGINES"), Flag("--engine")] = field(
        default_factory=_engines
    )
    repeats: Count = 9
    """Timed rounds; figures are medians over them."""
    seed: Seed = 0
    """Of the batch and every random number."""
    threads: Processes | None = None
    """Threads of the processor.

    None: as torch is set."""
    eager: bool = True
    """Time MeZO's algorithm 1 in eager PyTorch too."""
    memory: bool = True
    """Measure peak memory too; on a CPU in a process for each candidate."""
    replay_steps: Amount = 0
    """Time the replay of a ledger of so many steps too.

    The ledger is made up."""

    def check(self) -> None:
        """Check what can be checked without the model.

        Raises:
            BadInput: an unknown name or an impossible number.
        """
        typed.check(self)
        if not self.engines:
            raise BadInput(f"no engine to measure: name one of {', '.join(_engines())}")

    def candidates(self) -> list[str]:
        """Return the names of all candidates, each once."""
        return list(dict.fromkeys((FLOOR, *([EAGER] if self.eager else []), *self.engines)))

    def arguments(self) -> list[str]:
        """Return the command line that gives another process the same settings, as far as memory is concerned."""
        from gradless import plugins

        names = [
            "model",
            "scheme",
            "method",
            "dtype",
            "device",
            "quantise",
            "offload",
            "threads",
            "batch_size",
            "length",
            "seed",
        ]
        values = {f"--{name.replace('_', '-')}": getattr(self, name) for name in names}
        options = [part for flag, value in values.items() if value is not None for part in (flag, str(value))]
        return options + plugins.arguments(plugins.used({"methods": [self.method]}))
