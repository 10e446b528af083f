import pytest
import torch

from gradless import lm as models
from gradless.errors import BadInput
from gradless.lm import LanguageModel, gguf_schemes, schemes, virtual_tokens
from gradless.runs.scheme_settings import DEFAULTS, STORED
from gradless.system.hashing import weights_sha256

ARCHITECTURES = ["opt", "llama", "mistral", "qwen", "gemma", "roberta"]
CAUSAL = ARCHITECTURES[:-1]
LABELS = (40, 50)
GENERAL = [name for name in schemes.SCHEMES if name not in STORED]  # of models of any kind


def logits(lm: LanguageModel, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(input_ids=ids, attention_mask=mask).logits


def padded(lm: LanguageModel) -> tuple[torch.Tensor, torch.Tensor]:
    rows = lm.tokenizer(["It was great", "It was a long sentence."], padding=True, return_tensors="pt")
    assert rows.attention_mask[0, -1] == 0
    return rows.input_ids, rows.attention_mask


def apply(lm: LanguageModel, scheme: str, **options) -> LanguageModel:
    return schemes.apply(lm, scheme, **({"label_token_ids": LABELS} if scheme == "head" else {}), **options)


def test_schemes_of_gguf_files_are_named_alike() -> None:
    assert tuple(gguf_schemes.FIELDS) == STORED
    assert schemes.SCHEMES.keys() == DEFAULTS.keys()


@pytest.mark.parametrize("scheme", GENERAL)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_scheme_on_every_architecture(architecture: str, scheme: str) -> None:
    base = models.tiny(architecture)
    frozen = weights_sha256(base.model.named_parameters())
    ids, mask = padded(base)
    before = logits(base, ids, mask)
    state = torch.get_rng_state()
    lm = apply(base, scheme, seed=3)
    assert torch.equal(torch.get_rng_state(), state), "a scheme must leave the global generator alone"
    after = logits(lm, ids, mask)
    assert not lm.model.training
    assert lm.head.weight.shape == (len(lm.tokenizer), 32)

    names = [name for name, _ in schemes.trainable(lm)]
    layers = 2
    if scheme == "full":
        assert names == [name for name, _ in lm.model.named_parameters()]
        assert weights_sha256(schemes.trainable(lm)) == frozen
    elif scheme == "lora":
        query, value = ("query", "value") if architecture == "roberta" else ("q_proj", "v_proj")
        assert len(names) == 2 * 2 * layers
        assert all((f".{query}." in name or f".{value}." in name) and ".lora_" in name for name in names)
    elif scheme == "head":
        assert names == ["label_head.weight"]
    else:
        assert names == ["prompt_encoder.default.embedding.weight"]

    shift = 10 if scheme == "prompt" else 0
    assert after.shape[1] == before.shape[1] + shift
    same = torch.equal(after[:, shift:], before)
    assert same == (scheme in {"full", "lora", "head"}), "the start is the base model's output, or is not"
    # Right padding changes nothing for the real tokens.
    real = int(mask[0].sum())
    alone = logits(lm, ids[:1, :real], mask[:1, :real])
    torch.testing.assert_close(after[0, : real + shift], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", ["lora", "prefix", "prompt"])
@pytest.mark.parametrize("architecture", ["llama", "gemma", "roberta"])
def test_initial_values_are_a_function_of_the_seed(architecture: str, scheme: str) -> None:
    def start(seed: int) -> str:
        return weights_sha256(schemes.trainable(schemes.apply(models.tiny(architecture), scheme, seed=seed)))

    first = start(0)
    torch.rand(7)  # the global generator has no say
    assert start(0) == first
    assert start(1) != first


@pytest.mark.parametrize("architecture", CAUSAL)
@pytest.mark.parametrize("scheme", ["prefix", "prompt"])
def test_virtual_tokens_start_as_real_ones(architecture: str, scheme: str) -> None:
    """Before tuning, a prefix or prompt acts exactly as its random tokens put in front of the input would."""
    base = models.tiny(architecture)
    ids, _ = padded(base)
    count = 5 if scheme == "prefix" else 10
    front = virtual_tokens.random_tokens(base, count, seed=2).expand(len(ids), -1)
    ids = ids[:, 1:]
    expected = logits(base, torch.cat((front, ids), dim=1))[:, count:]
    got = logits(schemes.apply(base, scheme, seed=2), ids)[:, -ids.shape[1] :]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_masked_prompt_starts_as_real_tokens() -> None:
    base = models.tiny("roberta")
    ids, _ = padded(base)
    ids = ids[1:]
    front = virtual_tokens.random_tokens(base, 10, seed=2)
    expected = logits(base, torch.cat((front, ids), dim=1))
    got = logits(schemes.apply(base, "prompt", seed=2), ids)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("scheme", ["lora", "prefix", "prompt", "head"])
def test_tuned_parameters_move_the_output(architecture: str, scheme: str) -> None:
    lm = apply(models.tiny(architecture), scheme)
    ids, mask = padded(lm)

    def output() -> torch.Tensor:
        if scheme == "head":
            return lm.model.label_head(torch.ones(1, 32))
        return logits(lm, ids, mask)

    original = output()
    with torch.no_grad():
        for _, parameter in schemes.trainable(lm):
            parameter.add_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape))  # norms hide a constant
    assert not torch.allclose(output(), original, atol=1e-3)


@pytest.mark.parametrize("scheme", GENERAL)
@pytest.mark.parametrize("architecture", ["gemma", "roberta"])
def test_bfloat16_models_get_bfloat16_parameters(architecture: str, scheme: str) -> None:
    lm = models.tiny(architecture)
    lm.model.to(torch.bfloat16)
    lm = apply(lm, scheme)
    assert {p.dtype for p in lm.model.parameters()} == {torch.bfloat16}
    assert torch.isfinite(logits(lm, *padded(lm))).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tied_weights_are_tuned_once_and_stay_tied(architecture: str) -> None:
    lm = schemes.apply(models.tiny(architecture, tied=True), "full")
    table = lm.model.get_input_embeddings().weight
    assert lm.head.weight is table
    assert sum(p is table for _, p in schemes.trainable(lm)) == 1
    untied = schemes.apply(models.tiny(architecture, tied=False), "full")
    assert untied.head.weight is not untied.model.get_input_embeddings().weight
    assert len(schemes.trainable(untied)) > len(schemes.trainable(lm))


def test_freeze_matches_every_name_of_a_tied_weight() -> None:
    by_head = schemes.apply(models.tiny("gemma"), "full", freeze=("lm_head",))
    by_table = schemes.apply(models.tiny("gemma"), "full", freeze=(r"embed_tokens\.",))
    names = [name for name, _ in schemes.trainable(by_head)]
    assert names == [name for name, _ in schemes.trainable(by_table)]
    assert "model.embed_tokens.weight" not in names
    assert len(names) == len(list(by_head.model.parameters())) - 1
    some = schemes.apply(models.tiny("llama"), "lora", freeze=(r"layers\.0\.",))
    assert all(".layers.1." in name for name, _ in schemes.trainable(some))


def test_label_head_keeps_the_zero_shot_logits() -> None:
    for architecture in ("gemma", "roberta"):
        lm = models.tiny(architecture)
        ids, mask = padded(lm)
        seen = []
        hook = lm.head.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        full = logits(lm, ids, mask)
        hook.remove()
        lm = schemes.apply(lm, "head", label_token_ids=LABELS)
        torch.testing.assert_close(lm.model.label_head(seen[0]), full[..., list(LABELS)])


def test_lora_scale_and_spread() -> None:
    lm = schemes.apply(models.tiny("llama"), "lora", rank=4, alpha=8, targets=("down_proj",))
    values = dict(schemes.trainable(lm))
    assert len(values) == 4
    down = [p for name, p in values.items() if "lora_A" in name]
    assert all(p.shape == (4, 48) for p in down)
    spread = torch.cat([p.detach().flatten() for p in down]).std().item()
    assert spread == pytest.approx((3 * 48) ** -0.5, rel=0.15)
    layer = lm.model.base_model.model.model.layers[0].mlp.down_proj
    assert layer.scaling["default"] == 2.0


@pytest.mark.parametrize(
    ("scheme", "options", "words"),
    [
        ("lor", {}, ["unknown scheme 'lor'", "'lora'"]),
        (
            "lora",
            {"targets": ("c_attn",)},
            ["c_attn", "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj"],
        ),
        ("lora", {"targets": ()}, ["choose targets from"]),
        ("lora", {"rank": 0}, ["rank must be at least 1"]),
        ("full", {"freeze": ("nothing_like_it",)}, ["no parameter matches", "model.embed_tokens.weight"]),
        ("full", {"freeze": ("(",)}, ["not a regular expression"]),
        ("full", {"freeze": ("",)}, ["nothing to tune"]),
        ("head", {}, ["fixed label words"]),
        ("head", {"label_token_ids": (3, 3)}, ["fixed label words"]),
        ("head", {"label_token_ids": (3, 100000)}, ["vocabulary"]),
        ("prompt", {"num_prompt": 1000}, ["use fewer"]),
    ],
)
def test_bad_input(scheme: str, options: dict, words: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        schemes.apply(models.tiny("llama"), scheme, **options)
    for part in words:
        assert part in str(caught.value)


def test_a_second_scheme_is_refused() -> None:
    for first in ("lora", "head"):
        lm = apply(models.tiny("llama"), first)
        with pytest.raises(BadInput, match="load it again"):
            schemes.apply(lm, "full")


@pytest.mark.parametrize(("rank", "targets"), [(33, None), (10**6, ("q_proj",)), (33, ("down_proj", "v_proj"))])
def test_a_rank_that_no_adapted_layer_has_is_refused_before_memory_is_taken(rank, targets):
    with pytest.raises(BadInput, match=f"rank is {rank}, and the layers .* at most rank 32: lower --rank"):
        schemes.apply(models.tiny("llama"), "lora", rank=rank, targets=targets)
