"""bild draft: make a small model of a large one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bild.cli import data_options as examples
from bild.cli import pair_options as options
from bild.cli import training_options as training

DRAFTER, TEXTS = "Drafter", "Texts"
EPOCHS = 3


def draft(
    large: Annotated[
        str,
        typer.Option(
            help="Checkpoint of the model to draft for: folder, GGUF file or hub name.", rich_help_panel=options.MODELS
        ),
    ],
    out: training.Out,
    reads: Annotated[
        str,
        typer.Option(
            help="tokens; or states: what the large model's head reads of each token, too. Its layers are then the "
            "large model's last ones, and it writes beside it only.",
            rich_help_panel=DRAFTER,
        ),
    ] = "tokens",
    at_once: Annotated[
        int,
        typer.Option(
            help="Tokens that one pass of one that reads states drafts, 1 to 16.",
            rich_help_panel=DRAFTER,
        ),
    ] = 1,
    layers: Annotated[
        str,
        typer.Option(
            help="Decoder layers that it keeps: how many (4), or which, counted from 1 (1,12,30). Default: 4, or 1 "
            "that reads states.",
            rich_help_panel=DRAFTER,
        ),
    ] = "",
    choose: Annotated[
        str,
        typer.Option(
            help="How so many are chosen. even: at equal distances; measured: those that are missed most; auto: the "
            "better of the two.",
            rich_help_panel=DRAFTER,
        ),
    ] = "auto",
    encoder_layers: Annotated[
        str | None,
        typer.Option(
            help="Likewise of an encoder, which is trained too. Default: it stays the large model's, which then "
            "encodes for both.",
            rich_help_panel=DRAFTER,
        ),
    ] = None,
    head_vocabulary: Annotated[
        int | None,
        typer.Option(
            help="Tokens that are ever drafted, the most frequent of what it writes; 0: all. Default: 8192 "
            "of large vocabularies.",
            rich_help_panel=DRAFTER,
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Prompts: {examples.FILES}. Default: the large model writes its own.", rich_help_panel=TEXTS
        ),
    ] = None,
    texts: Annotated[
        int | None, typer.Option(help="Prompts of its own, 1… Default: 2000.", rich_help_panel=TEXTS)
    ] = None,
    source_column: examples.SourceColumn = "source",
    split: examples.Split = "train",
    limit: examples.Limit = None,
    prefix: examples.Prefix = "",
    chat: training.Chat = None,
    src_lang: options.SrcLang = None,
    tgt_lang: options.TgtLang = None,
    max_source_tokens: training.MaxSourceTokens = None,
    max_target_tokens: Annotated[
        int | None,
        typer.Option(help="Longest text that the large model writes, 1… Default: 256.", rich_help_panel=TEXTS),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="At which it answers prompts, above 0. Default: it writes what it finds likeliest.",
            rich_help_panel=TEXTS,
        ),
    ] = None,
    write_dtype: Annotated[
        str | None,
        typer.Option(
            help="Number format in which it writes, int8 and int4 too. Default: that of --dtype.", rich_help_panel=TEXTS
        ),
    ] = None,
    recipe: training.RecipeName = "fast",
    max_steps: training.MaxSteps = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the texts, 1… Default: 3.", rich_help_panel=training.RECIPE)
    ] = None,
    max_minutes: training.MaxMinutes = None,
    batch_tokens: training.BatchTokens = None,
    batch_size: training.BatchSize = None,
    lr: training.Lr = None,
    warmup_steps: training.WarmupSteps = None,
    label_smoothing: training.LabelSmoothing = None,
    dropout: training.Dropout = None,
    distill: Annotated[
        float,
        typer.Option(
            help="Share of the loss that compares whole distributions with the large model's, 0…1.",
            rich_help_panel=training.RECIPE,
        ),
    ] = 1.0,
    seed: Annotated[
        int, typer.Option(help="Of prompts, draws, order and dropout.", rich_help_panel=training.RECIPE)
    ] = 0,
    device: options.Device = "auto",
    dtype: training.Dtype = "auto",
    save_dtype: training.SaveDtype = "auto",
    compile: training.Compile = None,
    threads: training.Threads = None,
    log_every: training.LogEvery = 50,
    save_minutes: training.SaveMinutes = 5.0,
    fresh: training.Fresh = False,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Make a small model that drafts for a large one, of some of its layers and of what it writes.

    OUT gets a checkpoint to be used as --small OUT, which drafts from a short list of tokens, its provenance in
    training.json and a log. The same command goes on where a killed one stopped.
    """
    arguments = training.given(locals())
    from bild.data import read_sets
    from bild.errors import InputError
    from bild.training import Recipe, Settings
    from bild.training.drafting import Shape
    from bild.training.drafting import draft as run

    if data and texts is not None:
        raise InputError(
            f"--texts {texts} counts prompts of the large model's own, and --data gives some; leave one out"
        )
    if recipe == "fast" and epochs is max_steps is max_minutes is None:
        arguments["epochs"] = EPOCHS
    chosen = Recipe.preset(recipe, **training.fields_of(Recipe, arguments))
    settings = Settings(**training.fields_of(Settings, arguments), arguments=arguments)
    shape = Shape(**training.fields_of(Shape, arguments))
    sets = None
    if data:
        sets = read_sets(data, split=split, limit=limit, source_column=source_column, target_column="target")
    training.prepare(threads)
    further: dict[str, Any] = {"write_dtype": write_dtype, "temperature": temperature}
    further |= {} if texts is None else {"texts": texts}
    further |= {"trust_remote_code": trust_remote_code}
    with training.resumable(out):
        run(large, out, chosen, shape, data=sets, settings=settings, **further)
