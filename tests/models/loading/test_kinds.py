"""Every architecture that does not write text from text is refused by its name, before a weight is read."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig
from transformers.models.auto import modeling_auto

from bild import BigLittleDecoder, LoadError
from bild.models import load_network
from bild.models.loading import checkpoint
from bild.models.loading.kinds import auto_class
from tests.networks import OTHERS, build, build_other

CPU = torch.device("cpu")
SPEECH = ("whisper", "speech_to_text", "moonshine", "speecht5", "qwen2_audio", "musicgen", "moshi", "dia", "wav2vec2")
PICTURES = ("pix2struct", "blip-2", "git", "llava", "qwen2_vl", "got_ocr2", "vit", "clip")
OTHER = ("bert", "time_series_transformer", "decision_transformer", "dpr", "timesfm")


def refused(config: dict, folder, message: str, monkeypatch) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(checkpoint, "_read_network", lambda *_: pytest.fail("read the weights"))
    with pytest.raises(LoadError, match=message) as caught:
        load_network(folder, dtype=torch.float32, device=CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [*SPEECH, *PICTURES, *OTHER])
def test_sound_pictures_and_encoders(kind, tmp_path, monkeypatch):
    refused({"model_type": kind}, tmp_path, f"a {kind} model does not generate text from text", monkeypatch)


def test_why(tmp_path, monkeypatch):
    refused({"model_type": "whisper"}, tmp_path, r"from text: it is made for sound \(speech, audio\); use", monkeypatch)
    refused({"model_type": "git"}, tmp_path, r"from text: it is made for images; use", monkeypatch)


@pytest.mark.parametrize(
    ("kind", "encoder"), [("vision-encoder-decoder", "vit"), ("speech-encoder-decoder", "wav2vec2")]
)
def test_encoders_of_pictures_and_speech_before_a_text_decoder(kind, encoder, tmp_path, monkeypatch):
    parts = {"encoder": {"model_type": encoder}, "decoder": {"model_type": "gpt2"}}
    refused({"model_type": kind, **parts}, tmp_path, f"a {kind} model does not generate text from text", monkeypatch)


@pytest.mark.parametrize(
    ("kind", "saved"),
    [
        ("llama", "LlamaForSequenceClassification"),
        ("qwen2", "Qwen2ForTokenClassification"),
        ("bart", "BartForQuestionAnswering"),
        ("t5", "T5EncoderModel"),
    ],
)
def test_text_models_saved_for_another_task(kind, saved, tmp_path, monkeypatch):
    """With tied embeddings no weight would be missing."""
    message = rf"a {kind} model does not generate text from text \(it was saved as {saved}\)"
    refused({"model_type": kind, "architectures": [saved]}, tmp_path, message, monkeypatch)


@pytest.mark.parametrize("name", ["t5", "bart", "marian", "gpt2", "llama", *OTHERS])
def test_text_models(name):
    network = build_other(name) if name in OTHERS else build(name)
    network.config.architectures = [type(network).__name__]
    assert auto_class(network.config, name).__name__.startswith("AutoModelFor")


def test_nothing_listed_for_sound_is_let_through():
    """What transformers will add to its lists is refused too."""
    speech = set(modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES) | set(
        modeling_auto.MODEL_FOR_CTC_MAPPING_NAMES
    )
    translates = {"seamless_m4t", "seamless_m4t_v2"}
    for kind in speech - translates:
        try:
            config = AutoConfig.for_model(kind)
        except Exception:  # a configuration that needs arguments or packages
            continue
        with pytest.raises(LoadError, match=f"{kind} model does not generate text"):
            auto_class(config, kind)


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "recurrent_gemma", "zamba2"])
def test_recurrent_models_are_refused_before_their_weights(kind, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(LoadError, match=f"a {kind} model keeps a recurrent state that cannot be rolled back"):
        BigLittleDecoder.from_pretrained(large=tmp_path, small=tmp_path, runtime="eager")
