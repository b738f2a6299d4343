"""The static runtime where it differs from the contract: storage, long passes, and what cannot be compiled."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration

from bild.decoding.scores import Summary
from bild.models import CompiledModel, EagerModel
from bild.models.compiled import calling, compiling
from bild.models.compiled.graphs import Encode
from bild.models.eager.sources import padded
from bild.models.seams import own_modules
from tests.compiled import compile_anew, must_compile, network_of, static_model, without_templates
from tests.models.rows import Kind, Ragged, SingleRow
from tests.networks import (
    ARCHITECTURES,
    BATCHING,
    ENCODER_DECODERS,
    POSITIONS,
    build,
    build_other,
    forward,
    random_source,
    random_tokens,
)

BESIDE = 2
"""Numbers that stand beside the new tokens of a row."""
CLOSE = {"rtol": 0.0, "atol": 1e-4}
RESIDENT = Path("/proc/self/statm")

pytestmark = pytest.mark.compiles


every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
every_batching = pytest.mark.parametrize("name", BATCHING)


def kind(name: str) -> Kind:
    return Kind(name, "static")


def widths_of(monkeypatch, owner, name: str) -> list[int]:
    """Grows at every call by the width of the first tensor."""
    widths: list[int] = []
    original = getattr(owner, name)

    def counting(*arguments):
        first = arguments[0][0] if isinstance(arguments[0], list) else arguments[0]
        widths.append(first.shape[1])
        return original(*arguments)

    monkeypatch.setattr(owner, name, counting)
    return widths


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encodes_once_and_not_before_the_first_token(name, monkeypatch):
    model = static_model(name)
    passes = widths_of(monkeypatch, model.graphs, "run_encode")
    scorer = model.start([[5, 6, 7]])
    scorer.truncate([0])
    assert not passes
    for token in (3, 4, 5):
        scorer.extend([[token]])
        scorer.truncate([1])
    assert passes == [3]


@pytest.mark.skipif(not RESIDENT.exists(), reason="the memory of a process is looked up as Linux shows it")
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_pass_writes_the_columns_of_its_tokens_and_no_other(name):
    """Every layer's storage was once copied out and back in each pass, which no score shows."""
    model = static_model(name)
    # Zeros of numpy's are memory only once they are written.
    storage = [
        torch.from_numpy(np.zeros((1, *shape.middle, 1 << 18, shape.width), dtype=np.float32))
        for shape in model.storage
    ]
    rows = torch.tensor([[0] * model.graphs.has_places + [0, 2, 3, 4]])
    before = resident()
    model.graphs.read(rows, 1, storage, [])
    written = resident() - before
    assert all(each[0, :, :3].abs().sum((0, 2)).bool().tolist() == [True, True, False] for each in storage)
    assert written < storage[0].numel() * storage[0].element_size() / 2


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(RESIDENT.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@every_batching
def test_the_storage_does_not_grow_by_rollbacks(name):
    rng, model = Random(13), static_model(name)
    scorer = model.start([random_source(rng, model.network) for _ in range(4)])
    before = [tensor.data_ptr() for tensor in scorer._cache.tensors]
    read = 0
    for _ in range(60):
        counts = [rng.randint(0, 5) for _ in range(3)] + [5]
        scorer.extend([random_tokens(rng, count) for count in counts])
        read += max(counts)
        scorer.truncate([min(20, max(0, length - rng.randint(0, 5))) for length in scorer.lengths])
    assert read == 300
    assert [tensor.data_ptr() for tensor in scorer._cache.tensors] == before


def test_the_storage_doubles_whenever_a_text_outgrows_it():
    rng = Random(0)
    row, widths = SingleRow(kind("t5"), rng), set()
    while len(row.tokens) < 150:
        row.extend(random_tokens(rng, count := rng.randint(1, 9)), last=count)
        widths.add(row.scorer._cache.columns)
        assert {tensor.shape[2] for tensor in row.scorer._cache.tensors} == {row.scorer._cache.columns}
    assert widths == {32, 64, 128, 256}
    for length in (140, 70, 33, 32, 31, 3):
        row.truncate(length)
        row.extend(random_tokens(rng, 4), last=4)


@pytest.mark.parametrize("name", ["t5", "gpt2", "llama"])
def test_one_long_row_makes_the_storage_of_all_grow(name):
    rng = Random(1)
    batch = Ragged(kind(name), rng, rows=3)
    batch.extend([random_tokens(rng, count) for count in (30, 1, 8)])
    assert batch.scorer._cache.columns == 32
    batch.extend([random_tokens(rng, count) for count in (3, 2, 0)], last=3)
    assert batch.scorer._cache.columns == 64
    batch.truncate([31, 3, 5])
    batch.extend([random_tokens(rng, count) for count in (2, 2, 2)], last=2)
    batch.keep([1, 2])
    batch.extend([random_tokens(rng, count) for count in (40, 1)], last=2)


def test_a_text_may_be_given_that_outgrows_the_first_storage_at_once():
    for count in (32, 33, 100):
        row = SingleRow(kind("t5"), Random(2))
        row.extend(random_tokens(Random(3), count), last=count)
        row.extend([7, 8], last=2)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("longest", [calling.LONGEST_COMPILED, 96])
def test_a_long_pass_runs_uncompiled(longest, compiled, monkeypatch):
    monkeypatch.setattr(calling.Graphs, "longest", longest)
    count = longest + (not compiled)
    widths = widths_of(monkeypatch, static_model("t5").graphs, "run_read")
    row = SingleRow(kind("t5"), Random(4))
    row.extend(random_tokens(Random(5), count), last=9)
    row.extend([5, 6], last=2)
    beside = BESIDE + static_model("t5").graphs.has_places
    assert widths == ([beside + count, beside + 2] if compiled else [beside + 2])


@every_architecture
def test_compiled_and_uncompiled_passes_read_what_the_other_wrote(name, monkeypatch):
    monkeypatch.setattr(calling.Graphs, "longest", 3)
    rng, model = Random(6), static_model(name)
    compiled = widths_of(monkeypatch, model.graphs, "run_read")
    uncompiled = widths_of(monkeypatch, model.graphs.uncompiled, "forward")
    row = SingleRow(kind(name), rng)
    while len(row.tokens) < 50:
        row.extend(random_tokens(rng, count := rng.randint(1, 8)), last=count)
        row.truncate(len(row.tokens) - rng.randint(0, 2))
    beside = BESIDE + static_model(name).graphs.has_places
    assert compiled and max(compiled) <= beside + 3 < min(uncompiled)


@every_batching
def test_uncompiled_passes_of_a_ragged_batch(name, monkeypatch):
    monkeypatch.setattr(calling.Graphs, "longest", 3)
    rng = Random(7)
    batch = Ragged(kind(name), rng, rows=3)
    batch.extend([random_tokens(rng, count) for count in (9, 1, 4)], last=9)
    batch.extend([random_tokens(rng, count) for count in (1, 3, 0)], last=2)
    batch.truncate([4, 4, 1])
    batch.extend([random_tokens(rng, count) for count in (0, 6, 2)], last=6)


@every_batching
def test_a_row_knows_nothing_of_its_neighbours(name):
    rng, model = Random(8), static_model(name)
    source, tokens = random_source(rng, model.network), random_tokens(rng, 6)
    expected = forward(model.network, source, tokens)[-2:]
    for _ in range(5):
        sources = [random_source(rng, model.network) for _ in range(3)]
        place = rng.randrange(4)
        scorer = model.start([*sources[:place], source, *sources[place:]])
        for own in (tokens[:1], tokens[1:4], tokens[4:]):
            new = [random_tokens(rng, rng.randint(0, 9)) for _ in range(3)]
            logits = scorer.extend([*new[:place], own, *new[place:]], last=len(own))
        torch.testing.assert_close(logits[place], expected, **CLOSE)


@every_architecture
def test_what_stands_behind_a_rows_tokens_does_not_matter(name):
    rng = Random(9)
    row = SingleRow(kind(name), rng)
    row.extend(random_tokens(rng, 9))
    row.truncate(4)
    with torch.inference_mode():
        for tensor in row.scorer._cache.tensors:
            tensor[:, :, 4:] = 1e4
    row.extend(random_tokens(rng, 3), last=3)


@every_architecture
def test_the_last_position_can_be_read(name):
    rng = Random(10)
    row = SingleRow(kind(name), rng)
    row.extend(random_tokens(rng, POSITIONS - 2))
    row.extend(random_tokens(rng, 2), last=2)
    row.truncate(POSITIONS - 1)
    row.extend(random_tokens(rng, 1))


def test_both_graphs_take_long_sources():
    rng = Random(11)
    for length in (1, 2, 63, 200):
        network = network_of("t5")
        source, tokens = random_tokens(rng, length), random_tokens(rng, 3)
        logits = static_model("t5").start([source]).extend([tokens], last=3)[0]
        torch.testing.assert_close(logits, forward(network, source, tokens), **CLOSE)


def check_proposal(scorer, single, tokens: list[list[int]]) -> None:
    """Two scorers are fed the same, one proposes what the other's logits say."""
    logits, summary = scorer.summarize(tokens)
    torch.testing.assert_close(logits[:, -1], single.extend(tokens)[:, -1], **CLOSE)
    wrote = [b for b, row in enumerate(tokens) if row]
    fields = (summary.likeliest, summary.probability, summary.log_total)
    logits, summary = logits[wrote], Summary(*(each[wrote] for each in fields))
    torch.testing.assert_close(summary.probability, logits.softmax(-1).amax(-1), rtol=0.0, atol=1e-4)
    torch.testing.assert_close(summary.log_total, logits.logsumexp(-1), rtol=0.0, atol=1e-4)
    assert summary.likeliest.tolist() == logits.argmax(-1).tolist()
    assert scorer.lengths == single.lengths


@every_architecture
def test_proposes_the_likeliest_token_and_says_how_likely(name):
    model, rng = static_model(name), Random(17)
    rows = 3
    sources = [random_source(rng, model.network) for _ in range(rows)]
    scorer, other = model.start(sources), model.start(sources)
    for counts in ((3, 1, 7), (1, 2, 0), (1, 1, 1), (40, 0, 1)):
        check_proposal(scorer, other, [random_tokens(rng, count) for count in counts[:rows]])
        for each in (scorer, other):
            each.truncate([length - 1 for length in each.lengths])


@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_proposes_from_the_shared_vocabulary_only(name):
    model, rng = compile_anew(name), Random(18)
    model.vocab_size, beyond = 9, 0
    source = random_source(rng, model.network)
    for _ in range(10):
        tokens = random_tokens(rng, 4)
        summary = model.start([source]).summarize([tokens])[1]
        exact = forward(model.network, source, tokens)[-1]
        beyond += int(exact.argmax() >= 9)
        assert summary.likeliest.item() == exact[:9].argmax()
        torch.testing.assert_close(summary.probability[0, 0], exact[:9].softmax(-1).max(), **CLOSE)
        torch.testing.assert_close(summary.log_total[0, 0], exact[:9].logsumexp(-1), **CLOSE)
    assert beyond > 3


def test_proposes_after_a_long_prompt_too(monkeypatch):
    monkeypatch.setattr(calling.Graphs, "longest", 3)
    model, rng = static_model("llama"), Random(19)
    scorer, other = model.start([[], []]), model.start([[], []])
    for counts in ((9, 2), (1, 1), (0, 5)):
        check_proposal(scorer, other, [random_tokens(rng, count) for count in counts])


def test_bfloat16_differs_by_rounding():
    network, rng = build("gpt2", seed=1, dtype=torch.bfloat16), Random(13)
    tokens = random_tokens(rng, 30)
    expected = EagerModel(network).start([[]]).extend([tokens], last=30).float()
    scorer = must_compile(network).start([[]])
    found = torch.cat([scorer.extend([tokens[at : at + 5]], last=5) for at in range(0, 30, 5)], 1).float()
    exact = forward(build("gpt2", seed=1, dtype=torch.float32), [], tokens)
    assert (found - exact).abs().mean() <= 1.5 * (expected - exact).abs().mean()


def warnings_of(caplog) -> list[str]:
    """What bild warned of; it also says what it compiles."""
    return [record.getMessage() for record in caplog.records if "cannot be compiled" in record.getMessage()]


def failing(*_, **__):
    raise RuntimeError("no compiler here\nand a page about it")


@pytest.mark.parametrize("name", ["t5", "bart", "llama"])
def test_what_cannot_be_compiled_runs_uncompiled_after_one_warning(name, monkeypatch, caplog):
    monkeypatch.setattr(compiling, "compiled", failing)
    network, rng = network_of(name), Random(14)
    model = CompiledModel(network)
    warning = f"{type(network).__name__} cannot be compiled and runs uncompiled (RuntimeError: no compiler here)"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("WARNING", warning)]
    assert not model.is_compiled and model.batches
    source, tokens = random_source(rng, network), random_tokens(rng, 5)
    torch.testing.assert_close(
        model.start([source]).extend([tokens], last=5)[0], forward(network, source, tokens), **CLOSE
    )


@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_a_graph_that_scores_differently_is_not_used(name, monkeypatch, caplog):
    static_model(name)
    load = compiling.compiled

    def wrong(*arguments, **options):
        graph = load(*arguments, **options)
        return lambda tensors: [out.flip(-1) if options["name"].endswith("read") else out for out in graph(tensors)]

    monkeypatch.setattr(compiling, "compiled", wrong)
    model = CompiledModel(network_of(name))
    assert not model.is_compiled
    assert warnings_of(caplog) == [
        f"{type(model.network).__name__} cannot be compiled and runs uncompiled "
        "(RuntimeError: its compiled graph scores tokens differently)"
    ]


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["m2m_100", "gemma2", "bloom"])
def test_any_other_architecture_is_right_compiled_or_not(name, caplog):
    network, rng = build_other(name), Random(16)
    assert network.config._attn_implementation == ("sdpa" if name == "m2m_100" else "eager")
    model = without_templates(network)
    assert len(warnings_of(caplog)) == (not model.is_compiled)
    assert model.is_compiled or name == "bloom"
    source, tokens = random_source(rng, network), random_tokens(rng, 12)
    expected = forward(network, source, tokens)
    scorer, at = model.start([source]), 0
    for count in (3, 1, 6, 2):
        logits = scorer.extend([tokens[at : at + count]], last=count)[0]
        torch.testing.assert_close(logits, expected[at : at + count], rtol=0, atol=1e-3)
        at += count
    check_batch(model, rng)


def check_batch(model: EagerModel, rng: Random) -> None:
    """Rows and sources of different length, against passes without a cache."""
    sources = [random_tokens(rng, count) if model.is_encoder_decoder else [] for count in (2, 7)]
    texts = [random_tokens(rng, 9) for _ in sources]
    scorer, at = model.start(sources), [0, 0]
    for counts in ((5, 1), (1, 2), (3, 3)):
        spans = [slice(start, start + count) for start, count in zip(at, counts, strict=True)]
        logits = scorer.extend([text[span] for text, span in zip(texts, spans, strict=True)])
        at = [span.stop for span in spans]
        rows = zip(sources, texts, at, strict=True)
        expected = [forward(model.network, source, text)[length - 1] for source, text, length in rows]
        torch.testing.assert_close(logits[:, 0], torch.stack(expected), rtol=0, atol=1e-3)


def test_an_encoder_with_a_window_is_encoded_alike():
    """Of T5Gemma's encoder some layers look through a window; what is compiled must, too."""
    side = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    side |= {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 6, "initializer_range": 0.5}
    network = T5GemmaForConditionalGeneration(T5GemmaConfig(encoder=side, decoder=side, vocab_size=64)).double().eval()
    model, graph = EagerModel(network), Encode(own_modules(network))
    sources = [random_tokens(Random(0), length) for length in (5, 30)]
    scorer = model.start(sources)
    scorer.extend([[7], [8]])
    ids, mask = padded(sources, torch.device("cpu"))
    # Its attention takes the softmax in float32, whatever the dtype.
    with torch.inference_mode():
        found = graph(ids, mask[:, None, None] > 0)
    for one, other in zip(found, scorer.sources._cache.tensors, strict=True):
        torch.testing.assert_close(one[1], other[1], rtol=0.0, atol=1e-5)
        torch.testing.assert_close(one[0, :, :5], other[0, :, :5], rtol=0.0, atol=1e-5)


def test_a_model_that_nobody_holds_is_gone():
    held = weakref.ref(model := compile_anew("gpt2"))
    model.start([[]]).extend([[3, 4]])
    del model
    gc.collect()
    assert held() is None
