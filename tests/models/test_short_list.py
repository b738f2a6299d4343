"""A head over a short list: the same scores of the listed tokens, the others impossible, and a smaller product."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from contextlib import ExitStack
from unittest.mock import patch

import pytest
import torch

from bild import BigLittleDecoder, InputError, LoadError, Policy
from bild.models import (
    CompiledModel,
    EagerModel,
    int8,
    kernels,
    read_short_list,
    short_list_of,
    shorten,
    to_int8,
    write_short_list,
)
from bild.models.compiled import compiling
from bild.models.compiled.calling import nested
from bild.models.int8 import Int8Linear
from bild.models.parts import head_of
from bild.models.short_list import FILE, scoring
from tests.compiled import recorded
from tests.decoding.test_sampling import chi_square_p
from tests.networks import VOCAB_SIZE, build

LISTED = [1, 2, 4, 7, 11, 12, 20, 33, 38]
OTHERS = [id for id in range(VOCAB_SIZE) if id not in LISTED]
SOURCE, TEXT = [5, 6, 7], [0, 9, 20, 33, 4]


def pair(name: str, **options):
    """A network, and the same one with a short list."""
    whole = build(name, dtype=torch.float32, **options)
    return whole, shorten(copy.deepcopy(whole), LISTED)


def start(model, rows: int = 1):
    # Not by start(), which unmarked tests may not call of a compiled model: nothing here was compiled.
    begin = model.scorer if isinstance(model, CompiledModel) else model.start
    return begin([SOURCE if model.is_encoder_decoder else []] * rows)


def uncompiled(module, inputs, *_, **__):
    """In place of the compiler: the module as it is, called as a graph is."""
    if not isinstance(inputs[2] if len(inputs) > 2 else None, list | tuple):
        return lambda tensors: list(module(*tensors))
    stored = len(inputs[2]) + len(inputs[3])
    return lambda tensors: list(module(*nested(*tensors[:2], tensors[2 : 2 + stored], tensors[2 + stored :])))


def as_compiled(network) -> CompiledModel:
    """The compiled runtime of a CPU, but for the compiler."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(compiling, "compiled", uncompiled))
        # Nor are kernels built, for half a minute.
        stack.enter_context(patch.object(kernels, "are_supported", lambda *_: False))
        stack.enter_context(patch("bild.models.compiled.model.graph_name", lambda _: "graph"))
        model = CompiledModel(network)
    assert model.is_compiled
    return model


RUNTIMES = {"eager": EagerModel, "compiled": as_compiled, "recorded": recorded}


# Marian adds a bias to its logits outside the head, T5 scales what goes into it.
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "marian"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_listed_tokens_score_as_ever_and_the_others_cannot_be_written(name, runtime):
    whole, short = pair(name)
    if name == "marian":
        bias = torch.randn(1, VOCAB_SIZE)
        whole.final_logits_bias, short.final_logits_bias = bias, bias[:, LISTED]
    expected = start(EagerModel(whole)).extend([TEXT], 3)
    model = RUNTIMES[runtime](short)
    assert model.vocab_size == VOCAB_SIZE
    logits, summary = start(model).summarize([TEXT], 3)
    torch.testing.assert_close(logits[..., LISTED], expected[..., LISTED])
    assert logits.shape == expected.shape and (logits[..., OTHERS] == -math.inf).all()
    probabilities = expected[..., LISTED].softmax(-1)
    assert summary.likeliest.tolist() == torch.tensor(LISTED)[probabilities.argmax(-1)].tolist()
    torch.testing.assert_close(summary.probability, probabilities.amax(-1))
    torch.testing.assert_close(summary.log_total, expected[..., LISTED].logsumexp(-1))
    torch.testing.assert_close(start(model).extend([TEXT], 3), logits)


@pytest.mark.parametrize("runtime", ["compiled", "recorded"])
def test_what_is_rolled_out_on_the_compiled_runtime_are_ids(runtime):
    _, short = pair("llama")
    expected = EagerModel(short).start([[], []])
    texts = [[0, 9], [3, 20, 33]]
    for row in range(2):
        for _ in range(5):
            scores = expected.extend([text[expected.lengths[b] :] if b == row else [] for b, text in enumerate(texts)])
            texts[row].append(int(scores[row, -1].argmax()))
    written: list[list[int]] = [[0, 9], [3, 20, 33]]

    def take(row: int, token: int, probability: float) -> bool:
        written[row].append(token)
        return len(written[row]) < len(texts[row])

    start(RUNTIMES[runtime](short), 2).roll([list(row) for row in written], 5, take, [None, None])
    assert written == texts and set(written[0][2:]) <= set(LISTED)


def test_ids_beyond_the_shared_vocabulary_are_not_written_either():
    _, short = pair("llama")
    model = EagerModel(short)
    model.vocab_size = 20
    logits, summary = start(model).summarize([TEXT])
    assert logits.shape[-1] == 20 and int(summary.likeliest) in LISTED[:6]


def test_the_product_is_over_the_list_alone_in_eight_bits_too(monkeypatch):
    monkeypatch.setattr(int8, "_is_ours_faster", lambda *_: False)
    whole, short = pair("llama", width=32)
    rows = head_of(short).rows
    assert (rows.out_features, head_of(whole).out_features) == (len(LISTED), VOCAB_SIZE)
    expected = start(EagerModel(short)).extend([TEXT], 2)
    to_int8(short)
    assert isinstance(head_of(short).rows, Int8Linear) and head_of(short).rows.out_features == len(LISTED)
    logits = start(EagerModel(short)).extend([TEXT], 2)
    torch.testing.assert_close(logits[..., LISTED], expected[..., LISTED], atol=0.5, rtol=0.1)


def test_exact_match_writes_the_large_models_text():
    large = build("llama", seed=1, dtype=torch.float32)
    decoder = BigLittleDecoder(large, shorten(copy.deepcopy(large), LISTED))
    prompts = [[at, 3, 5] for at in range(2, 12)]
    options = {"max_new_tokens": 12, "eos_token_id": -1}
    texts, alone = (decoder.generate(prompts, policy, **options) for policy in ("exact", "large"))
    assert [each.token_ids for each in texts] == [each.token_ids for each in alone]
    drafted = sum(each.stats.num_draft_tokens for each in texts)
    accepted = sum(each.stats.num_accepted_tokens for each in texts)
    # Drafts are kept where the large model writes a listed token, and only there.
    assert 0 < accepted < drafted


def test_rejection_sampling_keeps_the_distribution_though_the_drafter_lacks_most_tokens():
    large = build("llama", seed=1, dtype=torch.float32, vocab_size=6)
    small = shorten(build("llama", seed=2, dtype=torch.float32, vocab_size=6), [2, 3, 5])
    decoder, draws = BigLittleDecoder(large, small), 3000
    policy = Policy.speculative_sampling(window=2)
    results = decoder.generate(
        [[3, 4]] * draws,
        policy,
        batch_size=draws,
        max_new_tokens=2,
        do_sample=True,
        temperature=1.7,
        seed=3,
        eos_token_id=-1,
    )
    seen = Counter(tuple(result.token_ids) for result in results)
    scores = EagerModel(large).start([[]] * 7)
    begun = scores.extend([[3, 4]] * 7)[0, -1]
    first = (begun / 1.7).softmax(-1)
    second = (scores.extend([*[[id] for id in range(6)], []])[:6, -1] / 1.7).softmax(-1)
    expected = {(i, j): draws * float(first[i] * second[i, j]) for i in range(6) for j in range(6)}
    assert chi_square_p(dict(seen), expected) > 1e-3
    drafted = [token for result in results for commit in result.rounds for token in commit.tokens[: commit.accepted]]
    assert drafted and set(drafted) <= {2, 3, 5}


def test_within_scoring_the_weights_learn_and_are_whole_behind_it():
    whole, short = pair("marian")
    ids, inputs = torch.tensor(LISTED), {"input_ids": torch.tensor([SOURCE]), "decoder_input_ids": torch.tensor([TEXT])}
    with scoring(whole, ids):
        logits = whole(**inputs).logits
    torch.testing.assert_close(logits, short(**inputs).logits)
    logits.sum().backward()
    gradient = head_of(whole).weight.grad
    assert gradient[LISTED].abs().sum() > 0 and not gradient[OTHERS].any()
    assert whole(**inputs).logits.shape[-1] == VOCAB_SIZE and short_list_of(whole) is None


def test_a_pair_is_loaded_with_the_list_of_its_small_model_only(tmp_path):
    large, small = build("llama", dtype=torch.float32), build("llama", seed=1, dtype=torch.float32)
    for name, network in (("large", large), ("small", small)):
        network.save_pretrained(tmp_path / name)
        write_short_list(tmp_path / name, LISTED)
    names = {"large": str(tmp_path / "large"), "small": str(tmp_path / "small")}
    options = {"dtype": "float32", "device": "cpu", "runtime": "eager"}
    decoder = BigLittleDecoder.from_pretrained(**names, **options)
    assert short_list_of(decoder.large.network) is None
    assert short_list_of(decoder.small.network).tolist() == LISTED
    # Alone, or on both sides, a checkpoint keeps its whole head.
    both = BigLittleDecoder.from_pretrained(large=names["small"], small=names["small"], **options)
    assert short_list_of(both.large.network) is None
    with pytest.raises(InputError, match="other rows are not there"):
        decoder.save_pretrained(tmp_path / "pair")


def test_a_list_that_is_none_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "_is_ours_faster", lambda *_: False)
    network = build("llama", dtype=torch.float32)
    network.save_pretrained(tmp_path)
    assert read_short_list(tmp_path) is None
    for text in ("{", "[1, 2]", json.dumps({"ids": [2, 1]}), json.dumps({"ids": []}), json.dumps({"ids": [True]})):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(LoadError, match="make it anew with bild draft, or remove it"):
            read_short_list(tmp_path)
    write_short_list(tmp_path, [1, VOCAB_SIZE])
    with pytest.raises(LoadError, match=f"lists token {VOCAB_SIZE}; LlamaForCausalLM scores {VOCAB_SIZE} tokens"):
        shorten(network, read_short_list(tmp_path) or [])
    to_int8(wide := build("llama", dtype=torch.float32, width=32))
    with pytest.raises(LoadError, match="no plain linear layer"):
        shorten(wide, LISTED)
