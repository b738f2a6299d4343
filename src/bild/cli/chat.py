"""bild chat: a conversation in the terminal."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bild.cli import pair_options as options
from bild.cli import writing_options as writing
from bild.cli.inputs import check_texts
from bild.cli.writing_options import OUTPUT, TEXT, json_object
from bild.errors import InputError


def chat(
    large: options.Large = None,
    small: options.Small = None,
    pair: options.PairName = None,
    middle: options.Middle = None,
    middle_window: options.MiddleWindow = None,
    drafter: options.Drafter = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    policy: Annotated[
        str,
        typer.Option(
            help="As of bild generate; exact: the large model's own words. /policy changes it.",
            rich_help_panel=options.POLICY,
        ),
    ] = "exact",
    fallback_threshold: options.FallbackThreshold = None,
    rollback_threshold: options.RollbackThreshold = None,
    max_draft_tokens: options.MaxDraftTokens = None,
    verify_end: options.VerifyEnd = None,
    system: Annotated[str | None, typer.Option(help="System message.", rich_help_panel=TEXT)] = None,
    chat_template_kwargs: Annotated[
        str | None,
        typer.Option(
            help='What else the chat template is told, as JSON: {"enable_thinking": false}.', rich_help_panel=TEXT
        ),
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer, 1…", rich_help_panel=TEXT)] = None,
    do_sample: writing.DoSample = False,
    temperature: writing.Temperature = None,
    top_k: writing.TopK = None,
    top_p: writing.TopP = None,
    min_p: writing.MinP = None,
    repetition_penalty: writing.RepetitionPenalty = None,
    no_repeat_ngram_size: writing.NoRepeatNgramSize = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends an answer; may be repeated.", rich_help_panel=TEXT)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the draws, 64 bits; each answer's own follows from it.", rich_help_panel=TEXT)
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Counts and times of all answers at the end.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Talk to a chat model: each line is a turn, answers are streamed, coloured by who wrote what.

    A large model alone will do: n-grams then draft. Lines that begin with a slash are commands, /help lists them.
    Ctrl-C stops an answer, Ctrl-D leaves. Without a terminal each line of stdin is a turn and answers go to stdout
    one after the other; the exit code is 2 if some line could not be answered.
    """
    check_texts(system=system, stop=stop)
    template = json_object("--chat-template-kwargs", chat_template_kwargs)
    if pair is None and large is None:
        raise InputError("name a chat model: --large MODEL, with --small or --drafter if you like; or --pair")
    if pair is None and small is None and drafter is None:
        drafter = "ngram"
    from bild.cli.chat_session import Session
    from bild.cli.terminal import Terminal
    from bild.generation.middle import check_qualifier
    from bild.generation.pair import choose_pair

    thresholds: dict[str, Any] = {
        "fallback_threshold": fallback_threshold,
        "rollback_threshold": rollback_threshold,
        "max_draft_tokens": max_draft_tokens,
        "verify_end": verify_end,
    }
    named = choose_pair(pair, large, small, drafter, middle, middle_window)
    chosen = options.choose_policy(named, policy, **thresholds)
    check_qualifier(chosen, named.middle is not None)
    decoder = options.load_decoder(
        large=large,
        small=small,
        pair=pair,
        middle=middle,
        middle_window=middle_window,
        drafter=drafter,
        dtype=dtype,
        device=device,
        runtime=runtime,
        trust_remote_code=trust_remote_code,
    )
    asked: dict[str, Any] = {
        "chat_template_kwargs": template,
        "max_new_tokens": max_new_tokens,
        "do_sample": do_sample,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "stop_strings": stop or None,
        "seed": seed,
    }
    from bild.generation import Conversation

    conversation = Conversation(decoder, chosen, system=system, **asked)
    session = Session(conversation, Terminal(), _name(policy, thresholds))
    session.run()
    if stats:
        session.summary()
    if session.failed and not session.terminal.interactive:
        raise typer.Exit(2)


def _name(policy: str, thresholds: dict[str, Any]) -> str:
    """The policy in one word, thresholds that were given one by one among it."""
    return ":".join([policy, *(f"{key}={value}" for key, value in thresholds.items() if value is not None)])
