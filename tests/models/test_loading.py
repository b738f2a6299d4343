"""From a folder to a network: what loads, and what is refused in one clear line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    MambaConfig,
    MambaForCausalLM,
    T5EncoderModel,
    T5Model,
)

from bild import BigLittleDecoder, InputError, LoadError, VocabularyError
from bild.models import (
    EagerModel,
    check_shared_vocabulary,
    load_network,
    load_tokenizer,
    resolve_device,
    resolve_dtype,
)
from tests.networks import ARCHITECTURES, VOCAB_SIZE, build, shared, word_tokenizer

CPU = torch.device("cpu")
WORDS = ["<pad>", "</s>", *(f"w{id}" for id in range(2, VOCAB_SIZE))]


def load(place):
    return load_network(place, dtype=torch.float32, device=CPU)


def refused(place, message: str) -> str:
    with pytest.raises(LoadError, match=message) as caught:
        load(place)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A checkpoint of a tiny Llama with two layers."""
    build("llama", dtype=torch.float32).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def change_config(folder: Path, **values) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loads_what_was_saved(tmp_path, name):
    saved = build(name, dtype=torch.float32)
    saved.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is type(saved) and not loaded.training
    weights = saved.state_dict()
    # T5's configuration ties the head to the embeddings whatever was saved.
    untied = {key: value for key, value in loaded.state_dict().items() if "t5" not in name or key != "lm_head.weight"}
    assert len(untied) >= len(weights) - 1
    for key, value in untied.items():
        torch.testing.assert_close(value, weights[key], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_loads_in_the_dtype_asked_for(folder, dtype):
    network = load_network(str(folder), dtype=dtype, device=CPU)
    assert {parameter.dtype for parameter in network.parameters()} == {dtype}


@pytest.mark.parametrize("name", ["./none", "/no/such/folder", "~/none", "a/b/c"])
def test_a_missing_folder(name):
    refused(name, "no such folder")


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name(name):
    refused(name, "the name of a checkpoint is empty")


def test_a_missing_folder_is_not_made(tmp_path):
    assert str(tmp_path / "none") in refused(tmp_path / "none", "no such folder")
    assert not (tmp_path / "none").exists()


def test_a_file_instead_of_a_folder(folder):
    refused(folder / "config.json", r"config\.json is a file; give the folder")


def test_a_folder_without_config(folder):
    (folder / "config.json").unlink()
    refused(folder, r"holds no config\.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model_type": "no-such-model"}'])
def test_a_config_that_is_none(folder, text):
    (folder / "config.json").write_text(text)
    refused(folder, re.escape(str(folder)))


def test_truncated_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused(folder, "cannot be loaded")


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "cannot be loaded")


def test_pickled_weights_are_not_read(folder):
    torch.save(build("llama", dtype=torch.float32).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(folder, "cannot be loaded")


def test_more_layers_than_weights(folder):
    change_config(folder, num_hidden_layers=3)
    assert "9 weights are missing" in refused(folder, r"the first is model\.layers\.2\.")


def test_weights_of_another_shape(folder):
    change_config(folder, intermediate_size=48)
    refused(folder, "cannot be loaded|another shape")


def test_an_encoder_without_its_decoder(tmp_path):
    T5EncoderModel(build("t5").config).save_pretrained(tmp_path)
    refused(tmp_path, "weights are missing|does not generate text")
    change_config(tmp_path, is_encoder_decoder=True)
    refused(tmp_path, r"weights are missing.*the first is decoder\.")


def tiny_bert(**options) -> BertForMaskedLM:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForMaskedLM(BertConfig(vocab_size=VOCAB_SIZE, **sizes, **options))


def test_an_encoder_only_model(tmp_path):
    tiny_bert().save_pretrained(tmp_path)
    refused(tmp_path, "a bert model does not generate text")


def test_a_model_for_no_text_at_all(folder):
    change_config(folder, model_type="vit")
    refused(folder, "a vit model does not generate text")


@pytest.mark.parametrize("name", ["no-such-model", "no-one/no-such-model"])
def test_a_hub_name_without_network(name):
    message = refused(name, "no such folder here, and not to be had from the hub")
    assert message.startswith(f"{name}: ")


def test_a_recurrent_model_cannot_roll_back():
    config = MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=16, state_size=4, num_hidden_layers=1)
    with pytest.raises(LoadError, match="MambaForCausalLM keeps a recurrent state that cannot be rolled back"):
        EagerModel(MambaForCausalLM(config))


def test_a_network_without_a_head():
    with pytest.raises(LoadError, match="T5Model has no language-model head"):
        EagerModel(T5Model(build("t5").config))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_checkpoint_without_tokenizer(tmp_path, name):
    build(name, dtype=torch.float32).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path) is None


def test_tokenizer_of_a_checkpoint(folder):
    word_tokenizer().save_pretrained(folder)
    assert load_tokenizer(folder).get_vocab() == {word: id for id, word in enumerate(WORDS)}
    with pytest.raises(LoadError, match="no such folder"):
        load_tokenizer(folder / "none")


def test_a_damaged_tokenizer(folder):
    word_tokenizer().save_pretrained(folder)
    file = folder / "tokenizer.json"
    file.write_text(file.read_text()[:100])
    with pytest.raises(LoadError, match="cannot be loaded"):
        load_tokenizer(folder)


@pytest.mark.parametrize("present", [True, False])
def test_auto_device(monkeypatch, present):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    assert resolve_device("auto") == torch.device("cuda" if present else "cpu")
    assert resolve_device() == resolve_device("auto")


@pytest.mark.parametrize("device", ["cpu", CPU])
def test_a_device_by_name(device):
    assert resolve_device(device) == CPU


@pytest.mark.parametrize("device", ["cuda:99", "abacus", "", "cpu:x"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(InputError, match=f"device is {device!r}, which this machine does not have") as caught:
        resolve_device(device)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu_here():
    with pytest.raises(InputError, match="device is 'cuda', which this machine does not have"):
        resolve_device("cuda")


CPU_CHECKS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "dtype"),
    [
        (False, False, torch.float32),
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
        (None, None, torch.float32),
        (None, True, torch.bfloat16),
    ],
)
def test_auto_dtype_of_a_cpu(monkeypatch, avx512_bf16, amx, dtype):
    """None: a torch without that check."""
    for check, answer in zip(CPU_CHECKS, (avx512_bf16, amx), strict=True):
        if answer is None:
            monkeypatch.delattr(torch.cpu, check, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, check, lambda answer=answer: answer, raising=False)
    assert resolve_dtype("auto") is dtype
    assert resolve_dtype("auto", CPU) is dtype
    assert resolve_dtype() is dtype


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_dtype_of_a_gpu(monkeypatch, native, dtype):
    """An emulated bfloat16 does not count."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert resolve_dtype("auto", torch.device("cuda")) is dtype


def test_dtype_by_name():
    for name in ("float16", "bfloat16", "float32", "float64"):
        assert resolve_dtype(name) is getattr(torch, name)
        assert resolve_dtype(getattr(torch, name)) is getattr(torch, name)


@pytest.mark.parametrize("dtype", ["int4", "fp32", ""])
def test_unknown_dtype(dtype):
    with pytest.raises(
        InputError, match=f"dtype is {dtype!r}; allowed are auto, float32, bfloat16, float16, float64, int8"
    ):
        resolve_dtype(dtype)


@pytest.mark.parametrize(
    ("large", "small", "message"),
    [
        ("t5", "gpt2", "the large model is encoder-decoder and the small one decoder-only"),
        ("llama", "bart", "the large model is decoder-only and the small one encoder-decoder"),
    ],
)
def test_two_kinds_of_model(large, small, message):
    with pytest.raises(LoadError, match=message):
        BigLittleDecoder(shared(large), shared(small))


def test_two_devices():
    with pytest.raises(LoadError, match="the models are on cpu and meta; put both on one device"):
        BigLittleDecoder(shared("gpt2"), build("gpt2", seed=1).to("meta"))


def test_heads_of_different_size_without_tokenizers():
    wide = build("gpt2", vocab_size=VOCAB_SIZE + 8)
    with pytest.raises(VocabularyError, match="heads have 48 and 40 rows"):
        BigLittleDecoder(wide, shared("gpt2"))
    with pytest.raises(VocabularyError, match="there are not two tokenizers"):
        BigLittleDecoder(wide, shared("gpt2"), word_tokenizer())
    assert check_shared_vocabulary(None, word_tokenizer(), 40, 40) == 40


@pytest.mark.parametrize(("large", "small"), [(40, 48), (48, 40), (64, 48), (40, 40)])
def test_the_same_pieces_under_differently_padded_heads(large, small):
    assert check_shared_vocabulary(word_tokenizer(), word_tokenizer(), large, small) == min(large, small)


def test_a_pair_scores_only_the_shared_vocabulary():
    tokenizer = word_tokenizer()
    pair = BigLittleDecoder(
        build("t5", vocab_size=64), build("t5", seed=1, vocab_size=48), tokenizer, small_tokenizer=tokenizer
    )
    assert (pair.large.vocab_size, pair.small.vocab_size) == (48, 48)
    for model in (pair.large, pair.small):
        assert model.start([[5, 6]]).extend([[0]]).shape == (1, 1, 48)


def vocabulary_error(large: list[str], small: list[str], sizes: tuple[int, int]) -> str:
    with pytest.raises(VocabularyError) as caught:
        check_shared_vocabulary(word_tokenizer(large), word_tokenizer(small), *sizes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_different_pieces_under_one_id():
    swapped = [*WORDS[:7], "w9", "w8", "w7", *WORDS[10:]]
    message = vocabulary_error(WORDS, swapped, (40, 40))
    assert "differ in 2 ids" in message and "7: 'w7' / 'w9'; 9: 'w9' / 'w7'" in message


def test_only_the_first_differing_ids_are_named():
    other = [*WORDS[:30], *(f"v{id}" for id in range(30, 40))]
    message = vocabulary_error(other, WORDS, (48, 48))
    assert "differ in 10 ids" in message and "30: 'v30' / 'w30'; 31: 'v31' / 'w31'; 32: 'v32' / 'w32';" in message
    assert "33: " not in message


@pytest.mark.parametrize("turned", [False, True])
def test_pieces_beyond_the_shorter_head(turned):
    pieces, sizes = ([*WORDS, "extra", "more"], WORDS), (42, 40)
    message = vocabulary_error(*(pieces[::-1] if turned else pieces), sizes[::-1] if turned else sizes)
    counts = "40 (large) and 42 (small)" if turned else "42 (large) and 40 (small)"
    assert counts in message and "id 40 ('extra') exists in one only" in message


def test_pieces_of_one_tokenizer_that_both_heads_hold():
    """T5 and Qwen bring unnamed rows: a name for one of them in one tokenizer alone does no harm."""
    assert check_shared_vocabulary(word_tokenizer([*WORDS, "extra"]), word_tokenizer(WORDS), 48, 44) == 44
