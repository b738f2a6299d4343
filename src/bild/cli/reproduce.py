"""bild reproduce: a table or figure of the paper, on any pair and data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bild.cli import data_options as examples
from bild.cli import pair_options as options

DEFAULT_LIMIT, DEFAULT_DEV_LIMIT = 300, 500


def reproduce(
    item: Annotated[str, typer.Argument(help="table1, table3, …, figure10, or all; an unknown one lists them.")],
    data: examples.TestSets,
    out: Annotated[
        Path, typer.Option(help="Folder of the files; the same command goes on where a killed one stopped.")
    ],
    dev: Annotated[
        list[str] | None,
        typer.Option(
            help="Set that policies are chosen on; one for each --data, in its order.", rich_help_panel=examples.PANEL
        ),
    ] = None,
    aligned: Annotated[
        str | None,
        typer.Option(
            help="Small checkpoint trained on the large model's outputs; --pair's own is the unaligned one.",
            rich_help_panel=options.MODELS,
        ),
    ] = None,
    exit_model: Annotated[
        str | None,
        typer.Option(help="FOLDER:N, a checkpoint that can write after N layers.", rich_help_panel=options.MODELS),
    ] = None,
    calm_model: Annotated[
        str | None,
        typer.Option(help="A checkpoint that can write after every layer.", rich_help_panel=options.MODELS),
    ] = None,
    source_column: examples.SourceColumn = "source",
    target_column: examples.TargetColumn = "target",
    bleu_tokenizer: examples.BleuTokenizer = "13a",
    limit: Annotated[
        int, typer.Option(help="First examples of each test set, 1…", rich_help_panel=examples.PANEL)
    ] = DEFAULT_LIMIT,
    dev_limit: Annotated[
        int, typer.Option(help="First examples of each dev set, 1…", rich_help_panel=examples.PANEL)
    ] = DEFAULT_DEV_LIMIT,
    seeds: Annotated[str, typer.Option(help="Of what is sampled, one run each.")] = "1,2,3",
    task: Annotated[str, typer.Option(help="translation, summarization, completion or chat.")] = "translation",
    metric: Annotated[str | None, typer.Option(help="Quality. Default: bleu, rougeL but for translation.")] = None,
    prefix: examples.Prefix = "",
    max_new_tokens: examples.MaxNewTokens = 128,
    large: options.Large = None,
    small: options.Small = None,
    pair: options.PairName = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "static",
    trust_remote_code: options.TrustRemoteCode = False,
    src_lang: options.SrcLang = None,
    tgt_lang: options.TgtLang = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the work of earlier runs in --out.")] = False,
) -> None:
    """Compute a table or figure of the paper; --out gets ITEM.md, ITEM.json and, for a figure, ITEM.png.

    A line for each finished item goes to stdout, progress to stderr.
    """
    from bild.data import read_sets
    from bild.errors import InputError
    from bild.evaluation import Setup
    from bild.reproduction import Inputs, item_names
    from bild.reproduction import reproduce as compute

    item_names(item)
    counted = examples.budget_metric(task, metric)
    given = [*dev] if dev else []
    if given and len(given) != len(data):
        raise InputError(
            f"--data is given {len(data)} times and --dev {len(given)} times; give one --dev for each --data"
        )
    columns = {"source_column": source_column, "target_column": target_column}
    test_sets = read_sets(data, split="test", limit=limit, **columns)
    dev_sets = read_sets(given, split="validation", limit=dev_limit, **columns) if given else {}
    setup = Setup(
        pair=pair,
        large=large,
        small=small,
        dtype=dtype,
        device=device,
        runtime=runtime,
        trust_remote_code=trust_remote_code,
        max_new_tokens=max_new_tokens,
        src_lang=src_lang,
        tgt_lang=tgt_lang,
    )
    inputs = Inputs(
        setup=setup,
        test={name: one.examples for name, one in test_sets.items()},
        dev={name: one.examples for name, one in zip(test_sets, dev_sets.values(), strict=False)},
        aligned=aligned,
        early_exit=exit_model,
        calm=calm_model,
        metric=counted,
        bleu_tokenizer=bleu_tokenizer,
        task=task,
        prefix=prefix,
        seeds=_seeds(seeds),
    )
    try:
        compute(item, inputs, out, load=options.load_decoder, say=_say, done=_done, fresh=fresh)
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on where it stopped ({out})", file=sys.stderr)
        raise


def _seeds(text: str) -> tuple[int, ...]:
    from bild.errors import InputError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"seeds are {text!r}; allowed are whole numbers, as in 1,2,3") from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _done(line: str) -> None:
    print(line, flush=True)
