"""Networks whose weights are not whole in this process, and cannot decode here."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from bild.errors import LoadError


def refuse_spread(network: PreTrainedModel) -> None:
    """Refuse a network that is spread over processes or devices.

    Processes that share the weights of a network must run each pass together. How many passes a text takes depends on
    its drafts, so one process would wait for another for ever.

    Raises:
        LoadError: where its weights are, and what to do instead.
    """
    how = _spread(network)
    if how is not None:
        raise LoadError(f"{type(network).__name__} {how}; load all of it in every process, on one device")


def _spread(network: Any) -> str | None:
    """How the weights are spread; None where they are all here."""
    parameters = list(network.parameters())
    if is_deepspeed_zero3_enabled() or any(hasattr(each, "ds_id") for each in parameters):
        return "is spread over processes by DeepSpeed ZeRO-3"
    flat = any(getattr(each, "_is_flat_param", False) for each in parameters)
    if flat or any(_is_sharded(module) for module in network.modules()):
        return "is spread over processes by FSDP"
    # The mark of a DTensor; to import its class takes half a second.
    if any(hasattr(each, "device_mesh") for each in parameters):
        return "is spread over processes by tensor parallelism"
    if not all(each.numel() for each in parameters):
        return "is spread over processes (some of its weights are empty in this one)"
    devices = sorted({str(each.device) for each in parameters})
    if "meta" in devices:
        return "has weights that are not in memory (on disk, or never loaded)"
    return f"is spread over {', '.join(devices)}" if len(devices) > 1 else None


def _is_sharded(module: Any) -> bool:
    """Whether FSDP keeps parts of a module elsewhere: marked by transformers, or wrapped by torch's first version."""
    # By name, because importing torch's class takes a second.
    return getattr(module, "_is_fsdp_managed_module", False) or type(module).__name__ == "FullyShardedDataParallel"
