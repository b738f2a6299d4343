"""Byte latent transformers against transformers' own pass over the whole text, which has no cache."""

from __future__ import annotations

import json
import sys
from collections import Counter
from functools import cache
from random import Random

import pytest
import torch
from torch import Tensor
from transformers import BltConfig, BltForCausalLM

from bild import BigLittleDecoder
from bild.cli import main
from bild.cli.info import describe
from bild.errors import InputError, LoadError
from bild.models import run_pair
from bild.models.byte_latent import ByteModel
from bild.models.loading.kinds import LOCAL
from tests.decoding.test_sampling import chi_square_p
from tests.networks import EOS, PAD, VOCAB_SIZE, build, forward, random_tokens, word_tokenizer

EXACT = {"rtol": 0.0, "atol": 1e-6}
"""Logits are float32, the rest is computed in float64."""
KINDS = {
    "entropy": {},
    "window": {"local_attention_window_len": 6, "seed": 3},
    "bytes": {"patching_mode": "none", "patch_in_forward": False, "seed": 2},
    "deep": {"layers": 3, "cross_attn_k": 1, "seed": 4},
    "one crossing": {"crossings": False, "seed": 5},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def blt(seed=0, layers=2, crossings=True, vocab_size=VOCAB_SIZE, **options):
    """A random network: about every third byte ends a patch."""
    window = options.setdefault("local_attention_window_len", None)
    many = options.setdefault("cross_attn_k", 2)
    # They initialise themselves from torch's generator.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        local = {"vocab_size": vocab_size, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
        local |= {"cross_attn_k": many, "hidden_size_global": 32, "initializer_range": 0.3}
        deep = {"num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 2, "initializer_range": 0.3}
        config = BltConfig(
            vocab_size=vocab_size,
            pad_token_id=PAD,
            eos_token_id=EOS,
            encoder_hash_byte_group_size=[3, 4],
            encoder_hash_byte_group_vocab=101,
            initializer_range=0.3,
            patcher_config={"vocab_size": vocab_size, "hidden_size": 16, "sliding_window": window, **deep},
            encoder_config={**local, "num_hidden_layers": layers - 1},
            decoder_config={**local, "num_hidden_layers": layers, "cross_attn_all_layers": crossings},
            global_config={"hidden_size": 32, **deep},
            **options,
        )
        network = BltForCausalLM(config).to(torch.float64).eval()
    if network.model.patcher is not None:
        with torch.inference_mode():
            entropies, _, _ = network.model.patcher(torch.tensor([random_tokens(Random(0), 60)]) % vocab_size)
        network.config.patching_threshold = float(entropies.quantile(2 / 3))
    return network


@cache
def network_of(kind: str) -> BltForCausalLM:
    """Nobody may change it."""
    return blt(**KINDS[kind])


def patches_of(network, tokens: list[int]) -> list[int]:
    """How long each patch of a text is, as transformers cuts it."""
    ids, config = torch.tensor([tokens]), network.config
    if network.model.patcher is None:
        return [1] * (len(tokens) + 1)
    with torch.inference_mode():
        _, lengths, _ = network.model.patcher(ids, patch_size=config.patch_size, threshold=config.patching_threshold)
    return lengths[0].tolist()


def beside(network, tokens: list[int], read: int) -> Tensor:
    """Logits ``[T, V]`` where no patch ends after the first ``read`` bytes, but the first one always does."""
    lengths = patches_of(network, tokens[: max(1, read)])
    lengths[-1] += len(tokens) - sum(lengths)
    cut = {"input_ids": torch.tensor([tokens]), "patch_lengths": torch.tensor([lengths])}
    with torch.inference_mode():
        return network(**cut, use_cache=False).logits[0]


@every_kind
def test_toys_have_patches_of_several_lengths(kind):
    lengths = patches_of(network_of(kind), random_tokens(Random(0), 60))
    assert len(set(lengths[2:-1])) > (kind != "bytes")


@every_kind
@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_reading_drafting_and_forgetting(kind, seed):
    network, rng = network_of(kind), Random(seed)
    large, small = run_pair(network, LOCAL, "eager")
    scorer = large.start([[]])
    drafter = small.beside(scorer, [[]])
    tokens: list[int] = []
    for _ in range(40):
        if rng.random() < 0.7 and len(tokens) < 50:
            draft = random_tokens(rng, rng.randint(0, 4))
            for at, token in enumerate(draft):
                logits = drafter.extend([[token]])[0]
                expected = beside(network, [*tokens, *draft[: at + 1]], len(tokens))[-1:]
                torch.testing.assert_close(logits, expected, **EXACT)
            assert drafter.lengths == [len(tokens) + len(draft)]
            new = [*draft[: rng.randint(0, len(draft))], *random_tokens(rng, rng.randint(1, 4))]
            logits = scorer.extend([new], len(new))[0]
            tokens += new
            torch.testing.assert_close(logits, forward(network, [], tokens)[-len(new) :], **EXACT)
        else:
            del tokens[rng.randint(0, len(tokens)) :]
            scorer.truncate([len(tokens)])
            drafter.truncate([len(tokens)])
        assert scorer.lengths == drafter.lengths == [len(tokens)]


@every_kind
def test_the_local_parts_let_the_network_read_a_prompt(kind):
    """All but its last byte; where several scores are asked for, the others are the network's own."""
    network, tokens = network_of(kind), random_tokens(Random(1), 9)
    large, small = run_pair(network, LOCAL, "eager")
    scorer = large.start([[]])
    logits = small.beside(scorer, [[]]).extend([tokens], 3)[0]
    assert scorer.lengths == [8]
    torch.testing.assert_close(logits[:2], forward(network, [], tokens[:8])[-2:], **EXACT)
    torch.testing.assert_close(logits[2], beside(network, tokens, 8)[-1], **EXACT)


def test_rows_are_kept_copied_and_joined_on_both_sides():
    network, rng = network_of("entropy"), Random(2)
    large, small = run_pair(network, LOCAL, "eager")
    texts = [random_tokens(rng, count) for count in (7, 1, 12)]
    scorer, other = large.start([[], []]), large.start([[]])
    drafter, beside_other = small.beside(scorer, [[], []]), small.beside(other, [[]])
    drafter.extend(texts[:2])
    beside_other.extend(texts[2:])
    scorer.join(other)
    drafter.join(beside_other)
    aside = scorer.copy([2, 0])
    scorer.keep([2, 0, 2])
    drafter.keep([2, 0, 2])
    assert drafter.lengths == [12, 7, 12]
    assert scorer.lengths == [11, 6, 11]
    drafts = [random_tokens(rng, 3) for _ in range(3)]
    for row, at in enumerate((2, 0, 2)):
        logits = drafter.extend([drafts[row] if b == row else [] for b in range(3)])[row]
        torch.testing.assert_close(
            logits, beside(network, [*texts[at], *drafts[row]], len(texts[at]) - 1)[-1:], **EXACT
        )
    for batch, rows in ((scorer, (2, 0, 2)), (aside, (2, 0))):
        new = [[texts[at][-1], *random_tokens(rng, 2)] for at in rows]
        scored = batch.extend(new, 3)
        for logits, at, more in zip(scored, rows, new, strict=True):
            torch.testing.assert_close(logits, forward(network, [], [*texts[at][:-1], *more])[-3:], **EXACT)


def greedy(network, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count and tokens[len(prompt) :][-1:] != [EOS]:
        tokens.append(int(forward(network, [], tokens)[-1].argmax()))
    return tokens[len(prompt) :]


@every_kind
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("drafter", ["small", "ngram"])
def test_exact_writes_the_networks_own_text(kind, batch_size, drafter):
    network = network_of(kind)
    decoder = BigLittleDecoder(network, LOCAL, drafter=drafter)
    prompts = [random_tokens(Random(seed), count) for seed, count in enumerate((1, 6, 17))]
    results = decoder.generate(
        prompts, "exact:fallback_threshold=0.1:max_draft_tokens=5", max_new_tokens=20, batch_size=batch_size
    )
    assert [result.token_ids for result in results] == [greedy(network, prompt, 20) for prompt in prompts]
    if drafter == "small":
        assert sum(result.stats.num_accepted_tokens for result in results) > 0
        assert sum(result.stats.num_rollbacks for result in results) > 0


@pytest.mark.parametrize("sides", [("entropy", "window"), ("entropy", "gpt2"), ("gpt2", "entropy")])
def test_a_byte_latent_network_on_either_side_of_a_pair(sides):
    large, small = (network_of(name) if name in KINDS else build(name) for name in sides)
    prompts = [random_tokens(Random(seed), 5) for seed in range(2)]
    results = BigLittleDecoder(large, small).generate(prompts, "exact:fallback_threshold=0", max_new_tokens=12)
    assert [result.token_ids for result in results] == [greedy(large, prompt, 12) for prompt in prompts]


@pytest.mark.thorough
def test_rejection_sampling_beside_the_local_parts_is_lossless():
    """Two bytes of a vocabulary of six, over 1,000 texts, by chi-square."""
    # Each byte is a patch, so a draft is always beside an old one.
    network = blt(seed=7, vocab_size=6, patching_mode="none", patch_in_forward=False)
    with torch.no_grad():
        for layer in network.model.local_decoder.cross_attn_layers:
            layer.o_proj.weight *= 8
    network.generation_config.eos_token_id = None
    prompt, draws, ids = [2, 3, 4, 5], 1000, range(6)
    results = BigLittleDecoder(network, LOCAL).generate(
        [prompt],
        "speculative_sampling:window=2",
        do_sample=True,
        seed=0,
        num_return_sequences=draws,
        max_new_tokens=2,
        batch_size=50,
    )
    first = forward(network, [], prompt)[-1].softmax(-1)
    second = [forward(network, [], [*prompt, each])[-1].softmax(-1) for each in ids]
    expected = {(one, two): draws * float(first[one] * second[one][two]) for one in ids for two in ids}
    seen = Counter(tuple(result.token_ids) for result in results)
    assert chi_square_p(seen, expected) > 0.01
    assert sum(result.stats.num_rollbacks for result in results) > draws / 20


def saved(network, folder) -> str:
    network.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return str(folder)


def test_from_disk_and_by_the_command_line(tmp_path, monkeypatch, capsys):
    name, text = saved(network_of("entropy"), tmp_path / "blt"), "w5 w6 w7 w8 w5 w6"
    own = BigLittleDecoder.from_pretrained(large=name, small=LOCAL, dtype="float32").generate(text, "large")[0]
    pair = ["--large", name, "--small", LOCAL, "--dtype", "float32", "--policy", "exact"]
    monkeypatch.setattr(sys, "argv", ["bild", "generate", *pair, "--json", text])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert json.loads(capsys.readouterr().out)["text"] == own.text


def test_what_is_known_of_a_pair():
    """Steps are timed though the local parts go on from the large model; their weights are a part of its."""
    facts = describe(BigLittleDecoder(network_of("entropy"), LOCAL))
    assert facts["cost_ratio"] > 0
    assert 0 < facts["small"]["parameters"] < facts["large"]["parameters"]
    assert (facts["large"]["width"], facts["large"]["decoder_layers"]) == (32, 2)


def test_it_is_not_compiled_and_says_so(caplog):
    large, small = run_pair(network_of("entropy"), LOCAL, "static")
    assert isinstance(large, ByteModel)
    assert not large.is_compiled
    assert not small.is_compiled
    assert [record.getMessage() for record in caplog.records] == [
        "byte-latent networks are not compiled: the pair runs uncompiled"
    ]


def test_the_local_parts_do_not_write_alone():
    decoder = BigLittleDecoder(network_of("entropy"), LOCAL)
    with pytest.raises(InputError, match="cannot write alone; take another policy"):
        decoder.generate([[5, 6]], "small")
    asked = {"num_beams": 3, "max_new_tokens": 6}
    with pytest.raises(InputError, match="drafted by the small model and no other; take policy 'large'"):
        decoder.generate([[5, 6]], "exact", **asked)
    assert len(decoder.generate([[5, 6]], "large", **asked)[0].hypotheses) == 3


def test_a_window_that_is_not_the_networks_is_seen_when_it_is_loaded(monkeypatch):
    """As where a version of transformers does without: the trial is longer than the window."""
    monkeypatch.setattr(ByteModel, "window", 5)
    with pytest.raises(LoadError, match="its parts do not add up to the network"):
        ByteModel(network_of("window"))


def test_a_patcher_that_is_not_asked():
    """Where patches are not cut by entropy every byte is one, patcher or not."""
    network = blt(seed=6, patching_mode="none")
    assert network.model.patcher is not None
    scorer, tokens = ByteModel(network).start([[]]), random_tokens(Random(3), 9)
    torch.testing.assert_close(scorer.extend([tokens], 9)[0], forward(network, [], tokens), **EXACT)


def test_a_pair_of_it_is_saved_and_loaded(tmp_path):
    tokenizer = word_tokenizer()
    decoder = BigLittleDecoder(network_of("entropy"), LOCAL, tokenizer, small_tokenizer=tokenizer)
    decoder.save_pretrained(tmp_path / "pair")
    again = BigLittleDecoder.from_pretrained(pair=tmp_path / "pair", dtype="float64")
    policy = "exact:fallback_threshold=0.1"
    assert again.generate("w5 w6 w7", policy)[0].token_ids == decoder.generate("w5 w6 w7", policy)[0].token_ids
    assert json.loads((tmp_path / "pair" / "bild.json").read_text())["small"] == LOCAL


def without_a_threshold():
    network = blt()
    network.config.patching_threshold = None
    return network


@pytest.mark.parametrize(
    ("large", "small", "message"),
    [
        (lambda: network_of("entropy"), "exit:1", r"small is exit:1, but BltForCausalLM is byte-latent \(BLT\)"),
        (lambda: build("llama"), LOCAL, r"small is blt:local, but LlamaForCausalLM is not byte-latent \(BLT\)"),
        (lambda: blt(max_patch_length=4), LOCAL, "has max_patch_length 4, by which the end of a patch depends on"),
        (lambda: blt(patch_size=None), LOCAL, "has patch_size None"),
        (without_a_threshold, LOCAL, "BltForCausalLM cannot run part by part"),
    ],
)
def test_what_cannot_be_is_refused(large, small, message):
    with pytest.raises(LoadError, match=message):
        run_pair(large(), small, "eager")


@pytest.mark.parametrize(
    ("kind", "small", "message"),
    [("blt", "exit:1", "is byte-latent"), ("llama", LOCAL, "is not byte-latent")],
)
def test_it_is_refused_before_weights_are_read(tmp_path, monkeypatch, kind, small, message):
    name = saved(network_of("entropy") if kind == "blt" else build(kind), tmp_path / kind)
    monkeypatch.setattr("bild.generation.loading.load_network", None)
    with pytest.raises(LoadError, match=message):
        BigLittleDecoder.from_pretrained(large=name, small=small)
