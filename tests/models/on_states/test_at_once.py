"""A small model that drafts several tokens in one pass, beside a slow obvious one."""

from __future__ import annotations

from collections import Counter
from random import Random
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from bild import BigLittleDecoder
from bild.errors import LoadError
from bild.models import load_network, run_pair
from bild.models.parallel import add_parallel, parallel_head
from tests.models.on_states.pairs import CLOSE, at_once_pair, by_definition, states_pair
from tests.networks import random_tokens

NAMES = ["llama", "gpt2"]


@pytest.mark.parametrize("name", NAMES)
def test_scores_several_places_of_one_pass_and_then_reads_on_its_own_states(name):
    rng, (large, small) = Random(3), at_once_pair(name)
    accurate, cheap = run_pair(large, small, "eager")
    for _ in range(4):
        text = random_tokens(rng, 16)
        scorer = accurate.start([[]])
        reader = cheap.beside(scorer, [[]])
        torch.testing.assert_close(reader.extend([text[:4]])[0, 0], by_definition(large, small, text[:4], 3), **CLOSE)
        with patch.object(reader, "_pass", wraps=reader._pass) as passes:
            for end in range(5, 12):
                found = reader.extend([text[end - 1 : end]])[0, 0]
                torch.testing.assert_close(found, by_definition(large, small, text[:end], 3), **CLOSE)
                assert reader.lengths == [end]
        # Tokens 5 and 6 are drafted by what the pass before has scored, 8 and 9 and then 11 by those over three tokens.
        assert [len(call.args[0][0]) for call in passes.call_args_list] == [3, 3]
        # The large model reads the draft, and keeps two tokens of it.
        scorer.extend([text[3:11]])
        for each in (scorer, reader):
            each.truncate([6])
        assert reader.lengths == [4]
        other = [*text[4:6], text[12]]
        found = reader.extend([other])[0, 0]
        torch.testing.assert_close(found, by_definition(large, small, [*text[:4], *other], 6), **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_in_one_piece_as_one_by_one(name):
    rng, (large, small) = Random(4), at_once_pair(name)
    accurate, cheap = run_pair(large, small, "eager")
    text = random_tokens(rng, 14)

    def drafted(*pieces: list[int]) -> Tensor:
        reader = cheap.beside(accurate.start([[]]), [[]])
        reader.extend([text[:3]])
        return torch.cat([reader.extend([piece], len(piece)) for piece in pieces], 1)

    expected = drafted(*([token] for token in text[3:]))
    torch.testing.assert_close(drafted(text[3:]), expected, **CLOSE)
    torch.testing.assert_close(drafted(text[3:5], text[5:10], text[10:]), expected, **CLOSE)


def test_rows_draft_as_alone():
    rng, (large, small) = Random(5), at_once_pair("llama")
    accurate, cheap = run_pair(large, small, "eager")
    texts = [random_tokens(rng, 14) for _ in range(3)]
    scorer = accurate.start([[]] * 3)
    reader = cheap.beside(scorer, [[]] * 3)
    ends, known = [3, 1, 6], [2, 0, 5]
    reader.extend([text[:end] for text, end in zip(texts, ends, strict=True)])
    # They come to the end of what one pass has scored at different times.
    for pieces in [(1, 2, 0), (1, 1, 1), (0, 3, 1), (4, 0, 1), (1, 1, 2)]:
        found = reader.extend([text[end : end + more] for text, end, more in zip(texts, ends, pieces, strict=True)])
        ends = [end + more for end, more in zip(ends, pieces, strict=True)]
        for row, more in enumerate(pieces):
            if more:
                expected = by_definition(large, small, texts[row][: ends[row]], known[row])
                torch.testing.assert_close(found[row, 0], expected, **CLOSE)
    scorer.keep([2, 0])
    reader.keep([2, 0])
    assert reader.lengths == scorer.lengths == [5, 2]
    found = reader.extend([texts[2][5:8], texts[0][2:4]])
    torch.testing.assert_close(found[0, 0], by_definition(large, small, texts[2][:8], 7), **CLOSE)
    torch.testing.assert_close(found[1, 0], by_definition(large, small, texts[0][:4], 3), **CLOSE)


@pytest.mark.parametrize("runtime", ["eager", pytest.param("static", marks=pytest.mark.compiles)])
def test_exact_is_the_large_model_alone(runtime):
    dtype = torch.float64 if runtime == "eager" else torch.float32
    rng, (large, small) = Random(7), at_once_pair("llama", dtype=dtype)
    pair = BigLittleDecoder(large, small, runtime=runtime)
    assert pair.large.is_compiled == pair.small.is_compiled == (runtime == "static")
    prompts = [random_tokens(rng, count) for count in (1, 3, 8, 5)]
    options = {"max_new_tokens": 24, "eos_token_id": None}
    alone = pair.generate(prompts, "large", **options)
    policy = "exact:fallback_threshold=0:max_draft_tokens=7"
    for size in (1, 3):
        found = pair.generate(prompts, policy, batch_size=size, **options)
        assert [result.token_ids for result in found] == [result.token_ids for result in alone]
        drafted = sum(each.stats.num_draft_tokens for each in found)
        assert 0 < sum(each.stats.num_accepted_tokens for each in found) < drafted
        # Up to seven tokens take three passes at most.
        steps, rounds = (sum(getattr(each.stats, name) for each in found) for name in ("num_small_steps", "num_rounds"))
        assert rounds <= steps < drafted and steps <= 3 * rounds
    eager = BigLittleDecoder(large, small, runtime="eager").generate(prompts, policy, **options)
    assert [result.stats.num_accepted_tokens for result in found] == [
        result.stats.num_accepted_tokens for result in eager
    ]


def test_drawn_tokens_are_the_large_models():
    """Places draw independently of each other; by its own distribution each, so rejection sampling stays lossless."""
    large, small = at_once_pair("llama", vocab_size=6)
    pair = BigLittleDecoder(large, small, runtime="eager")
    options = {"do_sample": True, "max_new_tokens": 3, "num_return_sequences": 3000, "seed": 1}
    (drafted, alone) = (
        pair.generate([[3, 4]], policy, batch_size=512, **options)
        for policy in ("speculative_sampling:window=3", "large")
    )
    assert (
        0
        < sum(each.stats.num_accepted_tokens for each in drafted)
        < sum(each.stats.num_draft_tokens for each in drafted)
    )
    counts = [Counter(tuple(result.token_ids) for result in results) for results in (drafted, alone)]
    texts = [text for text in counts[0] | counts[1] if counts[0][text] + counts[1][text] >= 20]
    pairs = [(counts[0][text], counts[1][text]) for text in texts]
    pairs.append(tuple(count.total() - sum(count[text] for text in texts) for count in counts))
    statistic = sum((one - other) ** 2 / max(1, one + other) for one, other in pairs)
    # Five standard deviations of chi-square.
    assert len(texts) > 20 and statistic < len(texts) + 5 * (2 * len(texts)) ** 0.5


def test_comes_back_from_disk_and_what_does_not_fit_is_refused(tmp_path):
    _, small = at_once_pair("llama", at_once=4, dtype=torch.float32)
    small.save_pretrained(tmp_path / "small")
    loaded = load_network(tmp_path / "small", dtype=torch.float32, device=torch.device("cpu"))
    states = torch.randn(2, 5, 16)
    torch.testing.assert_close(parallel_head(loaded)(states), parallel_head(small)(states))
    assert parallel_head(loaded).at_once == 4
    small.parallel.spread.weight.data = torch.zeros(3 * 16, 12)
    small.save_pretrained(tmp_path / "other")
    with pytest.raises(LoadError, match="drafts several tokens at once, but"):
        load_network(tmp_path / "other", dtype=torch.float32, device=torch.device("cpu"))


def test_a_new_one_repeats_its_first_place():
    _, small = states_pair("llama")
    add_parallel(small, 5)
    states = torch.randn(3, 16, dtype=torch.float64)
    torch.testing.assert_close(parallel_head(small)(states), states[:, None].expand(-1, 5, -1))
