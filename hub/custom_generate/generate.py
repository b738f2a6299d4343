"""Big Little Decoder for ``model.generate(..., custom_generate=<this repository>)``."""

from transformers import GenerationMixin

import bild


def generate(model, assistant_model=None, policy="bild", runtime="eager", streamer=None, tokenizer=None, **arguments):
    """Decode with a small model beside ``model``.

    Args:
        model: the large model; what ``generate`` was called on.
        assistant_model: the small one: loaded, or a folder or hub name.
        policy: ``"bild"``, ``"exact"`` (lossless), another preset with options as in
            ``"speculative_sampling:window=4"``, or a ``bild.Policy``.
        runtime: ``"eager"``, ``"static"`` or ``"auto"``.
        streamer: as for ``generate``.
        tokenizer: as for ``generate``; of both models.
        arguments: everything else that ``generate`` takes.
    """
    loop = bild.custom_generate(assistant_model, policy, tokenizer=tokenizer, streamer=streamer, runtime=runtime)
    # Not model.generate: a checkpoint loaded from a repository that holds this file has this function there.
    return GenerationMixin.generate(model, custom_generate=loop, **arguments)
