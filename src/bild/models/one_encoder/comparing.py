"""Whether two networks have one encoder, so that a source needs to be read once for both."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from bild.models.loading.vocabulary import head_size
from bild.models.parts import encoder_of
from bild.models.positions import limits_of
from bild.models.probing import probe_tokens
from bild.models.watch import Watch


@torch.inference_mode()
def have_one_encoder(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Whether the encoders of two networks are of one kind, hold the same numbers and compute the same from them.

    Args:
        one: any network; without an encoder it shares none.
        other: likewise; numbers may be of another dtype, whose values count.
    """
    if not (one.config.is_encoder_decoder and other.config.is_encoder_decoder) or one.device != other.device:
        return False
    encoders: tuple[nn.Module, nn.Module] = (encoder_of(one), encoder_of(other))
    if type(encoders[0]) is not type(encoders[1]) or not _are_equal(*encoders):
        return False
    # Numbers do not tell everything: heads, activations and windows are in configurations.
    return one.dtype != other.dtype or _compute_the_same(one, other)


def _are_equal(one: nn.Module, other: nn.Module) -> bool:
    own, others = one.state_dict(), other.state_dict()
    if own.keys() != others.keys() or any(own[name].shape != others[name].shape for name in own):
        return False
    return all(torch.equal(own[name], others[name].to(own[name].dtype)) for name in own)


def _compute_the_same(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    sizes = [head_size(each) for each in (one, other)]
    source, _ = probe_tokens(one, min(sizes), limits_of(one)[1])
    ids = torch.tensor([source], device=one.device)
    states = [encoder_of(each)(input_ids=ids)[0] for each in (one, other)]
    return torch.equal(*states)


class Encoders:
    """The encoders of two networks, as they are now and as they will be.

    Args:
        large: a network.
        small: likewise; both may be changed by whoever owns them.
    """

    def __init__(self, large: PreTrainedModel, small: PreTrainedModel) -> None:
        self._networks = large, small
        self._look()

    def are_one(self) -> bool:
        """Whether the encoder of the first may serve the second."""
        if any(watch.sees_change() for watch in self._watches):
            self._look()
        return self._are_one

    def _look(self) -> None:
        self._watches = [Watch(network) for network in self._networks]
        self._are_one = have_one_encoder(*self._networks)
