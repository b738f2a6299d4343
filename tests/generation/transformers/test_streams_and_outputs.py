"""What comes out: streamed, as an output with results, and what is kept for the next call."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from transformers import TextStreamer
from transformers.generation import GenerateDecoderOnlyOutput, GenerateEncoderDecoderOutput

import bild
from bild import BigLittleDecoder
from tests.generation.transformers.doors import (
    ENCODES,
    Recorder,
    every_architecture,
    inputs_of,
    large_of,
    new_tokens,
    plain,
    small_of,
    through,
    tokenizer_of,
)
from tests.networks import EOS, PAD, build, perturbed, word_tokenizer


@every_architecture
@pytest.mark.parametrize("rows", [1, 3])
def test_a_streamer_is_told_what_transformers_tells_it(name, rows):
    ends = {"eos_token_id": [EOS, new_tokens(name, 1)[2]]}
    theirs, ours = Recorder(), Recorder()
    plain(name, inputs_of(name, rows), streamer=theirs, **ends)
    through(name, inputs_of(name, rows), streamer=ours, **ends)
    assert ours.calls == theirs.calls and len(ours.calls) > 3


def test_a_text_streams_while_it_is_written(capsys):
    streamer = Recorder(fails_at=3)
    passes: list[int] = []
    hook = large_of("llama").register_forward_hook(lambda *_: passes.append(1))
    through("llama", inputs_of("llama", 1))
    whole = len(passes)
    with pytest.raises(ConnectionError):
        through("llama", inputs_of("llama", 1), streamer=streamer)
    hook.remove()
    assert streamer.calls[-1] == "end" and len(passes) - whole < whole / 2
    tokenizer = tokenizer_of()
    ids = through("llama", inputs_of("llama", 1), streamer=TextStreamer(tokenizer))
    assert capsys.readouterr().out.split() == tokenizer.decode(ids[0]).split()


@every_architecture
def test_a_beam_search_streams_what_all_hypotheses_share(name):
    streamer = Recorder()
    ids = through(name, inputs_of(name, 1), streamer=streamer, num_beams=3)
    told = [token for _, _, tokens in streamer.calls[1:-1] for token in tokens]
    assert told == ids[0, -len(told) :].tolist() and streamer.calls[-1] == "end"
    assert streamer.calls[0][2] == [ids[0, : -len(told)].tolist()]


@every_architecture
def test_the_output_holds_results(name):
    ends = {"eos_token_id": [EOS, new_tokens(name, 1)[2]], "return_dict_in_generate": True}
    output = through(name, tokenizer=word_tokenizer(), **ends)
    kind = GenerateEncoderDecoderOutput if name in ENCODES else GenerateDecoderOnlyOutput
    assert type(output) is kind and list(output) == ["sequences"]
    start = 1 if name in ENCODES else 5
    for row, result in zip(output.sequences.tolist(), output.bild_results, strict=True):
        padding = len(row) - start - len(result.token_ids)
        assert row[start:] == result.token_ids + [PAD] * padding
        assert result.stats.num_tokens == len(result.writers) == len(result.token_ids)
        assert result.text == word_tokenizer().decode(result.token_ids, skip_special_tokens=True)
    assert len({len(result.token_ids) for result in output.bild_results}) > 1


def test_the_source_is_encoded_once():
    for name, small in [(name, small_of(name)) for name in ENCODES] + [("t5", "exit:1")]:
        through(name, small=small)
        passes: list[int] = []
        hook = large_of(name).get_encoder().register_forward_hook(lambda *_, seen=passes: seen.append(1))
        through(name, small=small)
        hook.remove()
        assert len(passes) == 1


def test_models_are_prepared_once(tmp_path):
    large = build("llama", seed=1, dtype=torch.float32)
    small, inputs = perturbed(large, 0.15), inputs_of("llama")

    def decoder_of(*door: Any, **bound: Any) -> BigLittleDecoder:
        texts = large.generate(**inputs, max_new_tokens=6, custom_generate=bild.custom_generate(*door, **bound))
        assert texts.shape == (3, 11)
        return large._bild_pair.decoder

    decoder = decoder_of(small)
    assert decoder_of(small, "exact", streamer=Recorder()) is decoder
    assert decoder_of(decoder.small, "large") is decoder
    assert decoder_of(build("llama", seed=3, dtype=torch.float32)) is not decoder
    small.save_pretrained(tmp_path)
    named = decoder_of(str(tmp_path), "exact")
    assert named.small.network is not small and named.small.dtype == torch.float32
    assert decoder_of(str(tmp_path)) is named
    assert copy.deepcopy(large)._bild_pair is None and pickle.loads(pickle.dumps(large))._bild_pair is None
    large.double()
    assert decoder_of(str(tmp_path)).small.dtype == torch.float64
