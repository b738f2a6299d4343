"""bild train: fine-tune a network on source and target texts, or train one from nothing."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bild.cli import data_options as examples
from bild.cli import pair_options as options
from bild.cli import training_options as training

VOCAB_SIZE = 8000


def train(
    data: examples.Data,
    out: training.Out,
    model: Annotated[
        str | None,
        typer.Option(help="Folder or hub name of the checkpoint to go on with.", rich_help_panel=training.START),
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="Folder with the config.json of a new network.", rich_help_panel=training.START)
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="A new network, TYPE:key=value,… as in transformers: t5:d_model=256,num_layers=8.",
            rich_help_panel=training.START,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub name. Default: the checkpoint's.", rich_help_panel=training.START)
    ] = None,
    new_tokenizer: Annotated[
        bool,
        typer.Option(
            "--new-tokenizer", help="Make a tokenizer from the training texts.", rich_help_panel=training.START
        ),
    ] = False,
    vocab_size: Annotated[
        int | None, typer.Option(help="Pieces of the new tokenizer, 16… Default: 8000.", rich_help_panel=training.START)
    ] = None,
    target_data: examples.TargetData = None,
    source_column: examples.SourceColumn = "source",
    target_column: examples.TargetColumn = "target",
    split: examples.Split = "train",
    limit: examples.Limit = None,
    prefix: examples.Prefix = "",
    chat: training.Chat = None,
    src_lang: options.SrcLang = None,
    tgt_lang: options.TgtLang = None,
    max_source_tokens: training.MaxSourceTokens = None,
    max_target_tokens: training.MaxTargetTokens = None,
    dev: training.Dev = None,
    metric: training.DevMetric = "bleu",
    eval_every: training.EvalEvery = None,
    patience: training.Patience = None,
    recipe: training.RecipeName = "fast",
    max_steps: training.MaxSteps = None,
    epochs: training.Epochs = None,
    max_minutes: training.MaxMinutes = None,
    batch_tokens: training.BatchTokens = None,
    batch_size: training.BatchSize = None,
    lr: training.Lr = None,
    warmup_steps: training.WarmupSteps = None,
    label_smoothing: training.LabelSmoothing = None,
    dropout: training.Dropout = None,
    r_drop: training.RDrop = None,
    loss: Annotated[
        str,
        typer.Option(
            help="last, early-exit (mean of --exit-layer and last) or calm (all layers).",
            rich_help_panel=training.RECIPE,
        ),
    ] = "last",
    exit_layer: Annotated[
        int | None, typer.Option(help="Decoder layer of the early exit, 1…", rich_help_panel=training.RECIPE)
    ] = None,
    trains: training.Trains = None,
    seed: training.Seed = 0,
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
    """Train an encoder-decoder or decoder-only network on source and target texts.

    OUT gets the checkpoint with the best dev score (without --dev the last one), its provenance in training.json
    and a log. The same command goes on where a killed one stopped.
    """
    arguments = training.given(locals())
    from bild.data import read_sets
    from bild.errors import InputError
    from bild.training import Recipe, Settings, Start
    from bild.training import train as run

    if vocab_size is not None and not new_tokenizer:
        raise InputError("--vocab-size goes with --new-tokenizer")
    size = (VOCAB_SIZE if vocab_size is None else vocab_size) if new_tokenizer else None
    begin: dict[str, Any] = {
        "checkpoint": model,
        "config": config,
        "shape": shape,
        "tokenizer": tokenizer,
        "vocab_size": size,
    }
    start = Start(**begin, trust_remote_code=trust_remote_code)
    chosen = Recipe.preset(recipe, **training.fields_of(Recipe, arguments))
    settings = Settings(**training.fields_of(Settings, arguments), arguments=arguments)
    columns = {"source_column": source_column, "target_column": target_column}
    sets = read_sets(data, target_data, split=split, limit=limit, **columns)
    dev_sets = read_sets(dev, split="validation", **columns) if dev else {}
    training.prepare(threads)
    with training.resumable(out):
        run(start, sets, out, chosen, dev=dev_sets, settings=settings)
