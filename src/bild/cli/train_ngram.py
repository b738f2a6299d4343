"""bild train-ngram: count the n-grams of what a model writes, for the drafter backoff."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bild.cli import pair_options as options
from bild.cli.inputs import read_texts
from bild.cli.streams import check_file
from bild.errors import check_count

TEXT = "Text"


def train_ngram(
    input: Annotated[str, typer.Option("--input", "-i", help="File with one text a line; - for stdin.")],
    out: Annotated[Path, typer.Option(help="File to write: counts as safetensors.")],
    order: Annotated[int, typer.Option(help="Longest n-gram in tokens, 1…5.")] = 3,
    writer: Annotated[
        str, typer.Option(help="Whose texts are counted: small, or large where there is no small model.")
    ] = "small",
    large: options.Large = None,
    small: options.Small = None,
    pair: options.PairName = None,
    drafter: options.Drafter = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    do_sample: Annotated[
        bool, typer.Option("--do-sample", help="Draw tokens instead of taking the most likely.", rich_help_panel=TEXT)
    ] = False,
    temperature: Annotated[
        float | None, typer.Option(help="Above 0; the paper's is 1.5.", rich_help_panel=TEXT)
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest text, 1…", rich_help_panel=TEXT)] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draws, 64 bits.", rich_help_panel=TEXT)] = None,
    batch_size: Annotated[int, typer.Option(help="Texts written together, 1…", rich_help_panel=TEXT)] = 1,
) -> None:
    """Count n-grams in texts that a model of the pair writes, for --drafter backoff:file=OUT.

    The counts are of this pair's vocabulary. Lines that are empty are passed over, and lines that are no text are told.
    """
    texts = read_texts(input, "to count in")
    check_count("batch_size", batch_size)
    check_file("out", out)
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
    from bild.training import count_ngrams

    asked: dict[str, Any] = {"temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
    given = {name: value for name, value in asked.items() if value is not None}
    ngrams = count_ngrams(
        decoder,
        texts,
        order=order,
        writer=writer,  # type: ignore[arg-type]  # looked at there
        batch_size=batch_size,
        do_sample=do_sample,
        **given,
    )
    ngrams.save(out)
    typer.echo(f"{len(texts)} texts counted; draft with --drafter backoff:file={out}", err=True)
