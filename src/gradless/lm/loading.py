"""Loading language models: known offline names, local folders, GGUF files, hub ids and tiny random ones.

Only safetensors weights are read (never a pickle), missing weights are an error rather than random numbers,
tied embeddings stay one parameter, and nothing goes to the network unless the source is a hub id or a known
name that is not in the cache yet.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import json
import logging
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import nn

from gradless.errors import BadInput, pick, unknown
from gradless.lm import assets, checkpoint_config, checkpoint_files, gguf, tiny_models
from gradless.lm.causality import looks_ahead
from gradless.system import cache as store
from gradless.system.cache import Say
from gradless.system.cache import quiet as silent
from gradless.system.children import PYTHON, environment
from gradless.system.hashing import file_sha256

__all__ = ["DTYPES", "LanguageModel", "device_of", "load", "preload", "quiet_transformers", "sources", "tiny"]

DTYPES: Final[dict[str, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

AUTO: Final = "auto"
CPU: Final = torch.device("cpu")


@dataclass(slots=True)
class LanguageModel:
    """A causal or masked language model in evaluation mode, with its tokenizer.

    Attributes:
        model: the Hugging Face model (or the PEFT model around it); ``use_cache`` is off.
        tokenizer: its fast tokenizer, which pads on the right and has a padding token.
        masked: True for masked models (RoBERTa, BERT), False for causal ones.
        source: what the user named, see `load`.
        name: a short name for tables.
    """

    model: nn.Module
    tokenizer: Any
    masked: bool
    source: str
    name: str

    @property
    def device(self) -> torch.device:
        """Device of the output layer's weights."""
        return self.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the model's weights."""
        return self.head.weight.dtype

    @property
    def spread(self) -> bool:
        """Whether the weights are on several devices."""
        return len({*getattr(self.model, "hf_device_map", {}).values()}) > 1

    @property
    def head(self) -> nn.Linear:
        """Output layer from hidden states to the vocabulary, weight ``[V, H]``, which tied models share."""
        head: nn.Linear = cast(Any, self.model).get_output_embeddings()
        return head

    @property
    def num_embeddings(self) -> int:
        """Tokens that the model knows; a tokenizer may have more."""
        return int(cast(Any, self.model).get_input_embeddings().weight.shape[0])

    @property
    def config(self) -> Any:
        """Configuration of the (text) model."""
        config = cast(Any, self.model).config
        return config.get_text_config() if hasattr(config, "get_text_config") else config

    @property
    def adapters(self) -> tuple[Any, ...]:
        """Configurations of PEFT's adapters; none for a plain model."""
        return tuple((getattr(self.model, "peft_config", None) or {}).values())

    @property
    def num_parameters(self) -> int:
        """Number of weights, each shared one counted once."""
        return sum(p.numel() for p in self.model.parameters())


def sources() -> dict[str, str]:
    """Return the names that `load` knows without a model hub, each with one line about it."""
    known = {name: asset.about for name, asset in assets.ASSETS.items() if asset.kind == "model"}
    return known | {f"tiny-{name}": "random weights, two layers, for tests" for name in tiny_models.FAMILIES}


def load(
    source: str,
    *,
    dtype: str | None = None,
    device: str = "cpu",
    cache: Path | None = None,
    tokenizer: Any = None,
    say: Say = silent,
) -> LanguageModel:
    """Return a model and its tokenizer.

    Args:
        source: a name from `sources`, a folder with ``config.json`` and safetensors, a ``.gguf`` file
            (converted to float32 once, then read from the cache), or a hub id, ``owner/name`` or
            ``owner/name@revision``.
        dtype: a key of `DTYPES`; default float32 on the CPU, elsewhere the checkpoint's own.
        device: device of the weights, ``cpu``, ``cuda`` or ``cuda:1`` for instance; ``auto`` spreads them over all
            GPUs (accelerate's device map).
        cache: cache folder (default: `gradless.system.cache.cache_root`).
        tokenizer: that of this model, if it has been read before; large ones take seconds.
        say: receives lines about slow steps.

    Memory: about the weights; they are mapped from the file and copied one tensor at a time.

    Raises:
        BadInput: no such model, a broken file, no language-model head, unknown dtype or device, too large for ``auto``.
    """
    preloaded = _preloaded.pop((source, dtype, device), None)
    if preloaded is not None:
        return preloaded
    weights_dtype = None if dtype is None else pick("dtype", dtype, DTYPES)
    several = device == AUTO and torch.cuda.device_count() > 1
    target = device_of(("cuda" if torch.cuda.is_available() else "cpu") if device == AUTO else device)
    if weights_dtype is None and target.type == "cpu":
        weights_dtype = torch.float32
    if source.startswith("tiny-") and not Path(source).exists():
        architecture, tied = tiny_models.parse(source)
        lm = tiny(architecture, tied=tied)
        lm.model.to(target)
        for parameter in lm.model.parameters():  # rotary frequencies stay float32, as in models from files
            parameter.data = parameter.data.to(weights_dtype or parameter.dtype)
        return lm
    folder, revision = _resolve(source, cache or store.cache_root(), say)
    with quiet_transformers():
        return _from_folder(source, folder, revision, weights_dtype, AUTO if several else target, tokenizer)


_preloaded: dict[tuple[str, str | None, str], LanguageModel] = {}


def preload(source: str, *, dtype: str | None = None) -> None:
    """Load a model to the CPU for the next `load` of it, in this process or in one that is forked from it."""
    _preloaded[source, dtype, "cpu"] = load(source, dtype=dtype)


def tiny(architecture: str, *, seed: int = 0, tied: bool | None = None) -> LanguageModel:
    """Return a random two-layer model: hidden size 32, a few hundred tokens, float32, the same on every call.

    Args:
        architecture: opt, llama, mistral, qwen, gemma or roberta.
        seed: of the weights.
        tied: share input and output embeddings; default as the architecture's small models do.

    Raises:
        BadInput: unknown architecture.

    Example:
        >>> tiny("llama").head.weight.shape[1]
        32
    """
    with quiet_transformers():
        model, tokenizer, masked = tiny_models.build(architecture, seed=seed, tied=tied)
    suffix = "" if tied is None else "-tied" if tied else "-untied"
    name = f"tiny-{architecture}{suffix}"
    return _finish(LanguageModel(model, tokenizer, masked, source=name, name=name))


# ------------------------------------------------------------------------------------------------------------
# from a source to a folder or a hub id


def _resolve(source: str, root: Path, say: Say) -> tuple[str, str | None]:
    """Return the folder or hub id of a source, and the hub revision."""
    asset = assets.ASSETS.get(source)
    if asset is not None and asset.kind == "model":
        path = assets.fetch(source, say, cache=root)
        digest = next((file.sha256 for file in asset.files if file.name == asset.entry), None)
        return str(_converted(path, digest, root, say) if path.is_file() else path), None
    path = Path(source).expanduser()
    if path.is_dir():
        return str(checkpoint_files.checked_folder(path)), None
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise BadInput(f"{source} is neither a folder nor a .gguf file: give the folder with its config.json")
        return str(_converted(path, None, root, say)), None
    if path.is_absolute() or source.startswith((".", "~")) or path.suffix == ".gguf" or source.count("/") > 1:
        raise BadInput(f"there is no model at {source}: check the path")
    name, _, revision = source.partition("@")
    if "/" not in name and difflib.get_close_matches(name.lower(), sources(), n=1, cutoff=0.7):
        raise BadInput(unknown("model", name, sources()))  # a typing error is no reason to call the hub
    return name, revision or None


def _converted(path: Path, digest: str | None, root: Path, say: Say) -> Path:
    """Return the cached folder of a GGUF file, keyed by its hash; a child process converts it the first time."""
    try:
        files = gguf.parts(path)
        for file in files:
            gguf.check(file)
        digest = digest or _joint_sha256(files)
    except ValueError as error:
        raise BadInput(f"{path} {error}") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error

    def build(folder: Path) -> None:
        seconds = max(10, round(sum(file.stat().st_size for file in files) / 4e6 / 10) * 10)
        say(f"converting {path.name} once, about {seconds} s")
        command = [*PYTHON, "-m", "gradless.lm.gguf", str(files[0].absolute()), str(folder)]
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
        if run.returncode == gguf.NO_SPACE:
            raise OSError(errno.ENOSPC, "No space left on device")
        if run.returncode != 0:
            raise BadInput(_conversion_failure(path, run.stderr))

    return store.ensure(root / "gguf" / digest, build)


def _joint_sha256(files: list[Path]) -> str:
    """Return the hash of a file, or of the hashes of several."""
    digests = [file_sha256(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _conversion_failure(path: Path, stderr: str) -> str:
    last = next((line for line in reversed(stderr.splitlines()) if line.startswith("{")), "")
    reason = json.loads(last) if last else {"type": "", "reason": "the converter was killed, out of memory?"}
    if reason["type"] == "Unusable":
        return f"{path} {reason['reason']}"
    if reason["type"] in ("ImportError", "ModuleNotFoundError"):
        return f"reading {path} needs more packages ({reason['reason']}): pip install 'gradless[lm]'"
    if "not supported" in reason["reason"] or reason["type"] == "NotImplementedError":
        return f"{path} cannot be used ({reason['reason']}): choose a model in safetensors"
    return f"{path} is broken or truncated ({reason['reason']}): download it again"


# ------------------------------------------------------------------------------------------------------------
# from a folder or hub id to a model


def _from_folder(
    source: str,
    folder: str,
    revision: str | None,
    dtype: torch.dtype | None,
    device: torch.device | str,
    tokenizer: Any,
) -> LanguageModel:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    local = Path(folder).is_dir()
    options: dict[str, Any] = {"revision": revision or "main"} | ({"local_files_only": True} if local else {})
    try:
        config, masked = checkpoint_config.read(folder, options)
        head = AutoModelForMaskedLM if masked else AutoModelForCausalLM
        model, report = head.from_pretrained(
            folder,
            config=config,
            dtype=dtype or "auto",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report
            **({} if device == CPU else {"device_map": device if device == AUTO else {"": device}}),
            **options,
            **checkpoint_config.OWN_CODE,
        )
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(folder, **options, **checkpoint_config.OWN_CODE)
    except BadInput as error:
        raise BadInput(f"{source}: {error}") from None
    except Exception as error:  # transformers, hub, safetensors and tokenizers each raise their own
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        if device == AUTO and "offload" in str(error):  # to a disk, which was not asked for
            raise BadInput(_too_large(source)) from error
        raise BadInput(checkpoint_files.load_failure(source, local, error, sorted(sources()))) from error
    _refuse_offloaded(source, model)
    checkpoint_files.check_report(source, model, report)
    name = source if source in assets.ASSETS else Path(source.partition("@")[0]).name.removesuffix(".gguf")
    return _finish(LanguageModel(model, tokenizer, masked, source=source, name=name))


def _refuse_offloaded(source: str, model: nn.Module) -> None:
    """Refuse a model with offloaded weights: they are on a device for moments of a forward only.

    Raises:
        BadInput: some weights are offloaded.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise BadInput(_too_large(source))


def _too_large(source: str) -> str:
    return (
        f"{source} does not fit on the devices here, and weights that are offloaded to host memory or disk cannot be "
        "tuned: use --dtype bfloat16, more GPUs, or --device cpu"
    )


def _finish(lm: LanguageModel) -> LanguageModel:
    lm.model.eval()
    if hasattr(lm.model.config, "use_cache"):
        lm.model.config.use_cache = False
    _set_padding(lm)
    if not isinstance(lm.head, nn.Linear):
        raise BadInput(f"{lm.source} has no linear output layer: choose a causal or masked language model")
    if not lm.masked and looks_ahead(lm.model):
        raise BadInput(
            f"{lm.source} ({type(lm.model).__name__}) reads what follows a token, so it cannot score options token by "
            "token: choose a causal model, or a checkpoint of the masked one"
        )
    return lm


def _set_padding(lm: LanguageModel) -> None:
    """Make the tokenizer pad on the right, with a token for which the model has an embedding."""
    tokenizer: Any = lm.tokenizer
    special = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    token = next((one for one in special if one is not None and one < lm.num_embeddings), None)
    if token is None:
        raise BadInput(f"the tokenizer of {lm.source} has no special token to pad with: add a pad_token to it")
    if token != tokenizer.pad_token_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(token)
    tokenizer.padding_side = "right"


def device_of(name: str) -> torch.device:
    """Return the device of a name such as ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        BadInput: this machine has no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"unknown device '{name}': use cpu, cuda, cuda:0 or auto") from None
    backends: dict[str, Any] = {"cuda": torch.cuda, "xpu": torch.xpu, "mps": torch.mps}
    if device.type not in ("cpu", *backends):
        raise BadInput(f"device '{name}' is of a kind that is not supported: use cpu, cuda, mps, xpu or auto")
    there = 1 if device.type == "cpu" else _count(device.type, backends[device.type])
    if (device.index or 0) >= there:
        raise BadInput(f"device '{name}' is not there ({there} found): use --device {'cpu' if not there else 'auto'}")
    if name == "cuda":  # a process of a job on several GPUs has chosen its own
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def _count(kind: str, backend: Any) -> int:
    """Return the number of devices of a kind."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    return int(backend.device_count()) if backend.is_available() else 0


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress warnings, log lines and progress bars of transformers; afterwards its settings are as before."""
    from transformers.utils import logging as hf

    verbosity, bars = hf.get_verbosity(), hf.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    hf.set_verbosity_error()
    hf.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf.set_verbosity(verbosity)
        hub.setLevel(hub_level)
        if bars:
            hf.enable_progress_bar()
