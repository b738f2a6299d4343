"""bild warmup: compile a pair for this machine, once, ahead of the first request."""

from __future__ import annotations

import time

from bild.cli import pair_options as options


def warmup(
    large: options.Large = None,
    small: options.Small = None,
    pair: options.PairName = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Compile a pair for this machine and keep the result: later runs with --runtime auto are then compiled."""
    from bild.errors import LoadError
    from bild.models.compiled import compiling

    start = time.perf_counter()
    decoder = options.load_decoder(
        large=large,
        small=small,
        pair=pair,
        dtype=dtype,
        device=device,
        runtime="static",
        trust_remote_code=trust_remote_code,
    )
    for model in (decoder.large, decoder.small):
        if not getattr(model, "is_compiled", False):
            raise LoadError(f"{type(model.network).__name__} could not be compiled; it runs with --runtime eager")
    took, count = time.perf_counter() - start, compiling.compilations
    print(f"compiled {count} graphs in {took:.0f} s" if count else f"all compiled already; loaded in {took:.1f} s")
    print(f"kept in {compiling.cache_folder() / 'compiled'}")
