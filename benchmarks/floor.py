"""The least a decoding step must read: the bound that no runtime can beat on memory bandwidth alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from bild.models.cache_argument import cache_argument


@torch.inference_mode()
def step_bytes(network: PreTrainedModel, source: list[int], prefix: list[int]) -> dict[str, int]:
    """Bytes that one more token reads, found by watching which modules a step calls.

    So the encoder and the cross-attention's key and value projections, which run once a text, do not count,
    a head that is tied to the embedding counts once, of an embedding only the rows that are looked up,
    and a quantised layer what it stores.

    Args:
        network: encoder-decoder or decoder-only.
        source: encoder input ids; not used by a decoder-only model.
        prefix: decoder ids read before the step.

    Returns:
        ``layers`` (everything but the head), ``head`` and ``cache`` (keys and values), in bytes.
    """
    past, inputs = _begin(network, source)
    ids = "decoder_input_ids" if network.config.is_encoder_decoder else "input_ids"
    network(**inputs, **{ids: torch.tensor([prefix])}, **{cache_argument(network): past}, use_cache=True)
    with _watch(network) as read:
        network(**inputs, **{ids: torch.tensor([prefix[:1]])}, **{cache_argument(network): past}, use_cache=True)
    head = network.get_output_embeddings()
    of_head = sum(size for module, size in read.values() if module is head)
    caches = [past.self_attention_cache, past.cross_attention_cache] if inputs else [past]
    kept = [layer for cache in caches for layer in cache.layers]
    return {
        "layers": sum(size for _, size in read.values()) - of_head,
        "head": of_head,
        "cache": sum(layer.keys.nbytes + layer.values.nbytes for layer in kept),
    }


def _begin(network: PreTrainedModel, source: list[int]) -> tuple[Any, dict[str, Any]]:
    if not network.config.is_encoder_decoder:
        return DynamicCache(), {}
    encoded = network.get_encoder()(input_ids=torch.tensor([source]))
    return EncoderDecoderCache(DynamicCache(), DynamicCache()), {"encoder_outputs": encoded}


@contextmanager
def _watch(network: nn.Module) -> Iterator[dict[Any, tuple[nn.Module, int]]]:
    """Record, for every piece of memory that the modules called meanwhile own, its module and its bytes."""
    read: dict[Any, tuple[nn.Module, int]] = {}

    def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(module, nn.Embedding):
            rows = min(output.numel(), module.weight.numel())
            read[module] = (module, rows * module.weight.element_size())
            return
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        for tensor in _plain(own):
            read[tensor.untyped_storage().data_ptr()] = (module, tensor.untyped_storage().nbytes())

    handles = [module.register_forward_hook(hook) for module in network.modules()]
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()


def _plain(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """The tensors themselves, and what tensor subclasses (torchao's) are made of."""
    for tensor in tensors:
        inner = getattr(tensor, "__tensor_flatten__", None)
        if inner is None:
            yield tensor
        else:
            yield from _plain(getattr(tensor, name) for name in inner()[0])
