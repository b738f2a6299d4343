"""GGUF files: converted once, the same network, tokenizer and ends; refused in one line where they cannot be."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bild import BigLittleDecoder, LoadError, Pair
from bild.models import load_config, load_network, load_tokenizer
from bild.models.loading import gguf
from tests.networks import VOCAB_SIZE, build

package = pytest.importorskip("gguf")
CPU = torch.device("cpu")
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def network(seed: int = 0):
    return build("llama", seed=seed, dtype=torch.float32, width=32, tie_word_embeddings=False)


def name_of(key: str) -> str:
    """llama.cpp's name of a weight."""
    key = key.removesuffix(".weight")
    if key.startswith("model.layers."):
        _, _, number, rest = key.split(".", 3)
        return f"blk.{number}.{NAMES[rest]}.weight"
    return f"{NAMES[key]}.weight"


def interleaved(weight, heads: int):
    """Rows of queries and keys in the order that llama.cpp's rotary positions want."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def write(file: Path, seed: int = 0, architecture: str = "llama", quantised: bool = False, **more: Any) -> Path:
    """A tiny Llama as llama.cpp would write it."""
    saved, writer = network(seed), package.GGUFWriter(str(file), architecture)
    config = saved.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(VOCAB_SIZE)
    pieces = ["<unk>", "</s>", "<eot>", *(f"▁w{id}" for id in range(3, VOCAB_SIZE))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([0.0] * VOCAB_SIZE)
    writer.add_token_types([2, 3, 3] + [1] * (VOCAB_SIZE - 3))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(1)
    writer.add_eot_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for key, value in more.items():
        kinds = {int: writer.add_int32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        kinds[type(value)](key.replace("__", "."), value)
    for key, weight in saved.state_dict().items():
        array, heads = weight.numpy(), {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for part, count in heads.items():
            array = interleaved(array, count) if part in key else array
        if quantised and array.ndim == 2:
            kind = package.GGMLQuantizationType.Q8_0
            writer.add_tensor(name_of(key), package.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name_of(key), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BILD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checkpoints"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> bytes:
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


@pytest.fixture
def file(tmp_path, written) -> Path:
    (tmp_path / "tiny.gguf").write_bytes(written)
    return tmp_path / "tiny.gguf"


def load(place, dtype: torch.dtype = torch.float32):
    return load_network(place, dtype=dtype, device=CPU)


def refused(place, message: str) -> None:
    """Before any weight is read."""
    with pytest.raises(LoadError, match=message) as caught:
        load_config(place)
    assert "\n" not in str(caught.value)


def equal(one, other, **tolerance: float) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    for key, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, **(tolerance or {"rtol": 0, "atol": 0}))


def test_a_file_is_the_network_it_was_written_from(file):
    loaded = load(file)
    equal(network(), loaded)
    assert getattr(loaded.config, "quantization_config", None) is None
    assert loaded.generation_config.eos_token_id == [1, 2]
    tokenizer = load_tokenizer(file)
    assert tokenizer.get_vocab()["▁w7"] == 7 and tokenizer.chat_template == TEMPLATE


def test_quantised_weights_are_unpacked_in_the_dtype_asked_for(tmp_path):
    file = write(tmp_path / "q8.gguf", quantised=True)
    equal(network(), load(file), rtol=0, atol=0.05)
    assert load(file, torch.bfloat16).dtype == torch.bfloat16
    equal(load(file).to(torch.bfloat16), load(file, torch.bfloat16))


def test_it_is_converted_once(file, monkeypatch, cache):
    load(file)
    monkeypatch.setattr(gguf, "_write_outline", lambda *_: pytest.fail("converted again"))
    monkeypatch.setattr(gguf, "_read_weights", lambda *_: pytest.fail("converted again"))
    load(file)
    assert len(list(cache.iterdir())) == 2


def test_a_changed_file_is_seen(file, cache):
    load(file)
    write(file, seed=1)
    os.utime(file, ns=(1, 1))
    equal(network(1), load(file))
    assert len(list(cache.iterdir())) == 2


def test_pairs_of_files(file, tmp_path):
    write(tmp_path / "small.gguf", seed=1)
    Pair(str(file), str(tmp_path / "small.gguf")).save(tmp_path)
    pair = BigLittleDecoder.from_pretrained(tmp_path, dtype="float32", runtime="eager")
    expected = network().generate(torch.tensor([[5, 6]]), max_new_tokens=9, do_sample=False, eos_token_id=[1, 2])
    assert pair.generate([[5, 6]], "exact", max_new_tokens=9)[0].token_ids == expected[0, 2:].tolist()
    pair.save_pretrained(tmp_path / "saved")
    equal(network(), load(tmp_path / "saved" / "large"))
    named = BigLittleDecoder.from_pretrained(large=f"{tmp_path}:tiny.gguf", small=file, runtime="eager")
    assert named.tokenizer.get_vocab() == pair.tokenizer.get_vocab()


def test_a_folder_with_a_file_in_it(file):
    refused(file.parent, r"holds no config\.json; name its file tiny\.gguf if you mean that")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.05, 0.5, 0.99])
def test_a_cut_file(file, share, cache):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    refused(file, r"tiny\.gguf (is damaged or cut short|cannot be read as a GGUF file)")
    assert not cache.exists()


@pytest.mark.parametrize("value", [0, -3, 1.5, "x", [32, 32]])
def test_an_alignment_that_is_none(tmp_path, value):
    refused(write(tmp_path / "tiny.gguf", general__alignment=value), r"is damaged: its general\.alignment is")


def test_a_copy_that_lost_a_part_is_made_anew(file, cache):
    before = load(file)
    for copy in cache.rglob("model.safetensors"):
        content = copy.read_bytes()
        # Of its own: the network that was loaded looks into the file.
        copy.unlink()
        copy.write_bytes(content[:-10])
    equal(before, load(file))
    for copy in cache.rglob("config.json"):
        copy.unlink()
    equal(before, load(file))


def test_something_else(file):
    file.write_bytes(b"PK\x03\x04" + bytes(100))
    refused(file, r"tiny\.gguf is no GGUF file")
    file.write_bytes(b"GGUF" + bytes([9]) + bytes(100))
    refused(file, "is GGUF version 9; allowed are 2 and 3")


@pytest.mark.parametrize("name", ["tiny-00001-of-00003.gguf", "part.gguf"])
def test_one_part_of_several(tmp_path, written, name):
    if name == "part.gguf":
        write(tmp_path / name, split__count=3)
    else:
        (tmp_path / name).write_bytes(written)
    refused(tmp_path / name, "is one part of a GGUF file that was split; join the parts with llama-gguf-split --merge")


def test_an_unknown_architecture(tmp_path):
    refused(write(tmp_path / "new.gguf", architecture="nosuch"), "transformers cannot read this GGUF file .*nosuch")


@pytest.mark.parametrize("missing", ["gguf", "accelerate"])
def test_without_its_packages(file, monkeypatch, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    refused(file, rf"needs the package {missing}; run pip install 'bild\[gguf\]'")


def test_a_file_of_a_repository(file, tmp_path, monkeypatch):
    """As the hub's client keeps it."""
    repository = tmp_path / "hub" / "models--some--repo"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    file.rename(snapshot / "tiny.gguf")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    equal(network(), load("some/repo:tiny.gguf"))
    with pytest.raises(LoadError, match=r"some/repo:none\.gguf: .*the hub has no such repository or cannot be reached"):
        load("some/repo:none.gguf")


SMOLLM2 = os.environ.get("BILD_TEST_SMOLLM2")


@pytest.mark.skipif(SMOLLM2 is None, reason="BILD_TEST_SMOLLM2 does not name SmolLM2-135M-Instruct.Q4_1.gguf")
def test_a_real_file():
    pair = BigLittleDecoder.from_pretrained(large=SMOLLM2, small=SMOLLM2, dtype="float32", runtime="eager")
    result = pair.generate(["What is the capital of France?"], "exact", max_new_tokens=20)[0]
    assert (result.text, result.finish_reason) == ("The capital of France is Paris.", "eos")
