"""bild retranslate: a source that grows word by word, translated anew each time."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bild.cli import pair_options as options
from bild.cli.inputs import read_sources
from bild.cli.streams import print_json, print_line
from bild.errors import InputError, check_count

LIVE, TEXT, OUTPUT = "Re-translation", "Text", "Output"


def retranslate(
    texts: Annotated[list[str] | None, typer.Argument(help="Whole sources.", show_default=False)] = None,
    input: Annotated[str | None, typer.Option("--input", "-i", help="File with one text a line; - for stdin.")] = None,
    beta: Annotated[
        float,
        typer.Option(
            help="How much is left of the translation before, 0…1; higher = faster and steadier, further from large.",
            rich_help_panel=LIVE,
        ),
    ] = 0.2,
    mask: Annotated[
        int,
        typer.Option(help="Tokens at the end that are not shown until the source is whole, 0…", rich_help_panel=LIVE),
    ] = 3,
    words: Annotated[int, typer.Option(help="Words the source grows by, 1…", rich_help_panel=LIVE)] = 1,
    large: options.Large = None,
    small: options.Small = None,
    pair: options.PairName = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest text, 1…", rich_help_panel=TEXT)] = None,
    revisions: Annotated[
        bool,
        typer.Option("--revisions", help="Show what is shown at each step, not only the end.", rich_help_panel=OUTPUT),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a text.", rich_help_panel=OUTPUT)] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Counts on stderr.", rich_help_panel=OUTPUT)] = False,
) -> None:
    """Translate sources that grow word by word, each time anew, from the translation before.

    The large model reads its translation of the shorter source in one pass and goes on from the first token that it
    would now change. Flicker is normalised erasure: tokens taken back / tokens of the last translation.
    """
    sources, _ = read_sources(texts, input)
    check_count("words", words)
    decoder = options.load_decoder(
        large=large,
        small=small,
        pair=pair,
        drafter="ngram" if large is not None and small is None else None,
        dtype=dtype,
        device=device,
        runtime=runtime,
        trust_remote_code=trust_remote_code,
    )
    from bild.generation.retranslate import Retranslator, revealed
    from bild.generation.retranslate import retranslate as run

    asked: dict[str, Any] = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    # Wrong options should fail once, before the first line is waited for.
    decoder.asked(asked)
    Retranslator(decoder, beta, mask, asked)
    failed = False
    for source in sources:
        if source.is_blank:
            print_line("")
            continue
        try:
            if source.error is not None:
                raise InputError(source.error)
            live = run(decoder, revealed(source.text, words), beta=beta, mask=mask, **asked)
        except InputError as error:
            failed = True
            typer.echo(f"error: {source.place}: {error}", err=True)
            if source.keeps_line and not as_json:
                print_line("")
            continue
        shown = [revision.text for revision in live.revisions]
        facts = {"revisions": len(shown), "large_passes": live.num_large_steps, "flicker": live.flicker}
        if as_json:
            print_json({"source": source.text, "text": shown[-1], "shown": shown, **facts, "seconds": live.seconds})
        for text in [] if as_json else shown if revisions else shown[-1:]:
            print_line(" ".join(text.splitlines()))
        if stats:
            typer.echo(
                f"  {len(shown)} revisions · {live.num_large_steps} large passes · flicker {live.flicker:.2f} · "
                f"{live.seconds * 1e3:.0f} ms",
                err=True,
            )
    if failed:
        raise typer.Exit(2)
