"""bild generate: text in, text out, one result a line as soon as it is ready."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bild.cli import pair_options as options
from bild.cli import writing_options as writing
from bild.cli.inputs import check_texts, read_sources
from bild.cli.line_decoder import LineDecoder
from bild.cli.report import Report
from bild.cli.writing_options import OUTPUT, TEXT, json_object
from bild.errors import InputError, check_count

LONG_FILE = 500
"""Lines from which compiling pays, even if it must be done first."""

INPUT = "Input"


def generate(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to decode.", show_default=False)] = None,
    input: Annotated[
        str | None, typer.Option("--input", "-i", help="File with one text a line; - for stdin.", rich_help_panel=INPUT)
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help='Put before every text, as T5\'s "summarize: ".', rich_help_panel=INPUT)
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Task whose prefix a T5 checkpoint brings.", rich_help_panel=INPUT)
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="Treat texts as a user's turn. Default: if there is a chat template.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message of a chat.", rich_help_panel=INPUT)] = None,
    chat_template_kwargs: Annotated[
        str | None,
        typer.Option(
            help='What else the chat template is told, as JSON: {"enable_thinking": false}.', rich_help_panel=INPUT
        ),
    ] = None,
    src_lang: options.SrcLang = None,
    tgt_lang: options.TgtLang = None,
    large: options.Large = None,
    small: options.Small = None,
    pair: options.PairName = None,
    middle: options.Middle = None,
    middle_window: options.MiddleWindow = None,
    drafter: options.Drafter = None,
    reward: options.Reward = None,
    verifier: options.Verifier = None,
    verifier_timeout: options.VerifierTimeout = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    policy: Annotated[
        str | None,
        typer.Option(
            help="A preset: bild, exact and speculative_sampling (lossless), ensemble, typical, no_rollback, "
            "no_fallback, adaptive, adasd, pyramid (with --middle), reward (with --reward), key_tokens, large, small; "
            "with options as in bild:metric=js:rollback_threshold=0.4. Default: bild, or large with --beams.",
            rich_help_panel=options.POLICY,
        ),
    ] = None,
    fallback_threshold: options.FallbackThreshold = None,
    rollback_threshold: options.RollbackThreshold = None,
    max_draft_tokens: options.MaxDraftTokens = None,
    verify_end: options.VerifyEnd = None,
    lossless: Annotated[
        bool, typer.Option("--lossless", help="Insist on the large model's own text.", rich_help_panel=options.POLICY)
    ] = False,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest text, 1…", rich_help_panel=TEXT)] = None,
    max_length: Annotated[
        int | None, typer.Option(help="The same, counted with the prompt, 1…", rich_help_panel=TEXT)
    ] = None,
    min_new_tokens: Annotated[int | None, typer.Option(help="Shortest text, 0…", rich_help_panel=TEXT)] = None,
    do_sample: writing.DoSample = False,
    temperature: writing.Temperature = None,
    top_k: writing.TopK = None,
    top_p: writing.TopP = None,
    min_p: writing.MinP = None,
    repetition_penalty: writing.RepetitionPenalty = None,
    no_repeat_ngram_size: writing.NoRepeatNgramSize = None,
    beams: writing.Beams = None,
    length_penalty: writing.LengthPenalty = None,
    early_stopping: writing.EarlyStopping = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the output; may be repeated.", rich_help_panel=TEXT)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the draws, 64 bits; each line's own follows from it.", rich_help_panel=TEXT)
    ] = None,
    num_return_sequences: Annotated[
        int,
        typer.Option(help="Texts drawn for each line, 1…; they come one after the other.", rich_help_panel=TEXT),
    ] = 1,
    batch_size: Annotated[int, typer.Option(help="Texts decoded together, 1…", rich_help_panel=TEXT)] = 1,
    lanes: Annotated[
        int,
        typer.Option(help="Batches decoded side by side, 1…; the cores are shared out.", rich_help_panel=TEXT),
    ] = 1,
    logprobs: Annotated[
        int | None,
        typer.Option(
            help="With --json: how likely the large model found each token, and so many of the likeliest, 0…",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.", rich_help_panel=OUTPUT)] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Counts and times on stderr.", rich_help_panel=OUTPUT)] = False,
    trace: Annotated[
        bool, typer.Option("--trace", help="Who wrote which token, on stderr.", rich_help_panel=OUTPUT)
    ] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Also run the large model alone: both texts, both times, speedup.", rich_help_panel=OUTPUT
        ),
    ] = False,
) -> None:
    """Decode texts with a small and a large model together.

    Results go to stdout, one a line, as soon as they are ready; everything else goes to stderr. Line n of the
    results belongs to line n of the input, or k lines do with --num-return-sequences k: an empty line stays one. A
    line that cannot be decoded is reported with its number and leaves an empty one, the others still come out; the
    exit code is then 2.
    """
    # Read before anything is loaded: a wrong path should not cost the user half a minute.
    sources, inputs = read_sources(texts, input)
    total = None if inputs is None else inputs * num_return_sequences
    check_texts(prefix=prefix, task=task, system=system, stop=stop)
    template = json_object("--chat-template-kwargs", chat_template_kwargs)
    if runtime == "auto" and total is not None and total >= LONG_FILE:
        runtime = "static"
    from bild.generation.middle import check_qualifier
    from bild.generation.pair import choose_pair
    from bild.generation.rewards import check_reward

    # So should a wrong option.
    if verifier is None:
        named = choose_pair(pair, large, small, drafter, middle, middle_window)
    else:
        from bild.generation.elsewhere import choose_small

        named = choose_small(pair, large, small, drafter, middle, middle_window)
    chosen = options.choose_policy(
        named,
        ("bild" if beams in (None, 1) else "large") if policy is None else policy,
        fallback_threshold=fallback_threshold,
        rollback_threshold=rollback_threshold,
        max_draft_tokens=max_draft_tokens,
        verify_end=verify_end,
    )
    check_qualifier(chosen, named.middle is not None)
    check_reward(chosen, reward)
    if logprobs is not None and not as_json:
        raise InputError("logprobs are shown in JSON only; give --json, too, or leave --logprobs out")
    check_count("batch_size", batch_size)
    check_count("num_return_sequences", num_return_sequences)
    options.share_cores(lanes)
    decoder = options.load_decoder(
        large=large,
        small=small,
        pair=pair,
        middle=middle,
        middle_window=middle_window,
        drafter=drafter,
        reward=reward,
        dtype=dtype,
        device=device,
        runtime=runtime,
        trust_remote_code=trust_remote_code,
        verifier=verifier,
        verifier_timeout=verifier_timeout,
    )
    asked: dict[str, Any] = {
        "lossless": lossless,
        "max_new_tokens": max_new_tokens,
        "max_length": max_length,
        "min_new_tokens": min_new_tokens,
        "do_sample": do_sample,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "num_beams": beams,
        "length_penalty": length_penalty,
        "early_stopping": writing.early_stopping(early_stopping),
        "stop_strings": stop or None,
        "seed": seed,
        "logprobs": logprobs,
    }
    source: dict[str, Any] = {"prefix": prefix, "task": task, "chat": chat, "system": system}
    source |= {"chat_template_kwargs": template, "src_lang": src_lang, "tgt_lang": tgt_lang}
    lines = LineDecoder(decoder, chosen, source, asked, batch_size, lanes, compare, num_return_sequences)
    Report(decoder, as_json=as_json, stats=stats, trace=trace, compare=compare).run(lines, sources, total)
