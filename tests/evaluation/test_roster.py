"""From names to methods."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from bild import BigLittleDecoder, Policy
from bild.decoding import Ngrams
from bild.errors import InputError, LoadError
from bild.evaluation import MethodSpec, Output, Setup, load_methods, measure_memory, parse_methods
from bild.evaluation.memory import _descendants, peak_bytes
from bild.evaluation.own import _tensor_bytes, policy_of
from bild.generation import Pair, bundled_pair

OWN = Policy.bild(fallback_threshold=0.31, rollback_threshold=1.7, max_draft_tokens=9, verify_end=0.5)


class FakePeer:
    weight_bytes = None

    def __init__(self, spec, context):
        if "broken" in spec.options:
            raise LoadError("the engine is not installed")
        self.name, self.context = spec.text, context

    def __call__(self, source):
        return Output(source, [1])

    def close(self):
        pass


@pytest.fixture(autouse=True)
def peers(monkeypatch):
    monkeypatch.setitem(sys.modules, "bild.evaluation.peers", SimpleNamespace(PEERS={"engine": FakePeer}))


def policy(text: str) -> Policy:
    return policy_of(MethodSpec.parse(text), OWN)


def test_method_specs():
    assert MethodSpec.parse(" a:x=1:y=b=c ") == MethodSpec("a", {"x": "1", "y": "b=c"}, "a:x=1:y=b=c")
    for text, says in (("a:x", "'x' is not key=value"), ("a:x=", "not key=value"), (":x=1", "has no name")):
        with pytest.raises(InputError, match=says):
            MethodSpec.parse(text)
    with pytest.raises(InputError, match="x is given twice"):
        MethodSpec.parse("a:x=1:x=2")


def test_thresholds_override_those_of_the_pair():
    assert policy("bild") is OWN and policy("bild:dtype=float32") is OWN
    assert policy("bild:fallback_threshold=0.9").hand_over.threshold == 0.9
    assert policy("bild:rollback_threshold=3") == Policy.bild(
        fallback_threshold=0.31, rollback_threshold=3.0, max_draft_tokens=9, verify_end=0.5
    )
    assert policy("bild:max_draft_tokens=4:verify_end=no") == Policy.bild(
        fallback_threshold=0.31, rollback_threshold=1.7, max_draft_tokens=4, verify_end=False
    )
    assert policy("bild:verify_end=yes").verify_end is True and policy("bild:verify_end=0.7").verify_end == 0.7
    assert policy("exact:fallback_threshold=0.2:max_draft_tokens=3") == Policy.exact(
        fallback_threshold=0.2, max_draft_tokens=3
    )
    assert (policy("large"), policy("small")) == (Policy.large(), Policy.small())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bild:gamma=3", "unknown option gamma; allowed are fallback_threshold, .*, runtime, dtype"),
        ("large:verify_end=yes", "unknown option verify_end; allowed are runtime, dtype, drafter"),
        ("bild:fallback_threshold=two", "fallback_threshold is 'two'; allowed is a number"),
        ("bild:max_draft_tokens=2.5", "max_draft_tokens is '2.5'; allowed is a whole number"),
        ("bild:verify_end=maybe", "allowed is a number, yes or no"),
        ("bild:fallback_threshold=7", "'bild:fallback_threshold=7': fallback_threshold is 7.0; allowed is 0 to 1"),
    ],
)
def test_bad_options(text, says):
    with pytest.raises(InputError, match=says):
        policy(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("large,warp", "method is 'warp'; allowed are bild, exact, .*, large, small, calm, engine"),
        ("large, large", "method 'large' is there twice"),
        (" , ", "no method is named"),
    ],
)
def test_bad_lists_of_methods(text, says):
    with pytest.raises(InputError, match=says):
        parse_methods(text)


def test_methods_that_share_runtime_and_dtype_share_a_decoder(bundled):
    loaded = []

    def load(**options):
        loaded.append(options)
        return bundled

    names = "large,bild,small:dtype=bfloat16,exact:dtype=float32,engine:a=1,engine:broken=1"
    setup = Setup(dtype="float32", device="cpu", max_new_tokens=33)
    roster = load_methods(parse_methods(names), setup, load)
    assert [options["dtype"] for options in loaded] == ["float32", "bfloat16"]
    assert loaded[0] == {
        "pair": None, "large": None, "small": None, "runtime": "eager", "dtype": "float32", "device": "cpu",
        "trust_remote_code": False,
    }  # fmt: skip
    assert [method.name for method in roster.methods] == names.split(",")[:-1]
    assert roster.failed == {"engine:broken=1": "the engine is not installed"}
    context = roster.methods[-1].context
    pair = Pair.load(bundled_pair())
    assert (context.large, context.small, context.max_new_tokens) == (pair.large, pair.small, 33)
    assert (context.device, context.threads) == ("cpu", 1)
    roster.close()


def test_a_method_that_is_given_how_to_draw_samples(bundled, sentences):
    names = "exact:temperature=0.9:top_p=0.8:seed=3,large:temperature=0.9:top_p=0.8:seed=3,large:top_k=5,large"
    sampled, alone, other, greedy = load_methods(
        parse_methods(names), Setup(dtype="float32"), lambda **_: bundled
    ).methods
    assert sampled.options["do_sample"] and sampled.options["top_p"] == 0.8 and "do_sample" not in greedy.options
    assert other.options["top_k"] == 5 and isinstance(other.options["top_k"], int)
    texts = sentences[:4]
    drawn = [sampled(text).token_ids for text in texts]
    assert drawn == [alone(text).token_ids for text in texts] != [greedy(text).token_ids for text in texts]
    with pytest.raises(InputError, match="top_k is 'few'; allowed is a whole number"):
        load_methods(parse_methods("large:top_k=few"), Setup(), lambda **_: bundled)


def test_a_method_that_is_given_beams_searches(bundled, sentences):
    names = "large:num_beams=3:length_penalty=0.5,exact:num_beams=3:length_penalty=0.5,large"
    plain, drafted, greedy = load_methods(parse_methods(names), Setup(dtype="float32"), lambda **_: bundled).methods
    expected = bundled.generate(sentences[20:30], num_beams=3, length_penalty=0.5)
    found = [plain(text).token_ids for text in sentences[20:30]]
    assert found == [result.token_ids for result in expected] != [greedy(t).token_ids for t in sentences[20:30]]
    assert found == [drafted(text).token_ids for text in sentences[20:30]]
    with pytest.raises(InputError, match="method 'bild:num_beams=2': beams go with large, small and exact"):
        load_methods(parse_methods("bild:num_beams=2"), Setup(), lambda **_: bundled)


@pytest.mark.parametrize(
    ("text", "drafter"),
    [
        ("exact", None),
        ("exact:drafter=ngram@window=8", "ngram:window=8"),
        ("exact:drafter=ngram+small", "first:ngram,small"),
        ("bild:drafter=bandit@rule=exp3@ngram@longest=3+small", "bandit:rule=exp3:ngram:longest=3,small"),
    ],
)
def test_a_method_may_say_who_drafts(bundled, text, drafter):
    seen = []
    (method,) = load_methods(parse_methods(text), Setup(), lambda **named: (seen.append(named), bundled)[1]).methods
    assert method.options.get("drafter") == drafter and "drafter" not in seen[0]
    # A text that repeats itself where the bandit leaves the draft to the small model.
    source = "Ein kleiner Junge mit einem Giants-Trikot schwingt einen Baseballschläger in Richtung eines ankommenden"
    stats = method(f"{source} Balls.").stats
    looks_up = drafter is not None and not drafter.startswith("bandit")
    assert ("ngram" in stats.num_tokens_by_writer) == looks_up
    assert (stats.num_small_steps == 0) == (drafter == "ngram:window=8")


def test_a_pair_without_a_small_model():
    setup = Setup(large="hub/name", drafter="ngram")
    assert setup.describe()["small"] is None and setup.describe()["drafter"] == "ngram"
    assert "drafter" not in Setup(large="hub/name", small="hub/other").describe()
    for names, says in (
        ("large,small", "method 'small' needs a small model and the pair names none"),
        ("bild:drafter=ngram+small", "drafter 'first:ngram,small' needs a small model and there is none"),
        ("bild:drafter=warp", "method 'bild:drafter=warp': drafter 'warp' is unknown"),
    ):
        with pytest.raises(InputError, match=says):
            load_methods(parse_methods(names), setup, lambda **_: pytest.fail("loaded"))


def test_an_own_method_that_cannot_be_loaded_is_an_error():
    def load(**options):
        raise LoadError("no such runtime here")

    with pytest.raises(LoadError, match="no such runtime"):
        load_methods(parse_methods("large"), Setup(), load)
    with pytest.raises(InputError, match="max_new_tokens is 0"):
        Setup(max_new_tokens=0)


def test_an_own_method_says_what_the_decoder_says(bundled, sentences, monkeypatch):
    seen = []
    each = BigLittleDecoder.generate
    monkeypatch.setattr(BigLittleDecoder, "generate", lambda self, *a, **k: (seen.append(k), each(self, *a, **k))[1])
    setup = Setup(max_new_tokens=4, chat=False)
    roster = load_methods(parse_methods("exact,large,small"), setup, lambda **_: bundled)
    exact, large, small = roster.methods
    (expected,) = bundled.generate(sentences[0], "exact", max_new_tokens=4)
    said = exact(sentences[0])
    assert (said.text, said.token_ids, said.stats) == (expected.text, expected.token_ids, expected.stats)
    assert len(said.token_ids) == 4 and 0 < said.ttft_s < 5 and said.total_s is None
    assert seen[-1] == {"max_new_tokens": 4, "chat": False}
    sizes = [sum(4 * p.numel() for p in side.network.parameters()) for side in (bundled.large, bundled.small)]
    assert [m.weight_bytes for m in (exact, large, small)] == [sum(sizes), *sizes]
    assert exact.details == {
        "policy": Policy.exact().to_dict(), "device": "cpu", "dtype": "float32", "runtime": "eager"
    }  # fmt: skip


def test_the_configuration_names_the_checkpoints_and_the_policy(bundled):
    described = Setup(dtype="float32").describe()
    assert described["large"]["name"].endswith("large") and described["policy"] == bundled.policy.to_dict()
    assert described["dtype"] == "float32" and "pair" not in described


def test_new_weights_under_an_old_name_are_another_checkpoint(tmp_path):
    """Else a run would go on with texts of the old ones."""
    (tmp_path / "model.safetensors").write_bytes(b"old")
    before = Setup(large=str(tmp_path), small="hub/name").describe()
    (tmp_path / "model.safetensors").write_bytes(b"newer")
    after = Setup(large=str(tmp_path), small="hub/name").describe()
    assert before["large"]["name"] == after["large"]["name"] and before["large"] != after["large"]
    assert after["small"] == {"name": "hub/name"}


@pytest.mark.parametrize("way", ["{}:inside", "{}:model.gguf", "ensemble:base=hub/name,plus={}/inside", "{}/adapter"])
def test_however_a_checkpoint_is_named_new_weights_are_another_one(tmp_path, way):
    for folder in ("inside", "adapter"):
        (tmp_path / folder).mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "../inside"}')
    (tmp_path / "inside" / "model.safetensors").write_bytes(b"old")
    (tmp_path / "model.gguf").write_bytes(b"old")
    name = way.format(tmp_path)
    before = Setup(large=name, small="hub/name").describe()
    assert before == Setup(large=name, small="hub/name").describe()
    (tmp_path / "inside" / "model.safetensors").write_bytes(b"newer")
    (tmp_path / "model.gguf").write_bytes(b"newer")
    after = Setup(large=name, small="hub/name").describe()
    assert after["large"]["name"] == name and before["large"]["sha256"] != after["large"]["sha256"]


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer.json", "chat_template.jinja", "short_list.json"])
def test_whatever_else_decides_what_a_checkpoint_writes_makes_it_another_one(tmp_path, name):
    for file in ("model.safetensors", name, "training.json"):
        (tmp_path / file).write_text("{}")
    before = Setup(large=str(tmp_path), small="hub/name").describe()
    (tmp_path / "training.json").write_text("{ }")
    assert Setup(large=str(tmp_path), small="hub/name").describe() == before
    (tmp_path / name).write_text('{"a": 1}')
    assert Setup(large=str(tmp_path), small="hub/name").describe()["large"] != before["large"]


def test_the_pairs_own_drafter_and_its_counts_are_part_of_a_configuration(tmp_path):
    Ngrams(10, 2).save(tmp_path / "counts")
    pair = Pair("hub/large", None, drafter=f"backoff:file={tmp_path / 'counts'}")
    pair.save(tmp_path)
    before = Setup(pair=str(tmp_path)).describe()
    assert before["drafter"] == pair.drafter
    Ngrams(10, 3).save(tmp_path / "counts")
    after = Setup(pair=str(tmp_path)).describe()
    assert [name for name in after if after[name] != before[name]] == ["counts"]


def test_a_value_that_nothing_can_be_written_with_is_refused_before_anything_is_loaded():
    for text, says in (("large:temperature=0", "temperature is 0.0"), ("exact:num_beams=0", "num_beams is 0")):
        with pytest.raises(InputError, match=f"method '{text}': {says}"):
            load_methods(parse_methods(text), Setup(), load=None)


def test_peak_memory_of_one_method_in_a_fresh_process(sentences):
    setup = Setup(dtype="float32", device="cpu", max_new_tokens=2)
    ballast = bytearray(200_000_000)
    large = measure_memory("large", setup, sentences[:1])
    assert peak_bytes() > len(ballast)
    # The large model has 18 M weights of 4 bytes; what this process holds must not be charged.
    assert 72e6 < large.above_imports_bytes < large.total_bytes < 1e9
    assert large.cuda_bytes is None
    bad = dataclasses.replace(setup, dtype="int3")
    with pytest.raises(LoadError, match=r"peak memory of 'large' could not be measured \(.*dtype is 'int3'"):
        measure_memory("large", bad, sentences[:1])


def test_memory_of_started_processes_is_found():
    command = "import sys; held = bytearray(50_000_000); print(1, flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", command], **pipes) as child:
        child.stdout.readline()
        assert child.pid in _descendants()
        assert 50e6 < peak_bytes(child.pid) < 150e6
        child.stdin.close()
    assert child.pid not in _descendants() and peak_bytes(child.pid) == 0


def test_a_quantized_weight_counts_what_it_holds():
    class Quantized:
        values, scales = torch.zeros(10, dtype=torch.int8), torch.zeros(2)

        def __tensor_flatten__(self):
            return ["values", "scales"], None

    assert _tensor_bytes(Quantized()) == 10 + 2 * 4


def test_a_policy_with_a_qualifier_is_refused_before_anything_is_loaded():
    def load(**options):
        raise AssertionError("loaded")

    with pytest.raises(InputError, match="says what a middle model lets pass, and there is none"):
        load_methods(parse_methods("large,pyramid"), Setup(), load)
