"""What is minimised: the network's own loss, or one that also makes its earlier layers able to write.

With ``L(i)`` the cross-entropy of the tokens when the shared head reads decoder layer ``i`` of ``n``:

    last        L(n)
    early-exit  ½ L(exit layer) + ½ L(n)        Kim et al. 2023, section 4.4
    calm        Σ wᵢ L(i) with wᵢ = i / Σⱼ j    Schuster et al. 2022; Kim et al. 2023, section 7.2

and, for a share λ that learns from another network's distributions p rather than from tokens,

    distill     (1 − λ) L(n) + λ KL(p || q)     Zhou et al. 2024 (DistillSpec), forward KL

and, with q and r of two passes of one batch whose dropout differs,

    r-drop      mean of both L(n) + α/2 · ½ (KL(q || r) + KL(r || q))     Liang et al. 2021, halved
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from bild.errors import InputError, LoadError
from bild.models.joined import join_states, reads_states
from bild.models.one_encoder.comparing import have_one_encoder
from bild.models.parallel import drafting_at_once, parallel_head
from bild.models.parts import encoder_of, final_norm
from bild.models.short_list import scoring
from bild.training.batches import IGNORED
from bild.training.recipe import Recipe
from bild.training.remembering import Memory, are_alike, free_bytes, head_inputs, read_by_head

DRAFTED, LATER = 3, 0.8
"""Tokens of a draft that a network which reads states learns to write, and what each counts beside the one before."""


class Objective(nn.Module):
    """A network and what its training minimises, as one module whose forward pass gives the loss.

    Args:
        network: its weights are trained in place.
        recipe: loss, exit layer, label smoothing and R-Drop.
        dtype: what matrix products are computed in; weights keep theirs.
        teacher: the network whose distributions are learnt where the recipe distills; frozen.
        short_list: tokens that are scored ``[n]``, ascending (:mod:`bild.models.short_list`): the teacher's
            distribution is that over them, and labels outside count for nothing; None: all.

    Raises:
        InputError: an exit layer the network does not have, nobody to learn distributions from, or an encoder that is
            to stay as it is where there is none.
        LoadError: a loss of inner layers for an architecture whose layers cannot be told apart.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        recipe: Recipe,
        dtype: torch.dtype = torch.float32,
        teacher: PreTrainedModel | None = None,
        short_list: Tensor | None = None,
    ) -> None:
        super().__init__()
        if reads_states(network) and (recipe.loss != "last" or recipe.distill < 1 or recipe.r_drop):
            raise InputError("a small model that reads states learns distributions alone; give loss last and distill 1")
        if short_list is not None and recipe.loss != "last":
            raise InputError(f"the loss is {recipe.loss}, and inner layers have no short list; remove it, or use last")
        if recipe.distill and teacher is None:
            raise InputError(f"distill is {recipe.distill}, but there is no large model to learn from; use bild align")
        self.network, self.smoothing, self.dtype = network, recipe.label_smoothing, dtype
        self.distill, self.r_drop = recipe.distill, recipe.r_drop
        # Not a module of this one: its weights are neither trained nor saved.
        self._teacher = (teacher,)
        self.encodes_once = recipe.trains == "decoder"
        if self.encodes_once:
            freeze_encoder(network)
        self.reads_states = reads_states(network)
        parallel = parallel_head(network)
        self.at_once = 1 if parallel is None else parallel.at_once
        if self.reads_states:
            freeze_words(network)
        self.shares_encoder = self.encodes_once and teacher is not None and have_one_encoder(network, teacher)
        # Where a GPU computes, memory is what is scarce.
        room = free_bytes() // 2 if network.device.type == "cpu" else 0
        self.sources, self.teachings = Memory(room), Memory(room)
        self.reads_teachings: bool | None = None
        """Whether the teacher's logits are what its head makes of states; None: nobody has looked yet."""
        self.short_list = None if short_list is None else short_list.to(network.device)
        self.cross_entropy, self.divergence, self.disagreement = cross_entropy, divergence, disagreement
        self.inner, self.last = {}, 1.0
        if recipe.loss != "last":
            weights = layer_weights(recipe, count_layers(network))
            self.last = weights.pop(max(weights))
            self.inner = weights

    def forward(self, labels: Tensor, rows: Tensor | None = None, **inputs: Tensor) -> Tensor:
        """The loss, a scalar in nats: mean over the labelled tokens.

        Args:
            labels: next tokens ``[B, T]``, :data:`~bild.training.batches.IGNORED` where none counts.
            rows: numbers of the texts ``[B]``, by which is kept what does not change from one round to the next; None:
                nothing is.
            inputs: of the network, ``[B, …]``.
        """
        numbers: list[int] | None = None if rows is None or labels.device.type != "cpu" else rows.tolist()
        if self.r_drop:
            labels = torch.cat([labels, labels])
            inputs = {name: torch.cat([value, value]) for name, value in inputs.items()}
            numbers = None if numbers is None else numbers * 2
        with torch.autocast(labels.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if self.reads_states:
                return self.on_states(labels, inputs, numbers)
            own = self.encoded(inputs, numbers) if self.encodes_once else inputs
            with scoring(self.network, self.short_list):
                output = self.network(**own, use_cache=False, output_hidden_states=bool(self.inner))
            loss = torch.zeros((), device=labels.device)
            if self.distill < 1:
                share = self.last * (1 - self.distill)
                loss = share * self.cross_entropy(output.logits, self.listed(labels), self.smoothing)
            if self.distill > 0:
                taught = self.taught(own if self.shares_encoder else inputs, counted(labels), numbers)
                loss = loss + self.distill * self.divergence(taught, output.logits, labels)
            if self.r_drop:
                loss = loss + self.r_drop / 2 * self.disagreement(output.logits, labels)
            for layer, weight in self.inner.items():
                loss = loss + weight * self.cross_entropy(self.read(output, layer), labels, self.smoothing)
        return loss

    def on_states(self, labels: Tensor, inputs: dict[str, Tensor], numbers: Sequence[int] | None) -> Tensor:
        """The loss of a network that reads states: of the teacher's first, then of those it has made itself of a draft
        that was a token shorter, each drafted token counting a little less. Of one that drafts several tokens at once:
        of all of them, in one pass on the teacher's states.

        Args:
            labels: as for :meth:`forward`.
            inputs: likewise.
            numbers: of the texts.
        """
        taught, states = self.taught_on(inputs, counted(labels), numbers)
        loss, rest = torch.zeros((), device=labels.device), {**inputs}
        ids = rest.pop("input_ids")
        if self.at_once > 1:
            read = join_states(self.network, ids, functional.pad(states, (0, 0, 1, 0))[:, :-1])
            with scoring(self.network, self.short_list), drafting_at_once(self.network):
                together = self.network(inputs_embeds=read, **rest, use_cache=False).logits
            return several_places(taught, together.unflatten(1, (-1, self.at_once)), labels)
        for step in range(DRAFTED):
            read = join_states(self.network, ids, functional.pad(states, (0, 0, 1, 0))[:, :-1])
            with scoring(self.network, self.short_list), head_inputs(self.network) as made:
                logits = self.network(inputs_embeds=read, **rest, use_cache=False).logits
            loss = loss + LATER**step * self.divergence(taught, logits, labels)
            states = made[-1]
        return loss / sum(LATER**step for step in range(DRAFTED))

    @torch.no_grad()
    def encoded(self, inputs: dict[str, Tensor], numbers: Sequence[int] | None = None) -> dict[str, Any]:
        """The inputs with what the encoder, which does not learn, makes of the source in its place.

        Args:
            inputs: of the network.
            numbers: of the texts, where what is made of them is kept.
        """
        mask = inputs["attention_mask"]
        states = None if numbers is None else self.sources.of(numbers, mask.shape[1])
        if states is None:
            # As the large model will compute it: without dropout.
            encoder = encoder_of(self.network).eval()
            states = encoder(inputs["input_ids"], attention_mask=mask)[0]
            if numbers is not None:
                self.sources.keep(numbers, states, mask)
        rest = {name: value for name, value in inputs.items() if name != "input_ids"}
        return rest | {"encoder_outputs": BaseModelOutput(last_hidden_state=states)}

    @torch.no_grad()
    def taught(self, inputs: dict[str, Any], counted: Tensor, numbers: Sequence[int] | None = None) -> Tensor:
        """The teacher's logits ``[B, T, V]``.

        Args:
            inputs: of the network.
            counted: where they count ``[B, T]``.
            numbers: of the texts, where what the teacher's head reads of them is kept.
        """
        return self.taught_on(inputs, counted, numbers)[0]

    @torch.no_grad()
    def taught_on(
        self, inputs: dict[str, Any], counted: Tensor, numbers: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`taught`, and what the teacher's head reads ``[B, T, D]``."""
        (teacher,) = self._teacher
        assert teacher is not None
        if self.reads_teachings is False:
            numbers = None
        with scoring(teacher, self.short_list):
            states = None if numbers is None else self.teachings.of(numbers, counted.shape[1])
            if states is not None:
                return read_by_head(teacher, states), states
            with head_inputs(teacher) as read:
                logits: Tensor = teacher(**inputs, use_cache=False).logits
            if numbers is not None:
                if self.reads_teachings is None:
                    # Some networks do more with what their head says.
                    again = read_by_head(teacher, read[-1].half().float())
                    self.reads_teachings = are_alike(logits[counted], again[counted])
                self.teachings.keep(numbers, read[-1], counted)
        return logits, read[-1]

    def listed(self, labels: Tensor) -> Tensor:
        """Labels by their place in the short list; those outside are ignored."""
        if self.short_list is None:
            return labels
        places = torch.searchsorted(self.short_list, labels).clamp(max=len(self.short_list) - 1)
        return torch.where(self.short_list[places] == labels, places, IGNORED)

    def read(self, output: Any, layer: int) -> Tensor:
        """Logits ``[B, T, V]`` of a decoder layer before the last, through the norm and the head of the last.

        Args:
            output: of the network, with hidden states.
            layer: counted from 1.
        """
        config = self.network.config
        states = output.decoder_hidden_states if config.is_encoder_decoder else output.hidden_states
        hidden = final_norm(self.network)(states[layer])
        # T5 with tied embeddings scales what goes into its head.
        if getattr(config, "scale_decoder_outputs", False):
            hidden = hidden * config.d_model**-0.5
        logits: Tensor = self.network.get_output_embeddings()(hidden)
        return logits

    def compile_layers(self) -> None:
        """Compile each layer and the cross-entropy: the graph of one layer serves all of its kind."""
        for module in self.network.modules():
            if isinstance(module, nn.ModuleList) and len({type(layer) for layer in module}) == 1 and len(module) > 1:
                for layer in module:
                    layer.compile(dynamic=True)
        self.cross_entropy = torch.compile(cross_entropy, dynamic=True)
        self.divergence = torch.compile(divergence, dynamic=True)
        self.disagreement = torch.compile(disagreement, dynamic=True)


def freeze_encoder(network: PreTrainedModel) -> None:
    """Let only that learn which the encoder does not hold.

    Raises:
        InputError: there is no encoder.
    """
    if not network.config.is_encoder_decoder:
        raise InputError(f"trains is decoder, but {type(network).__name__} has no encoder that could stay; use all")
    for weight in encoder_of(network).parameters():
        weight.requires_grad_(False)


def freeze_words(network: PreTrainedModel) -> None:
    """Let a network that reads states keep the embeddings, norm and head of the one that makes them."""
    module: Any = network
    for part in (module.get_input_embeddings(), module.get_output_embeddings(), final_norm(network)):
        for weight in part.parameters():
            weight.requires_grad_(False)


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Mean negative log-likelihood of the labelled tokens in nats, a share of it spread over all tokens.

    Args:
        logits: ``[B, T, V]``.
        labels: ``[B, T]``.
        label_smoothing: 0…1.
    """
    flat = logits.flatten(0, 1).float()
    return functional.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, label_smoothing=label_smoothing)


def divergence(taught: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean ``KL(p || q)`` in nats over positions up to each row's last label, ``p`` of ``taught``, ``q`` of ``logits``.

    In a decoder-only model's row a source stands before the labels: what is likeliest after its tokens is learnt too.

    Args:
        taught: ``[B, T, V]``; where vocabularies are padded differently, the tokens both have count.
        logits: ``[B, T, V]``.
        labels: ``[B, T]``; their values do not matter.
    """
    shared = min(taught.shape[-1], logits.shape[-1])
    p, q = (each[..., :shared].flatten(0, 1).float().log_softmax(-1) for each in (taught, logits))
    places = counted(labels).flatten()
    return ((p.exp() * (p - q)).sum(-1) * places).sum() / places.sum()


def several_places(taught: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean :func:`divergence` of tokens that are drafted at once, each counting a little less than the one before.

    Args:
        taught: ``[B, T, V]``, behind each token.
        logits: ``[B, T, m, V]``: what follows it, and the m − 1 places after that.
        labels: ``[B, T]``.
    """
    width, losses = labels.shape[1], []
    for at in range(min(logits.shape[2], width)):
        # Short texts have no such place.
        if bool((labels[:, at:] != IGNORED).any()):
            losses.append(LATER**at * divergence(taught[:, at:], logits[:, : width - at, at], labels[:, at:]))
    return torch.stack(losses).sum() / sum(LATER**at for at in range(len(losses)))


def counted(labels: Tensor) -> Tensor:
    """Positions up to each row's last label ``[B, T]``."""
    return (labels != IGNORED).flip(1).cummax(1).values.flip(1)


def disagreement(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean ``½ (KL(q || r) + KL(r || q))`` in nats over labelled tokens, of two passes.

    Args:
        logits: ``[2 B, T, V]``, one pass after the other.
        labels: ``[2 B, T]``, alike in both halves.
    """
    q, r = logits.flatten(0, 1).float().log_softmax(-1).chunk(2)
    counted = labels.flatten().chunk(2)[0] != IGNORED
    return (((q.exp() - r.exp()) * (q - r)).sum(-1) * counted).sum() / (2 * counted.sum())


def layer_weights(recipe: Recipe, layers: int) -> dict[int, float]:
    """How much the loss of each decoder layer counts, by its number from 1; they add up to 1.

    Raises:
        InputError: an exit layer that is not before the last.
    """
    if recipe.loss == "calm":
        total = layers * (layers + 1) / 2
        return {layer: layer / total for layer in range(1, layers + 1)}
    assert recipe.exit_layer is not None
    if not recipe.exit_layer < layers:
        raise InputError(
            f"exit_layer is {recipe.exit_layer}, but the network has {layers} decoder layers; "
            f"allowed is 1 to {layers - 1}"
        )
    return {recipe.exit_layer: 0.5, layers: 0.5}


def count_layers(network: PreTrainedModel) -> int:
    """How many decoder layers there are.

    Raises:
        LoadError: a decoder that is not one list of layers.
    """
    lists = [child for child in network.get_decoder().children() if isinstance(child, nn.ModuleList)]
    if len(lists) != 1:
        raise LoadError(f"the decoder of {type(network).__name__} is not one list of layers; train it with --loss last")
    return len(lists[0])


def targets_in(labels: Tensor) -> int:
    """How many tokens count."""
    return int((labels != IGNORED).sum())
