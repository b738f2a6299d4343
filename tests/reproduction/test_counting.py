"""What is counted from shapes against torch's own counter, and passes against those that were made."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from bild import Policy
from bild.errors import InputError
from bild.models import EagerScorer, kernels, to_int4, to_int8
from bild.models.cache_argument import cache_argument
from bild.reproduction.counting import Cost, Counter, cost_of, passes
from tests.models.test_generation_agrees import inputs_of, pair_of
from tests.networks import build, build_other

SOURCE = [5, 6, 7, 8, 9]
TOKENS = ([3, 4, 5, 6], [7, 8, 9])


def counted_by_torch(network: PreTrainedModel) -> int:
    """Of reading a source and two pieces of a text, on a cache."""
    encoder_decoder = network.config.is_encoder_decoder
    past = EncoderDecoderCache(DynamicCache(), DynamicCache()) if encoder_decoder else DynamicCache()
    # The counter does not know the fused attention of a CPU.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        inputs = {}
        if encoder_decoder:
            inputs["encoder_outputs"] = network.get_encoder()(input_ids=torch.tensor([SOURCE]))
        for piece in TOKENS:
            ids = {"decoder_input_ids" if encoder_decoder else "input_ids": torch.tensor([piece])}
            network(**inputs, **ids, **{cache_argument(network): past}, use_cache=True)
    return counter.get_total_flops()


def counted_here(network: PreTrainedModel) -> Cost:
    counter = Counter(network)
    source = len(SOURCE) if network.config.is_encoder_decoder else 0
    first, second = map(len, TOKENS)
    decoding = counter.read(first, first, first, source) + counter.read(second, first + second, second, source)
    return counter.source(source) + decoding


@pytest.mark.parametrize("name", ["t5", "mt5", "bart", "marian", "gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("layers", [1, 3])
def test_operations_are_those_torch_counts(name, layers):
    # Grouped and fused queries, two attentions a layer, decoders deeper than their encoders.
    network = build(name, layers=layers, width=32)
    by_torch = counted_by_torch(network)
    # Rotary angles are a product of matrices to torch, of a thousandth of the size.
    rotary = name in ("llama", "qwen2")
    assert counted_here(network).flops == (pytest.approx(by_torch, rel=0.01) if rotary else by_torch)


def test_bytes_add_up_by_hand():
    """A T5 of one layer each, in float64, by its shapes."""
    network = build("t5", layers=1, width=16, num_decoder_layers=1)
    d, inner, ff, heads, vocabulary, e = 16, 16, 32, 2, 40, 8
    q, c, s = 3, 7, 5
    self_attention, cross_attention, feed_forward = 4 * d * inner, 2 * d * inner, 2 * d * ff
    matrices = self_attention + cross_attention + feed_forward
    norms = 4 * d  # one before each sub-layer, one at the end
    widths = 4 * 2 * d + 2 * 2 * d + 2 * (d + ff)
    scores = 2 * q * heads * (c + s)
    cache = 2 * inner * (c + q) + 2 * inner * s
    weights = (matrices + norms + vocabulary * d) * e
    expected = weights + e * (q * (widths + d) + scores + cache + q * vocabulary)
    assert Counter(network).read(q, c, q, s).moved == expected


def test_one_pass_of_many_tokens_moves_less_than_many_passes_and_computes_the_same():
    counter = Counter(build("llama", width=32))
    together = counter.read(6, 16, 6, 0)
    apart = sum((counter.read(1, 11 + at, 1, 0) for at in range(6)), Cost())
    weights = sum(p.numel() * p.element_size() for n, p in counter.network.named_parameters() if "embed" not in n)
    assert apart.moved - together.moved > 5 * weights * 0.99
    # Attention within the pass is not cut at the diagonal, as kernels do not cut it.
    assert 1 < together.flops / apart.flops < 1.05
    assert together.intensity > 4 * apart.intensity


@pytest.mark.parametrize(("rounded", "least", "most"), [(to_int8, 0.25, 0.5), (to_int4, 0.15, 0.4)])
def test_rounded_weights_are_a_byte_each_or_five_bits(rounded, least, most):
    if rounded is to_int4 and not kernels.has_int4():
        pytest.skip("this processor lacks the instructions")
    network = build("t5", layers=1, width=32, dtype=torch.float32)
    full = Counter(network).read(1, 1, 1, 4)
    network = rounded(network)
    small = Counter(network).read(1, 1, 1, 4)
    assert small.flops == full.flops and least < small.moved / full.moved < most


@pytest.mark.parametrize("name", ["t5", "gpt2"])
@pytest.mark.parametrize(
    "policy",
    [
        Policy.bild(fallback_threshold=0.3, rollback_threshold=1.0),
        Policy.bild(fallback_threshold=0.0, rollback_threshold=0.5, max_draft_tokens=3, verify_end=True),
        Policy.speculative_sampling(window=4),
        Policy.large(),
        Policy.small(),
    ],
)
def test_passes_follow_from_the_rounds(name, policy, monkeypatch):
    pair, made = pair_of(name), []
    # Plain and summarised scores both come from here.
    extend = EagerScorer._extend

    def recording(self, tokens, last):
        side = "large" if self.model is pair.large else "small"
        made.append((side, len(tokens[0]), self.lengths[0] + len(tokens[0]), last))
        return extend(self, tokens, last)

    monkeypatch.setattr(EagerScorer, "_extend", recording)
    rolled_back = 0
    for job, ids in zip(pair.jobs(inputs_of(4), max_new_tokens=16), inputs_of(4), strict=True):
        made.clear()
        (result,) = pair.generate([ids], policy, max_new_tokens=16)
        found = [*passes(result.rounds, len(job.request.prompt))]
        assert [(one.side, one.tokens, one.context, one.scored) for one in found] == made
        rolled_back += result.stats.num_rollbacks
    assert rolled_back or policy.alone or policy.hand_over.window is None


def test_a_text_reads_its_source_once_a_model_that_took_part():
    pair = pair_of("t5")
    counters = {side: Counter(getattr(pair, side).network) for side in ("small", "large")}
    (job,) = pair.jobs(inputs_of(1), max_new_tokens=9)
    reading = {}
    for policy in ("large", "small", "exact"):
        (result,) = pair.generate(inputs_of(1), policy, max_new_tokens=9)
        reading[policy], _ = cost_of(result.rounds, 1, len(job.source), counters)
    assert reading["exact"] == reading["large"] + reading["small"]
    assert reading["large"] == counters["large"].source(len(job.source))


def test_experts_are_refused_in_one_line():
    with pytest.raises(InputError, match="SwitchTransformersForConditionalGeneration cannot be counted"):
        Counter(build_other("switch_transformers"))
