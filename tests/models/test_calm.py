"""CALM against its definition: no cache, every layer run on the whole prefix, on the states tokens left with."""

from __future__ import annotations

import math
from functools import cache
from random import Random

import pytest
import torch
from torch import Tensor

from bild import BigLittleDecoder, Policy
from bild.errors import InputError, LoadError
from bild.models import CalmModel, ExitRule, to_int8
from tests.networks import VOCAB_SIZE, build, forward, random_source, random_tokens, shared, word_tokenizer

NAMES = ("t5", "mt5")
MEASURES = ("state", "margin", "max")
NEVER, AT_ONCE = ExitRule(threshold=1.01), ExitRule(threshold=-0.01)
EXACT = {"rtol": 0.0, "atol": 1e-9}
LAYERS = 5

both = pytest.mark.parametrize("name", NAMES)
every_measure = pytest.mark.parametrize("measure", MEASURES)


@cache
def network_of(name: str):
    """Deep enough that tokens leave at different layers; nobody may change it."""
    return build(name, seed=3, layers=1, num_decoder_layers=LAYERS)


def model_of(name: str, rule: ExitRule) -> CalmModel:
    return CalmModel(network_of(name), rule)


class Slow:
    """One row by the definition; knows its tokens' exits, and the states that enter every layer."""

    def __init__(self, network, source: list[int]) -> None:
        self.network, self.decoder = network, network.get_decoder()
        with torch.inference_mode():
            self.source = network.get_encoder()(input_ids=torch.tensor([source])).last_hidden_state
        self.entering: list[list[Tensor]] = [[] for _ in self.decoder.block]
        self.exits: list[int] = []

    @torch.inference_mode()
    def read(self, token: int, rule: ExitRule) -> Tensor:
        """The token's logits ``[V]``."""
        states = [self.decoder.embed_tokens(torch.tensor([[token]]))]
        for index in range(len(self.decoder.block)):
            self.entering[index].append(states[-1])
            states.append(self.behind(index))
            last = index + 1 == len(self.decoder.block)
            if last or (
                index + 1 >= rule.min_layers and self.confidence(states, rule) >= rule.threshold_at(self.length)
            ):
                break
        for skipped in range(index + 1, len(self.decoder.block)):
            self.entering[skipped].append(states[-1])
        self.exits.append(index + 1)
        return self.head(states[-1])

    @property
    def length(self) -> int:
        """Tokens before the one being read."""
        return len(self.exits)

    def behind(self, index: int) -> Tensor:
        """State of the newest token behind a layer, the whole prefix run through it."""
        entering = torch.cat(self.entering[index], dim=1)
        bias = self.decoder.block[0].layer[0].SelfAttention.compute_bias(entering.shape[1], entering.shape[1])
        return self.decoder.block[index](entering, None, bias, self.source)[0][:, -1:]

    def head(self, state: Tensor) -> Tensor:
        config = self.network.config
        scale = config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0
        return self.network.lm_head(self.decoder.final_layer_norm(state) * scale)[0, 0]

    def confidence(self, states: list[Tensor], rule: ExitRule) -> float:
        one, other = states[-1][0, 0], states[-2][0, 0]
        if rule.confidence == "state":
            return float(one @ other / one.square().sum().sqrt() / other.square().sum().sqrt())
        likely = sorted(self.head(states[-1]).softmax(-1).tolist())
        return likely[-1] - likely[-2] if rule.confidence == "margin" else likely[-1]


def read_slowly(slow: Slow, tokens: list[int], rule: ExitRule) -> Tensor:
    return torch.stack([slow.read(token, rule) for token in tokens])


@both
def test_above_one_no_token_leaves_and_it_is_the_network(name):
    rng, network = Random(0), network_of(name)
    for measure in MEASURES:
        model = model_of(name, ExitRule(threshold=1.01, confidence=measure, decay=100))
        source, tokens = random_source(rng, network), random_tokens(rng, 12)
        scorer = model.start([source])
        logits = torch.cat([scorer.extend([tokens[:3]], last=3), scorer.extend([tokens[3:]], last=9)], 1)[0]
        torch.testing.assert_close(logits, forward(network, source, tokens), **EXACT)
        assert scorer.exits == [[LAYERS] * 12] and model.mean_layers == LAYERS


@both
@every_measure
def test_below_zero_every_token_leaves_at_once(name, measure):
    rng, network = Random(1), network_of(name)
    rule = ExitRule(threshold=-0.01, confidence=measure)
    source, tokens = random_source(rng, network), random_tokens(rng, 12)
    scorer, slow = model_of(name, rule).start([source]), Slow(network, source)
    torch.testing.assert_close(scorer.extend([tokens], last=12)[0], read_slowly(slow, tokens, rule), **EXACT)
    assert scorer.exits == [slow.exits] == [[1] * 12]


RULES = {"state": (0.5, 0.75), "margin": (0.3, 0.8), "max": (0.5, 0.9)}
"""Thresholds under which the tokens of these networks leave anywhere."""


@both
@every_measure
def test_equals_the_definition_in_pieces_and_after_rollbacks(name, measure):
    left = set()
    for seed, threshold in enumerate(RULES[measure] * 2):
        rng, network = Random(seed), network_of(name)
        rule = ExitRule(threshold=threshold, confidence=measure, decay=rng.choice([0, 1, 8]), max_tokens=20)
        source, tokens = random_source(rng, network), []
        scorer = model_of(name, rule).start([source])
        for _ in range(8):
            new = random_tokens(rng, rng.randint(1, 5))
            tokens += new
            logits = scorer.extend([new], last=len(new))[0]
            slow = Slow(network, source)
            torch.testing.assert_close(logits, read_slowly(slow, tokens, rule)[-len(new) :], **EXACT)
            assert scorer.exits == [slow.exits] and scorer.lengths == [len(tokens)]
            left |= set(slow.exits)
            del tokens[len(tokens) - rng.randint(0, min(4, len(tokens))) :]
            scorer.truncate([len(tokens)])
    assert len(left) >= 3


@both
def test_skipped_layers_get_keys_and_values_from_the_state_at_the_exit(name):
    rng, network = Random(2), network_of(name)
    source, tokens = random_source(rng, network), random_tokens(rng, 7)
    model = model_of(name, AT_ONCE)
    scorer = model.start([source])
    scorer.extend([tokens[:6]])
    model.rule = NEVER
    scorer.extend([tokens[6:]])
    with torch.inference_mode():
        # Behind the first layer all is as in the whole network: no token before it has skipped anything.
        inputs = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([tokens])}
        state = network(**inputs, use_cache=False, output_hidden_states=True).decoder_hidden_states[1][0, :6]
        layers = scorer._rows[0]._past.self_attention_cache.layers
        assert len(layers) == LAYERS
        for index in range(1, LAYERS):
            block = network.decoder.block[index].layer[0]
            normed = block.layer_norm.weight * state / (state.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            for held, part in (
                (layers[index].keys, block.SelfAttention.k),
                (layers[index].values, block.SelfAttention.v),
            ):
                expected = (normed @ part.weight.T).view(6, 2, -1).transpose(0, 1)
                assert held.shape[2] == 7
                # T5's norm takes its mean in float32.
                torch.testing.assert_close(held[0, :, :6], expected, rtol=1e-6, atol=1e-6)


def test_of_a_skipped_layer_nothing_runs_until_a_token_gets_there():
    network, ran, projected = build("t5", seed=3, num_decoder_layers=LAYERS), [], []
    for index, block in enumerate(network.decoder.block):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
        block.layer[0].SelfAttention.k.register_forward_hook(
            lambda _, inputs, __, i=index: projected.append((i, inputs[0].shape[1]))
        )
    model = CalmModel(network, AT_ONCE)
    ran.clear(), projected.clear()
    scorer = model.start([[5, 6]])
    scorer.extend([[3, 4, 5, 6]])
    assert ran == [0] * 4 and projected == [(0, 1)] * 4
    model.rule = ExitRule(threshold=-1, min_layers=3)
    scorer.truncate([3])
    scorer.extend([[8]])
    assert ran[4:] == [0, 1, 2] and projected[4:] == [(0, 1), (1, 3), (1, 1), (2, 3), (2, 1)]


def test_the_threshold_decays_as_in_the_paper():
    rule = ExitRule(threshold=0.8, decay=4, max_tokens=100)
    # 0.72 + 0.1, 0.72 + 0.1 / e, 0.72 + 0.1 / e⁴
    by_hand = {0: 0.82, 25: 0.7567879441171442, 100: 0.7218315638888734}
    assert {at: rule.threshold_at(at) for at in by_hand} == pytest.approx(by_hand, abs=1e-15)
    assert {ExitRule(threshold=0.8, decay=0).threshold_at(at) for at in (0, 9, 999)} == {0.9 * 0.8 + 0.1}
    for threshold in (0.0, 0.3, 1.0):
        for decay in (0, 1, 2, 4, 8):
            decaying = [ExitRule(threshold=threshold, decay=decay).threshold_at(at) for at in range(0, 600, 7)]
            assert decaying == sorted(decaying, reverse=True)
            assert 0 <= decaying[-1] <= decaying[0] <= 1  # so a clip would do nothing
    assert (NEVER.threshold_at(500), AT_ONCE.threshold_at(0)) == (math.inf, -math.inf)


@both
@every_measure
def test_a_lower_threshold_never_runs_more_layers_on_the_same_prefix(name, measure):
    rng, network = Random(4), network_of(name)
    model = model_of(name, ExitRule(threshold=RULES[measure][0], confidence=measure))
    seen = set()
    for _ in range(6):
        scorer, prefix = model.start([random_source(rng, network)]), random_tokens(rng, rng.randint(1, 9))
        model.rule = ExitRule(threshold=RULES[measure][0], confidence=measure)
        scorer.extend([prefix])
        exits, token = [], random_tokens(rng, 1)
        for threshold in (-1, *(step / 10 for step in range(11)), 2):
            model.rule = ExitRule(threshold=threshold, confidence=measure)
            scorer.extend([token])
            exits.append(scorer.exits[0][-1])
            scorer.truncate([len(prefix)])
        assert exits == sorted(exits) and (exits[0], exits[-1]) == (1, LAYERS)
        seen |= set(exits)
    assert len(seen) >= 4


@both
@every_measure
def test_leaves_exactly_from_the_threshold_on(name, measure):
    network = network_of(name)
    slow, rule = Slow(network, [5, 6, 7]), ExitRule(threshold=2, confidence=measure)
    slow.read(9, rule)
    with torch.inference_mode():
        states = [network.decoder.embed_tokens(torch.tensor([[9]])), slow.entering[1][0]]
        confidence = slow.confidence(states, rule)
    assert 0.1 < confidence < 1
    for nudge, layer in ((-1e-9, 1), (1e-9, None)):
        # With no decay the threshold is 0.9 λ + 0.1.
        own = ExitRule(threshold=(confidence + nudge - 0.1) / 0.9, decay=0, confidence=measure)
        scorer = model_of(name, own).start([[5, 6, 7]])
        scorer.extend([[9]])
        assert (scorer.exits == [[1]]) == (layer == 1)


def test_every_token_runs_the_fewest_layers():
    for least in range(1, LAYERS + 2):
        scorer = model_of("t5", ExitRule(threshold=-1, min_layers=least)).start([[4, 5]])
        scorer.extend([[3, 9, 8]])
        assert scorer.exits == [[min(least, LAYERS)] * 3]


def test_counts_where_tokens_leave():
    model = model_of("t5", AT_ONCE)
    assert model.mean_layers is None and not model.exits
    scorer = model.start([[4, 5], [6]])
    scorer.extend([[3, 4, 5], [3]])
    model.rule = NEVER
    scorer.extend([[6], []])
    assert scorer.exits == [[1, 1, 1, LAYERS], [1]]
    # What is forgotten was still computed.
    scorer.truncate([2, 1])
    assert scorer.exits == [[1, 1], [1]]
    assert model.exits == {1: 4, LAYERS: 1} and model.mean_layers == (4 + LAYERS) / 5


def test_rows_are_read_one_by_one():
    rng, rule = Random(5), ExitRule(threshold=0.5, confidence="max")
    model, network = model_of("mt5", rule), network_of("mt5")
    assert not model.batches
    sources = [random_source(rng, network) for _ in range(3)]
    scorer, slow = model.start(sources), [Slow(network, source) for source in sources]
    for counts in ((3, 1, 2), (0, 4, 1)):
        new = [random_tokens(rng, count) for count in counts]
        logits = scorer.extend(new, last=2)
        assert logits.shape == (3, 2, VOCAB_SIZE)
        for row, own, tokens in zip(logits, slow, new, strict=True):
            if tokens:
                expected = read_slowly(own, tokens, rule)[-2:]
                torch.testing.assert_close(row[-len(expected) :], expected, **EXACT)
    scorer.keep([0, 2])
    assert scorer.lengths == [3, 3] and scorer.exits == [slow[0].exits, slow[2].exits]
    for last in (0, 3):
        with pytest.raises(ValueError, match=f"cannot score {last} positions of 2 new tokens"):
            scorer.extend([[3, 4], [5]], last=last)
    scorer.truncate([99, 0])
    assert scorer.lengths == [3, 0]


def test_does_not_encode_before_the_first_token():
    network, encoded = build("t5"), []
    model = CalmModel(network, AT_ONCE)
    network.encoder.register_forward_hook(lambda *_: encoded.append(1))
    scorer = model.start([[4, 5]])
    scorer.truncate([0])
    assert not encoded
    scorer.extend([[3]])
    scorer.extend([[3]])
    assert encoded == [1]


def test_scores_end_with_the_shared_vocabulary():
    model = model_of("t5", NEVER)
    model.vocab_size = 33
    expected = forward(network_of("t5"), [4, 5], [3, 9, 8])[-2:, :33]
    torch.testing.assert_close(model.start([[4, 5]]).extend([[3, 9, 8]], last=2)[0], expected, **EXACT)


def test_sixteen_and_eight_bits():
    for network in (build("t5", dtype=torch.bfloat16), to_int8(build("t5", width=32, dtype=torch.float32))):
        for rule in (NEVER, ExitRule(threshold=0.3), ExitRule(threshold=0.3, confidence="margin")):
            logits = CalmModel(network, rule).start([[4, 5]]).extend([[3, 9, 8]], last=3)
            assert logits.dtype == network.dtype and logits.isfinite().all()


def test_a_decoder_uses_it_as_its_large_model():
    large, small = network_of("t5"), build("t5", seed=9)
    decoder = BigLittleDecoder(large, small, word_tokenizer())
    texts = ["w5 w6 w7", "w9 w30"]
    expected = {policy: decoder.generate(texts, policy, max_new_tokens=12) for policy in ("large", "bild")}
    decoder.large = CalmModel(large, NEVER)
    for policy, results in expected.items():
        again = decoder.generate(texts, policy, max_new_tokens=12, batch_size=2)
        assert [result.token_ids for result in again] == [result.token_ids for result in results]
    decoder.large = CalmModel(large, ExitRule(threshold=0.5, confidence="max"))
    early = decoder.generate(texts, "large", max_new_tokens=12)
    assert early[0].token_ids != expected["large"][0].token_ids and 1 < decoder.large.mean_layers < LAYERS
    mixed = decoder.generate(texts, Policy.bild(rollback_threshold=0.5, verify_end=True), max_new_tokens=12)
    assert any(result.stats.num_rollbacks for result in mixed)


@pytest.mark.parametrize("name", ["bart", "gpt2"])
def test_other_architectures_are_refused(name):
    with pytest.raises(LoadError, match=f"CALM runs t5 and mt5 checkpoints, this is a {name}"):
        CalmModel(shared(name))


def test_layers_that_do_not_add_up_are_refused(monkeypatch):
    monkeypatch.setattr(CalmModel, "head", lambda self, state: torch.zeros(1, VOCAB_SIZE))
    with pytest.raises(LoadError, match=r"cannot run layer by layer \(its layers do not add up to the network\)"):
        model_of("t5", NEVER)
    monkeypatch.setattr(CalmModel, "head", lambda self, state: 1 / 0)
    with pytest.raises(LoadError, match=r"cannot run layer by layer \(ZeroDivisionError: division by zero\)"):
        model_of("t5", NEVER)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"threshold": math.nan}, "threshold is nan; allowed is 0 to 1"),
        ({"decay": -1}, "decay is -1; allowed is 0 or more"),
        ({"decay": math.inf}, "decay is inf"),
        ({"decay": math.nan}, "decay is nan"),
        ({"confidence": "entropy"}, "confidence is 'entropy'; allowed are state, margin, max"),
        ({"min_layers": 0}, "min_layers is 0; allowed is 1 or more"),
        ({"max_tokens": 0}, "max_tokens is 0; allowed is 1 or more"),
    ],
)
def test_values_out_of_range(options, says):
    with pytest.raises(InputError, match=says):
        ExitRule(**options)
