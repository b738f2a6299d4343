"""Losses against a plain computation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bild.errors import InputError, LoadError
from bild.models.cutting import with_layers
from bild.training import remembering
from bild.training.batches import IGNORED
from bild.training.losses import (
    LATER,
    Objective,
    cross_entropy,
    disagreement,
    divergence,
    layer_weights,
    several_places,
)
from bild.training.recipe import TRAINED
from tests.networks import ARCHITECTURES, ENCODER_DECODERS, build, build_other
from tests.training.tiny import recipe


def batch_of(network, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 40, (3, 7), generator=generator)
    labels = torch.randint(2, 40, (3, 7), generator=generator)
    labels[0, 4:] = IGNORED
    batch = {"input_ids": ids, "labels": labels}
    if network.config.is_encoder_decoder:
        batch["attention_mask"] = torch.ones_like(ids)
        batch["decoder_input_ids"] = torch.randint(2, 40, (3, 7), generator=generator)
    return batch


def plain_loss(network, batch) -> torch.Tensor:
    """Minus the mean log-probability of the labels, token by token."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = network(**inputs, use_cache=False).logits
    losses = [
        -logits[row, at].log_softmax(-1)[label]
        for row, labels in enumerate(batch["labels"].tolist())
        for at, label in enumerate(labels)
        if label != IGNORED
    ]
    return torch.stack(losses).mean()


def first_layers(name: str, count: int, layers: int):
    """The same network with nothing between its first decoder layers and its head."""
    network = build(name, layers=layers)
    decoder = network.get_decoder()
    ((attribute, whole),) = [
        (attribute, child) for attribute, child in decoder.named_children() if isinstance(child, nn.ModuleList)
    ]
    setattr(decoder, attribute, whole[:count])
    return network


def layers_of(name: str) -> int:
    # T5's decoders have one more than asked for.
    return 3 if name in ("t5", "mt5") else 2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses_are_those_of_networks_cut_short(name):
    network = build(name, layers=2)
    batch, count = batch_of(network), layers_of(name)
    with torch.no_grad():
        plain = [plain_loss(first_layers(name, layer, 2), batch) for layer in range(1, count + 1)]
        assert len({round(float(loss), 3) for loss in plain}) == count
        expected = {
            "last": plain[-1],
            "early-exit": (plain[0] + plain[-1]) / 2,
            "calm": sum(layer * loss for layer, loss in enumerate(plain, 1)) / sum(range(1, count + 1)),
        }
        for kind, loss in expected.items():
            chosen = recipe(loss=kind, exit_layer=1 if kind == "early-exit" else None)
            assert Objective(network, chosen)(**batch).item() == pytest.approx(loss.item(), rel=1e-5), kind


def test_the_last_loss_is_the_networks_own():
    network = build("t5")
    batch = batch_of(network)
    assert Objective(network, recipe())(**batch).item() == pytest.approx(network(**batch).loss.item(), rel=1e-5)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
@pytest.mark.parametrize("distill", [0.0, 0.5, 1.0])
def test_an_encoder_that_does_not_learn_is_run_once_and_changes_no_loss(name, distill, monkeypatch):
    teacher = build(name)
    small = copy.deepcopy(with_layers(teacher, [1]))
    batch = batch_of(teacher)
    whole, decoder = (
        Objective(small, recipe(distill=distill, trains=trains), torch.float32, teacher) for trains in TRAINED
    )
    assert decoder.shares_encoder and not whole.shares_encoder
    expected = whole(**batch).item()
    runs: list[object] = []
    for network in (teacher, small):
        network.get_encoder().register_forward_pre_hook(lambda module, _: runs.append(module))
    loss = decoder(**batch)
    assert len(runs) == 1
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    loss.backward()
    learning = [weight.grad is not None for weight in small.get_decoder().parameters() if weight.requires_grad]
    assert learning and all(learning)
    assert all(weight.grad is None for weight in small.get_encoder().parameters())
    # Another teacher's encoder is its own.
    assert not Objective(
        small, recipe(distill=1.0, trains="decoder"), torch.float32, build(name, seed=4)
    ).shares_encoder


@pytest.mark.parametrize("name", ["t5", "bart", "gpt2", "llama"])
@pytest.mark.parametrize("listed", [None, [1, 4, 7, 8, 20, 31]])
def test_later_rounds_over_the_same_texts_do_not_ask_the_teacher(name, listed):
    teacher, small = build(name, dtype=torch.float32), build(name, seed=1, layers=1, dtype=torch.float32)
    trains = "all"
    if teacher.config.is_encoder_decoder:
        small, trains = copy.deepcopy(with_layers(teacher, [1])), "decoder"
    short_list = None if listed is None else torch.tensor(listed)
    objective = Objective(small, recipe(distill=1.0, trains=trains), torch.float32, teacher, short_list)
    runs: list[object] = []
    # What is asked of the encoder that serves both is asked of the small one's.
    for network in (teacher, small.get_encoder() if trains == "decoder" else teacher):
        network.register_forward_pre_hook(lambda module, _: runs.append(module))
    batch, other = batch_of(teacher), batch_of(teacher, seed=1)
    plain = objective(**batch).item()
    runs.clear()
    first = objective(**batch, rows=torch.tensor([4, 0, 2])).item()
    assert first == plain and runs
    objective(**other, rows=torch.tensor([1, 3, 7]))
    runs.clear()
    again = objective(**batch, rows=torch.tensor([4, 0, 2])).item()
    assert not runs and again == pytest.approx(plain, rel=5e-3) and objective.reads_teachings
    # In another company, padded otherwise.
    mixed = {key: torch.cat([batch[key][:1], other[key][2:]]) for key in batch}
    found = objective(**mixed, rows=torch.tensor([4, 7])).item()
    assert not runs and found == pytest.approx(objective(**mixed).item(), rel=5e-3)


def test_what_does_not_fit_is_computed_again():
    teacher, small = build("gpt2", dtype=torch.float32), build("gpt2", seed=1, layers=1, dtype=torch.float32)
    objective = Objective(small, recipe(distill=1.0), torch.float32, teacher)
    batch, rows = batch_of(teacher), torch.tensor([0, 1, 2])
    width = teacher.config.n_embd
    # The first row has four labels, and the others seven, of two bytes a number.
    objective.teachings = remembering.Memory((4 + 7) * width * 2 + 1)
    plain = objective(**batch).item()
    assert [objective(**batch, rows=rows).item() for _ in range(2)] == [plain, plain]
    assert objective.teachings.left == 1 and objective.teachings.of([1, 0], 9).shape == (2, 9, width)


def test_no_more_is_kept_than_a_container_has_left(tmp_path):
    everywhere = remembering.free_bytes(tmp_path)
    assert everywhere > 1 << 20
    (tmp_path / "memory.current").write_text("1000\n")
    for most, expected in (("5000\n", 1000), ("900\n", 0)):
        (tmp_path / "memory.max").write_text(most)
        assert remembering.free_bytes(tmp_path) == expected
    (tmp_path / "memory.max").write_text("max\n")
    assert remembering.free_bytes(tmp_path) > 1 << 20


def test_a_teacher_that_bends_what_its_head_says_is_asked_each_time():
    teacher, small = build_other("gemma2"), build_other("gemma2")
    teacher.config.final_logit_softcapping = 0.5
    objective = Objective(small, recipe(distill=1.0), torch.float32, teacher)
    batch, rows = batch_of(teacher), torch.tensor([0, 1, 2])
    plain = objective(**batch).item()
    assert [objective(**batch, rows=rows).item() for _ in range(2)] == [plain, plain]
    assert objective.reads_teachings is False


def test_what_has_no_encoder_trains_whole():
    with pytest.raises(InputError, match="trains is decoder, but LlamaForCausalLM has no encoder that could stay"):
        Objective(build("llama"), recipe(trains="decoder"))
    with pytest.raises(InputError, match="trains is decoder and the loss calm"):
        recipe(trains="decoder", loss="calm")


def test_label_smoothing_spreads_a_share_over_all_tokens():
    logits, labels = torch.randn(2, 3, 5), torch.tensor([[1, 2, IGNORED], [0, IGNORED, 4]])
    logs = logits.log_softmax(-1)
    kept = [(0, 0, 1), (0, 1, 2), (1, 0, 0), (1, 2, 4)]
    expected = -sum(0.7 * logs[b, t, y] + 0.3 * logs[b, t].mean() for b, t, y in kept) / 4
    assert cross_entropy(logits, labels, 0.3).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_distilling_compares_distributions_up_to_the_last_label(name):
    network, teacher = build(name, seed=0), build(name, seed=1)
    batch = batch_of(network)
    if name == "gpt2":
        batch["labels"][1, :2] = IGNORED
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        p, q = (each(**inputs, use_cache=False).logits.double().softmax(-1) for each in (teacher, network))
    last = [int(row.nonzero().max()) for row in batch["labels"] != IGNORED]
    counted = [(b, t) for b, end in enumerate(last) for t in range(end + 1)]
    # What fills a row up is left out; the source of a decoder-only model's row is learnt from.
    labelled = int((batch["labels"] != IGNORED).sum())
    assert len(counted) < batch["labels"].numel() and len(counted) - labelled == (2 if name == "gpt2" else 0)
    plain = sum(float(p[b, t] @ (p[b, t].log() - q[b, t].log())) for b, t in counted) / len(counted)
    assert plain > 0.01
    for share in (1.0, 0.25):
        expected = share * plain + (1 - share) * plain_loss(network, batch).item()
        objective = Objective(network, recipe(distill=share), teacher=teacher)
        assert objective(**batch).item() == pytest.approx(expected, rel=1e-4)
        objective(**batch).backward()
    assert all(weight.grad is None for weight in teacher.parameters())
    # Neither trained nor saved.
    assert len(list(objective.parameters())) == len(list(network.parameters()))
    assert Objective(network, recipe(distill=1.0), teacher=network)(**batch).item() == pytest.approx(0, abs=1e-6)


def test_distributions_over_vocabularies_padded_differently():
    generator = torch.Generator().manual_seed(0)
    taught, logits = torch.randn(1, 2, 7, generator=generator), torch.randn(1, 2, 5, generator=generator)
    expected = divergence(taught[..., :5], logits, torch.ones(1, 2)).item()
    assert expected > 0.1 and divergence(taught, logits, torch.ones(1, 2)).item() == pytest.approx(expected)


def test_distilling_needs_a_large_model_and_the_last_layer():
    with pytest.raises(InputError, match=r"distill is 0.5, but there is no large model to learn from; use bild align"):
        Objective(build("t5"), recipe(distill=0.5))
    with pytest.raises(InputError, match=r"distill is 0.5 and the loss calm; inner layers learn from labels alone"):
        recipe(distill=0.5, loss="calm")
    with pytest.raises(InputError, match=r"distill is 1.5; allowed is 0 to 1"):
        recipe(distill=1.5)


def test_gradient_flows_to_the_exit_layer():
    """The exit layer learns what the last loss alone would not teach it."""
    gradients = {}
    for kind in ("last", "early-exit"):
        network = build("t5", layers=2)
        chosen = recipe(loss=kind, exit_layer=1 if kind == "early-exit" else None)
        Objective(network, chosen)(**batch_of(network)).backward()
        gradients[kind] = [block.layer[-1].DenseReluDense.wo.weight.grad.clone() for block in network.decoder.block]
    # Above the exit only half of the last loss remains; the exit layer gets the exit's gradient besides.
    for layer in (1, 2):
        torch.testing.assert_close(gradients["early-exit"][layer], gradients["last"][layer] / 2)
    added = gradients["early-exit"][0] - gradients["last"][0] / 2
    assert added.norm() > 0.1 * gradients["last"][0].norm()


def test_weights_of_layers_add_up():
    calm = layer_weights(recipe(loss="calm"), 8)
    assert calm[1] == pytest.approx(1 / 36) and calm[8] == pytest.approx(8 / 36)
    assert sum(calm.values()) == pytest.approx(1.0)
    assert layer_weights(recipe(loss="early-exit", exit_layer=1), 8) == {1: 0.5, 8: 0.5}


def test_exits_that_are_not_there():
    with pytest.raises(InputError, match="exit_layer is 3, but the network has 3 decoder layers; allowed is 1 to 2"):
        Objective(build("t5", layers=2), recipe(loss="early-exit", exit_layer=3))
    network = build("gpt2")
    network.transformer.more = nn.ModuleList()
    with pytest.raises(LoadError, match="is not one list of layers; train it with --loss last"):
        Objective(network, recipe(loss="calm"))


def test_bfloat16_products_come_near():
    network = build("t5", dtype=torch.float32)
    batch = batch_of(network)
    exact = Objective(network, recipe(loss="calm"))(**batch).item()
    rounded = Objective(network, recipe(loss="calm"), torch.bfloat16)(**batch).item()
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.02)


def test_with_a_short_list_only_its_tokens_are_learnt_and_compared():
    network, teacher = (build("llama", seed=seed, dtype=torch.float32) for seed in (0, 1))
    ids, text = torch.tensor([1, 4, 9, 12]), torch.tensor([[4, 9, 2, 7]])
    labels = torch.tensor([[IGNORED, 9, 2, 12]])
    taught, own = (each(text, use_cache=False).logits[0, :, ids] for each in (teacher, network))
    # The second label is no listed token: nothing to learn from it, but a distribution is there, as before the first.
    expected = {
        0.0: torch.nn.functional.cross_entropy(own[[1, 3]], torch.tensor([2, 3])),
        1.0: torch.nn.functional.kl_div(own.log_softmax(-1), taught.softmax(-1), reduction="batchmean"),
    }
    for share, value in expected.items():
        objective = Objective(network, recipe(distill=share), teacher=teacher, short_list=ids)
        torch.testing.assert_close(objective(labels, input_ids=text), value)
    with pytest.raises(InputError, match="inner layers have no short list"):
        Objective(network, recipe(loss="calm"), short_list=ids)


def test_two_passes_that_disagree_cost_more():
    logits = torch.randn(4, 3, 11, generator=torch.Generator().manual_seed(0))
    labels = torch.full((4, 3), 5)
    labels[[0, 2], 1:] = IGNORED
    q, r = logits.double().softmax(-1).chunk(2)
    both = (q * (q / r).log()).sum(-1) + (r * (r / q).log()).sum(-1)
    expected = both[labels[:2] != IGNORED].mean() / 2
    assert disagreement(logits, labels).item() == pytest.approx(expected.item(), rel=1e-5)
    assert disagreement(torch.cat([logits[:2], logits[:2]]), labels).item() == 0


def test_r_drop_is_the_mean_loss_of_two_passes_and_how_they_disagree():
    network = build("t5")
    network.config.dropout_rate = 0.3
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    batch = batch_of(network)
    twice = {name: torch.cat([value, value]) for name, value in batch.items()}
    losses = []
    for weight in (0.0, 4.0):
        objective = Objective(network, recipe(r_drop=weight, dropout=0.3)).train()
        torch.manual_seed(1)
        losses.append(objective(**(batch if weight else twice)).item())
    torch.manual_seed(1)
    logits = network(**{name: value for name, value in twice.items() if name != "labels"}, use_cache=False).logits
    apart = disagreement(logits, twice["labels"]).item()
    assert apart > 0.001
    assert losses[1] == pytest.approx(losses[0] + 2 * apart, rel=1e-5)
    # Without dropout the passes are alike.
    alike = Objective(network, recipe(r_drop=4.0, dropout=0.3)).eval()
    assert alike(**batch).item() == pytest.approx(network.eval()(**batch).loss.item(), rel=1e-5)


def test_several_places_are_compared_with_what_the_teacher_says_there():
    generator = torch.Generator().manual_seed(3)
    taught, logits = torch.randn(2, 5, 6, generator=generator), torch.randn(2, 5, 3, 6, generator=generator)
    labels = torch.tensor([[2, 2, 2, 2, IGNORED], [2, 2, IGNORED, IGNORED, IGNORED]])
    lengths, losses = [4, 2], []
    for place in range(3):
        found = []
        for row, length in enumerate(lengths):
            for at in range(length - place):
                p, q = taught[row, at + place].log_softmax(-1), logits[row, at, place].log_softmax(-1)
                found.append((p.exp() * (p - q)).sum())
        losses.append(LATER**place * torch.stack(found).mean())
    expected = torch.stack(losses).sum() / (1 + LATER + LATER**2)
    torch.testing.assert_close(several_places(taught, logits, labels), expected)
    # Where no text has a third place, the first two count.
    two = several_places(taught[1:, :2], logits[1:, :2], labels[1:, :2])
    assert torch.isfinite(two)
