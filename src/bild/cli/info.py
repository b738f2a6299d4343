"""bild info: what a pair is made of, and what a small step costs beside a large one here."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bild.cli import pair_options as options
from bild.cli.streams import print_json

if TYPE_CHECKING:
    from bild.decoding import Scorer
    from bild.generation import BigLittleDecoder
    from bild.models import Model

SIDES = ("large", "small")
WARM_UP_STEPS, TIMED_STEPS = 10, 40


def info(
    large: options.Large = None,
    small: options.Small = None,
    pair: options.PairName = None,
    drafter: options.Drafter = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Show a pair: parameters, layers, vocabulary, policy, and the cost ratio measured here."""
    decoder = options.load_decoder(
        large=large,
        small=small,
        pair=pair,
        drafter=drafter,
        dtype=dtype,
        device=device,
        runtime=runtime,
        trust_remote_code=trust_remote_code,
    )
    facts = describe(decoder)
    if as_json:
        print_json(facts)
        return
    _print_table(facts)


def describe(decoder: BigLittleDecoder) -> dict[str, Any]:
    """The facts of a pair, steps timed side by side."""
    from bild.models import borrows_encoder

    steps = _time_steps(decoder)
    models = dict(zip(SIDES, decoder.models, strict=False))
    return {
        **{side: _describe_model(model, steps[side]) for side, model in models.items()},
        "cost_ratio": steps["small"] / steps["large"] if "small" in steps else None,
        "one_encoder": "small" in models and borrows_encoder(models["small"]),
        "shared_vocabulary": decoder.large.vocab_size,
        "batches": decoder.batches,
        "policy": decoder.policy.to_dict(),
        "drafter": str(decoder.drafter),
        "dtype": decoder.dtype,
        "runtime": "static" if decoder.large.is_compiled else "eager",
        "device": str(decoder.large.device),
    }


def _describe_model(model: Model, step_s: float) -> dict[str, Any]:
    from bild.models import head_size, short_list_of

    config = model.config
    text = config.get_text_config(decoder=True)
    # Of a byte-latent model, the layers over patches.
    text = getattr(text, "global_config", text)
    # Of a part of a network, the modules that it runs.
    modules = getattr(model, "runs", [model.network])
    layers = getattr(config, "decoder_layers", None) or getattr(config, "num_decoder_layers", None)
    encoder_layers = getattr(config, "encoder_layers", None) or getattr(config, "num_layers", None)
    listed = short_list_of(model.network)
    return {
        "name": config.name_or_path,
        "architecture": type(model.network).__name__,
        "parameters": sum(parameter.numel() for module in modules for parameter in module.parameters()),
        "encoder_layers": encoder_layers if model.is_encoder_decoder else 0,
        "decoder_layers": layers if model.is_encoder_decoder and layers else text.num_hidden_layers,
        "width": text.hidden_size,
        "max_positions": model.max_positions,
        "scored_tokens": head_size(model.network) if listed is None else len(listed),
        "step_ms": step_s * 1e3,
    }


def _time_steps(decoder: BigLittleDecoder) -> dict[str, float]:
    """Median seconds of a one-token step of both models, taken in turn so that drift hits both."""
    token = [decoder.large.config.get_text_config(decoder=True).vocab_size // 2]
    source = [token * 12] if decoder.large.is_encoder_decoder else [[]]
    scorers = {side: _begin(model, decoder.large, source) for side, model in zip(SIDES, decoder.models, strict=False)}
    seconds: dict[str, list[float]] = {name: [] for name in scorers}
    for _ in range(WARM_UP_STEPS + TIMED_STEPS):
        for name, scorer in scorers.items():
            start = time.perf_counter()
            # To the host, so that a GPU has really finished.
            scorer.extend([token]).argmax().item()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[WARM_UP_STEPS:]) for name, times in seconds.items()}


def _begin(model: Model, large: Model, source: list[list[int]]) -> Scorer:
    return model.start(source) if model.stands_alone else model.beside(large.start(source), source)


def _print_table(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from bild.data.json_text import to_json

    table = Table()
    sides = [side for side in SIDES if side in facts]
    for heading in ("", *sides):
        table.add_column(heading, justify="left" if not heading else "right")
    for key in facts["large"]:
        values = [facts[side][key] for side in sides]
        table.add_row(key.replace("_", " "), *(_readable(key, value) for value in values))
    console = Console(highlight=False)
    console.print(table)
    how = ", ".join(facts[key] for key in ("dtype", "runtime", "device"))
    if facts["cost_ratio"] is not None:
        console.print(f"a small step costs {facts['cost_ratio']:.0%} of a large one here ({how})")
    if facts["one_encoder"]:
        console.print("one encoder: a source is read once, for both")
    console.print(f"shared vocabulary: {facts['shared_vocabulary']} ids agree")
    console.print(f"drafter: {facts['drafter']}")
    console.print(f"policy: {to_json(facts['policy'])}", markup=False)


def _readable(key: str, value: Any) -> str:
    if key == "parameters":
        return f"{value / 1e6:.1f} M"
    if key == "step_ms":
        return f"{value:.2f}"
    return "any" if value is None else str(value)
