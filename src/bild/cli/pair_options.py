"""Options that every command about a pair shares, and how the pair is loaded for the command line."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from logging import CRITICAL
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from bild.decoding import Policy
    from bild.generation import BigLittleDecoder
    from bild.generation.pair import Pair

MODELS = "Models"
POLICY = "Policy"

Large = Annotated[
    str | None,
    typer.Option(
        help="Accurate model: folder, FILE.gguf or hub NAME[@REVISION][:SUBFOLDER or FILE.gguf]; or one that others "
        "steer, ensemble:base=MODEL,plus=MODEL,minus=MODEL,weight=0.5.",
        rich_help_panel=MODELS,
    ),
]
Small = Annotated[
    str | None,
    typer.Option(
        help="Cheap model, likewise; exit:N: the first N decoder layers of the large one; blt:local: the local parts "
        "of a byte-latent one.",
        rich_help_panel=MODELS,
    ),
]
PairName = Annotated[
    str | None,
    typer.Option(
        "--pair",
        help="Folder or bild.json of a pair. Default: the bundled German → English one.",
        rich_help_panel=MODELS,
    ),
]
Middle = Annotated[
    str | None,
    typer.Option(
        help="A model in between that judges drafts first: as large, or exit:N, or small where the drafter needs none.",
        rich_help_panel=MODELS,
    ),
]
MiddleWindow = Annotated[
    int | None, typer.Option(help="Longest draft it is given, in tokens, 1… Default: 4.", rich_help_panel=MODELS)
]
Drafter = Annotated[
    str | None,
    typer.Option(
        help="Who drafts: small, ngram (looks the text up, needs no small model), backoff:file=FILE (counts of "
        "bild train-ngram), first:ngram,small or bandit:ngram,small; options as in ngram:window=8. "
        "Default: the pair's own.",
        rich_help_panel=MODELS,
    ),
]
Reward = Annotated[
    str | None,
    typer.Option(
        help="What judges segments with --policy reward: a classifier's folder or hub NAME (NAME,label=CLASS), or "
        "module:function of (source, before, segment).",
        rich_help_panel=MODELS,
    ),
]
Verifier = Annotated[
    str | None,
    typer.Option(
        help="Address of a bild verify-server that holds the large model; only the small one is loaded here.",
        rich_help_panel=MODELS,
    ),
]
VerifierTimeout = Annotated[
    float | None, typer.Option(help="Longest wait for one of its answers, s; 30 by default.", rich_help_panel=MODELS)
]
Dtype = Annotated[
    str, typer.Option(help="auto, float32, bfloat16, float16, float64, int8 or int4.", rich_help_panel=MODELS)
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …", rich_help_panel=MODELS)]
Runtime = Annotated[
    str,
    typer.Option(
        help="How the networks are run: eager, static (compiled, see bild warmup), or auto: static where it pays.",
        rich_help_panel=MODELS,
    ),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with a checkpoint.", rich_help_panel=MODELS)
]
SrcLang = Annotated[
    str | None,
    typer.Option(
        help="Language of the inputs of a multilingual checkpoint, as it spells it: deu_Latn, de_DE, de.",
        rich_help_panel=MODELS,
    ),
]
TgtLang = Annotated[
    str | None, typer.Option(help="Likewise of the outputs: fra_Latn, fr_XX, fr.", rich_help_panel=MODELS)
]
FallbackThreshold = Annotated[
    float | None,
    typer.Option(
        help="Hand over below this confidence, 0…1; higher = slower, nearer to large.", rich_help_panel=POLICY
    ),
]
RollbackThreshold = Annotated[
    float | None,
    typer.Option(
        help="Roll back above this distance in nats, 0…; lower = slower, nearer to large.", rich_help_panel=POLICY
    ),
]
MaxDraftTokens = Annotated[int | None, typer.Option(help="Longest draft, 1…", rich_help_panel=POLICY)]
VerifyEnd = Annotated[
    str | None,
    typer.Option(
        help="Whether large reads a draft that ends in an end token: no, yes, or only below this confidence, 0…1.",
        rich_help_panel=POLICY,
    ),
]


def quieten() -> None:
    """Silence other libraries: progress bars, hints and warnings about their next version are for developers."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    transformers_logging: Any = logging
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity(CRITICAL)
    if sys.stderr is None or not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    if not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)


def share_cores(lanes: int) -> None:
    """Give each lane its share of the cores; before the pair is loaded, for graphs are compiled for so many threads.

    Raises:
        InputError: not a number of lanes.
    """
    from bild.errors import check_count

    check_count("lanes", lanes)
    if lanes > 1:
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // lanes))


def load_decoder(
    *,
    large: str | None,
    small: str | None,
    pair: str | None,
    dtype: str,
    device: str,
    runtime: str,
    trust_remote_code: bool,
    drafter: str | None = None,
    middle: str | None = None,
    middle_window: int | None = None,
    reward: str | None = None,
    src_lang: str | None = None,
    tgt_lang: str | None = None,
    verifier: str | None = None,
    verifier_timeout: float | None = None,
) -> BigLittleDecoder:
    """Load the pair, with nothing of other libraries on stderr."""
    quieten()
    from bild.generation import BigLittleDecoder

    decoder = BigLittleDecoder.from_pretrained(
        pair,
        large=large,
        small=small,
        middle=middle,
        middle_window=middle_window,
        drafter=drafter,
        reward=reward,
        dtype=dtype,
        device=device,
        runtime=runtime,
        trust_remote_code=trust_remote_code,
        verifier=verifier,
        verifier_timeout_s=verifier_timeout,
    )
    decoder.set_languages(src_lang, tgt_lang)
    # All that is there now stays: looking through it for garbage, again and again, takes a thirtieth of a text's time.
    gc.freeze()
    return decoder


def choose_policy(decoder: BigLittleDecoder | Pair, text: str, **given: float | str | None) -> Policy:
    """The policy of ``NAME[:option=value]*`` with the options given one by one in place of its own.

    Raises:
        InputError: an unknown name, a value out of range, or an option the policy does not have.
    """
    from bild.decoding import parse_option, split_options
    from bild.errors import InputError

    try:
        name, options = split_options(text)
        asked: dict[str, float | str] = {**options, **{key: value for key, value in given.items() if value is not None}}
        values = {key: parse_option(key, value) if isinstance(value, str) else value for key, value in asked.items()}
        return decoder.policy.named(name, **values)
    except ValueError as error:
        raise InputError(str(error)) from None
