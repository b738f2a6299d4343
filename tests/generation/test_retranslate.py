"""A source that grows, by value."""

from __future__ import annotations

import pytest
import torch

from bild import BigLittleDecoder, InputError
from bild.decoding.distances import probability_margin
from bild.generation.retranslate import Retranslator, common, retranslate, revealed
from tests.networks import build


def test_the_margin_is_the_papers_biased_distribution():
    """``argmax((1 - β) P + β onehot(d)) = d`` wherever ``max P - P(d) ≤ β / (1 - β)``."""
    numbers = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(200, 1, 6, generator=numbers, dtype=torch.float64)
    drafted = torch.randint(6, (200, 1), generator=numbers)
    kept = set()
    for beta in (0.0, 0.1, 0.2, 0.3, 0.45, 0.7):
        biased = (1 - beta) * logits.softmax(-1)
        biased.scatter_add_(-1, drafted[..., None], torch.full((200, 1, 1), beta, dtype=torch.float64))
        stays = biased.argmax(-1) == drafted
        assert torch.equal(stays, probability_margin(logits, drafted) <= beta / (1 - beta))
        kept.add(int(stays.sum()))
    assert len(kept) == 6


def sources(text: list[int]) -> list[list[int]]:
    return [text[:end] for end in range(1, len(text) + 1)]


@pytest.mark.parametrize("name", ["t5", "bart", "llama"])
def test_without_bias_it_is_plain_re_translation(name):
    decoder = BigLittleDecoder(build(name), drafter="ngram")
    grown = [[source] for source in sources([5, 6, 7, 9, 4, 8, 7, 3])]
    live = Retranslator(decoder, beta=0, mask=0, options={"max_new_tokens": 16})
    plain = [decoder.generate(source, "large", max_new_tokens=16)[0].token_ids for source in grown]
    written = [live.update(source).result.token_ids for source in grown]
    assert written == plain


def test_a_bias_keeps_more_takes_fewer_passes_and_flickers_less(bundled, sentences):
    passes, flicker, kept = [], [], []
    for beta in (0.0, 0.3, 0.9):
        runs = [retranslate(bundled, revealed(text), beta=beta, mask=0) for text in sentences[:3]]
        passes.append(sum(run.num_large_steps for run in runs))
        flicker.append(sum(run.flicker for run in runs))
        kept.append(sum(result.writers.count("replay") for run in runs for result in (r.result for r in run.revisions)))
    assert passes[0] > passes[1] > passes[2] and flicker[0] > flicker[1] and kept[0] < kept[1]
    plain = sum(len(bundled.generate(text, "large")[0].token_ids) for s in sentences[:3] for text in revealed(s))
    assert passes[0] < plain


class Scripted:
    """A decoder that writes what it is told."""

    tokenizer = None

    def __init__(self, *texts):
        self.texts = iter(texts)

    def generate(self, source, policy, **options):
        from bild.decoding import Commit
        from bild.generation.result import Result

        ids, finish = next(self.texts)
        commit = Commit(row=0, tokens=tuple(ids), writers=("large",) * len(ids), finish_reason=finish)
        return [Result.of([commit], None, 0.0, 0.5)]


def test_flicker_by_hand():
    texts = [([1, 2, 3, 0], "eos"), ([1, 4, 5, 6, 0], "eos"), ([1, 4, 5, 7, 8, 0], "eos")]
    plain = Retranslator(Scripted(*texts), mask=0)
    assert [plain.update("", whole=at == 2).erased for at in range(3)] == [0, 2, 1]
    # The last one shows its end token, too.
    assert plain.revisions[0].shown == (1, 2, 3) and plain.flicker == pytest.approx(3 / 6) and plain.seconds == 1.5
    masked = Retranslator(Scripted(*texts), mask=2)
    shown = [masked.update("", whole=at == 2).shown for at in range(3)]
    assert shown == [(1,), (1, 4), (1, 4, 5, 7, 8, 0)] and masked.flicker == 0


def test_pieces():
    assert list(revealed("  a b")) == ["  a", "  a b"]
    assert [common(*each) for each in (((1, 2), (1, 3)), ((1, 2), (1, 2, 3)), ((), (1,)), ((2,), (1,)))] == [1, 2, 0, 0]
    assert list(revealed("a b  c", 1)) == ["a", "a b", "a b ", "a b  c"] and list(revealed("a b c", 2)) == [
        "a b",
        "a b c",
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"beta": 1.0}, "beta is 1.0; allowed is 0 or more and below 1"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"mask": -1}, "mask is -1"),
        ({"options": {"do_sample": True}}, "leave do_sample out"),
    ],
)
def test_values_out_of_range(options, says):
    with pytest.raises(InputError, match=says):
        Retranslator(Scripted(), **options)
    with pytest.raises(InputError, match="there is no source"):
        retranslate(Scripted(), [])
