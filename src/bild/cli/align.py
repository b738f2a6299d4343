"""bild align: teach a pair's small model to write what the large one would."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bild.cli import data_options as examples
from bild.cli import pair_options as options
from bild.cli import training_options as training


def align(
    data: examples.Data,
    out: training.Out,
    large: options.Large = None,
    small: options.Small = None,
    pair: options.PairName = None,
    begin: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Checkpoint to fine-tune. Default: the pair's small model; the paper's comparison begins pretrained.",
            rich_help_panel=options.MODELS,
        ),
    ] = None,
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
    distill: Annotated[
        float | None,
        typer.Option(
            help="Share of the loss that compares whole distributions with the large model's, 0…1, default 0.",
            rich_help_panel=training.RECIPE,
        ),
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
    """Align a small model to a large one: label inputs by the large model, fine-tune the small one on the labels.

    OUT gets labels.jsonl and the aligned checkpoint, to be used as --small OUT. The same command goes on where a
    killed one stopped; no input is labelled twice.
    """
    arguments = training.given(locals())
    from bild.data import read_sets
    from bild.training import Recipe, Settings
    from bild.training import align as run

    chosen = Recipe.preset(recipe, **training.fields_of(Recipe, arguments))
    settings = Settings(**training.fields_of(Settings, arguments), arguments=arguments)
    columns = {"source_column": source_column, "target_column": target_column}
    sets = read_sets(data, split=split, limit=limit, **columns)
    dev_sets = read_sets(dev, split="validation", **columns) if dev else {}
    training.prepare(threads)
    models: dict[str, Any] = {
        "pair": pair,
        "large": large,
        "small": small,
        "begin": begin,
        "trust_remote_code": trust_remote_code,
    }
    with training.resumable(out):
        run(sets, out, chosen, dev=dev_sets, settings=settings, **models)
