"""How the weights of a model are kept: in floats, quantised as they are loaded, or outside of the device's memory."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import nn

from gradless.errors import BadInput, pick
from gradless.lm import quantisation, tiny_models
from gradless.lm.model_names import is_gguf
from gradless.storage import floats, quantised
from gradless.storage.stored import StoredWeight

CPU: Final = torch.device("cpu")
OFFLOAD: Final = {
    "cpu": "in the host's memory, while a graphics card computes",
    "disk": "in the files that they are read from, mapped",
}


class Storage(NamedTuple):
    """What a user asks for; see `gradless.lm.load`."""

    quantise: str | None = None
    offload: str | None = None

    @property
    def plain(self) -> bool:
        """Whether weights are loaded as always."""
        return self.quantise is None and self.offload is None

    def check(self, source: str, device: torch.device, *, several: bool) -> None:
        """Refuse what cannot be, before anything is loaded.

        Args:
            source: the model, as `gradless.lm.load` takes it.
            device: where it computes.
            several: whether it is spread over several devices.

        Raises:
            BadInput: with what to leave out.
        """
        if self.plain:
            return
        if self.quantise is not None:
            quantisation.check_choice(self.quantise)
        if self.offload is not None:
            pick("offload", self.offload, OFFLOAD)
        if self.quantise is not None and self.offload is not None:
            raise BadInput("quantised weights are in memory, and offloaded ones are not: leave out one of the two")
        if several:
            raise BadInput("quantised or offloaded weights go with one device: name it, --device cuda:0 for instance")
        self.check_source(source)
        if self.offload == "cpu" and device.type == "cpu":
            raise BadInput(
                "--offload cpu keeps weights in the host's memory for a graphics card, and the device is the cpu: use "
                "--offload disk, or leave it out"
            )
        if self.offload is not None and tiny_models.is_name(source):
            raise BadInput(f"{source} has random weights and no file that they could stay in: leave out --offload")

    def check_source(self, source: str) -> None:
        """Refuse what goes with no GGUF file, if the model is one.

        Raises:
            BadInput: with what to leave out.
        """
        if self.plain or not is_gguf(source):
            return
        if self.quantise is not None:
            raise BadInput(f"{source} is a GGUF file, which is quantised already: leave out --quantise")
        raise BadInput(f"{source} is a GGUF file, which stays on disk by itself: leave out --offload")

    def settle(
        self, model: nn.Module, method: str | None, dtype: torch.dtype | None, device: torch.device | str
    ) -> str:
        """Bring the weights of a loaded model to where, and to what, they are to be.

        Args:
            model: loaded; its weights are in the checkpoint's type on the CPU if something is asked for.
            method: by which its checkpoint is quantised; None if it holds floats.
            dtype: of the values that layers get; None for the checkpoint's own.
            device: where the model computes.

        Returns:
            A line for the user; mostly nothing.

        Raises:
            BadInput: it is quantised already, or activations would be rounded.
        """
        line = ""
        if method is not None:
            if not self.plain:
                option = f"--quantise {self.quantise}" if self.quantise else f"--offload {self.offload}"
                raise BadInput(f"its weights are quantised already ({method}): leave out {option}")
            line = quantisation.plain(model, method, dtype or _dtype(model))
        if self.quantise is not None:
            quantisation.apply(model, self.quantise, dtype or _dtype(model), torch.device(device))
        if self.offload is not None:
            target = torch.device(device)
            floats.keep(model, dtype, target, pin=self.offload == "cpu" and target.type == "cuda")
        return line


def _dtype(model: Any) -> torch.dtype:
    dtype: torch.dtype = model.dtype
    return dtype if dtype.is_floating_point else torch.get_default_dtype()


def untunable(model: nn.Module, source: str) -> str | None:
    """Return why the weights of a model cannot be tuned themselves, and what can be done instead; None if they can.

    Args:
        model: loaded.
        source: what the user named.
    """
    if (codes := quantised.of_model(model)) is not None:
        gguf = codes.startswith("GGUF")
        others = ", scales (what its codes are multiplied by) or codes (moves of whole codes)" if gguf else ""
        floats_too = "--dtype float32 for weights in floats" if gguf else "a checkpoint in floats"
        return (
            f"the weights of {source} are quantised ({codes}), and a small step of floats cannot move a code of a few "
            f"bits, so the scheme full has nothing to tune: use --scheme lora{others}, or {floats_too}"
        )
    store = next((p.store for p in model.parameters() if isinstance(p, StoredWeight)), None)
    if store is None:
        return None
    fix = "leave out --offload" if isinstance(store, floats.Offloaded) else "give --dtype float32"
    return (
        f"the weights of {source} stay in their file, which the scheme full cannot write: use --scheme lora, or {fix}"
    )


def refuse_offloaded(source: str, model: nn.Module) -> None:
    """Refuse a model that accelerate spread over devices and something else: those weights cannot be read whenever.

    Raises:
        BadInput: some weights have no data.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise BadInput(too_large(source))


def too_large(source: str) -> str:
    """Return the sentence for a model that does not fit on the devices."""
    return (
        f"{source} does not fit on the devices here: use --dtype bfloat16, --quantise nf4, more GPUs, one device with "
        "--offload cpu or --offload disk, or --device cpu"
    )
