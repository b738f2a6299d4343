"""Segments judged by a reward, on chains of sums: ``python benchmarks/sums.py --out out/sums``.

Two models of characters are trained here, in minutes on one core: a small one that mostly knows what a line looks like,
and a large one that can add. They are asked for "17+25+48+36", and write a partial sum a line. A line stays if its
reward is at least δ, else the large model writes it. Two rewards: the right answer (an oracle, ``sums:line_is_right``),
and a classifier that is trained on lines of the small model. Passes and shares are the same on every run of a machine.

What is trained stays in --out, so that the command line can be tried on it:

    cd benchmarks && bild generate --large ../out/sums/large --small ../out/sums/small \\
        --policy 'reward:delimiter=\\n' --reward sums:line_is_right "17+25+48+36
    "
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from bild import BigLittleDecoder, Stats

PAD, EOS = "<pad>", "</s>"
LETTERS = [PAD, EOS, *"0123456789+=", "\n"]
TERMS = 4
BATCH = 64
RATE = 2e-3
DELTAS = (0.3, 0.5, 0.7, 0.9)


def main() -> None:
    """Train what is missing, decode, print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, default=Path("out/sums"), help="folder of the three checkpoints")
    arguments.add_argument("--texts", type=int, default=60, help="chains to decode")
    arguments.add_argument("--steps", type=int, default=1200, help="of training, of the large model")
    given = arguments.parse_args()
    tokenizer = make_tokenizer()
    large = trained(given.out / "large", tokenizer, given.steps, hidden=96, layers=3)
    small = trained(given.out / "small", tokenizer, given.steps * 2 // 3, hidden=64, layers=3)
    pair = BigLittleDecoder(large, small, tokenizer)
    classifier(given.out / "classifier", pair, given.steps // 3)
    texts = [prompt(numbers) for numbers in draw(random.Random(1), given.texts)]
    show(pair, texts, str(given.out / "classifier"))


def show(pair: BigLittleDecoder, texts: Sequence[str], checkpoint: str) -> None:
    """The table."""
    print("| who writes | right results | right lines | large passes a text | small passes a text |")
    print("|---|---|---|---|---|")
    methods: list[tuple[str, str, str | Callable[..., float] | None]] = [
        ("small alone", "small", None),
        ("large alone", "large", None),
        ("`exact`", "exact", None),
        ("reward: the right answer", "reward:delta=0.5:delimiter=\\n:max_draft_tokens=24", line_is_right),
        *(
            (
                f"reward: a classifier, δ = {delta}",
                f"reward:delta={delta}:delimiter=\\n:max_draft_tokens=24",
                checkpoint,
            )
            for delta in DELTAS
        ),
    ]
    for name, policy, reward in methods:
        results = pair.generate(texts, policy, reward=reward, batch_size=16, max_new_tokens=60)
        stats = Stats.total(result.stats for result in results)
        outcomes = [judged(text, result.text) for text, result in zip(texts, results, strict=True)]
        lines = [right for _, each in outcomes for right in each]
        shares = (sum(right for right, _ in outcomes) / len(texts), sum(lines) / max(1, len(lines)))
        steps = (stats.num_large_steps / len(texts), stats.num_small_steps / len(texts))
        cells = [*(f"{share:.0%}" for share in shares), *(f"{count:.1f}" for count in steps)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def line_is_right(source: str, before: str, segment: str) -> float:
    """1 for the line that ought to come, else 0: a reward, and an oracle."""
    lines = solution([int(number) for number in source.strip().split("+")])
    at = before.count("\n")
    return float((at < len(lines) and segment.strip("\n") == lines[at]) or (at == len(lines) and not segment.strip()))


def judged(text: str, answer: str) -> tuple[bool, list[bool]]:
    """Whether an answer's last line is right, and each of its lines."""
    expected = solution([int(number) for number in text.strip().split("+")])
    lines = answer.strip().split("\n")
    return lines == expected, [line in expected for line in lines]


def solution(numbers: Sequence[int]) -> list[str]:
    """A partial sum a line."""
    lines, total = [], numbers[0]
    for number in numbers[1:]:
        lines.append(f"{total}+{number}={total + number}")
        total += number
    return lines


def prompt(numbers: Sequence[int]) -> str:
    """What is asked."""
    return "+".join(map(str, numbers)) + "\n"


def draw(rng: random.Random, count: int) -> Iterator[list[int]]:
    """Chains of numbers."""
    for _ in range(count):
        yield [rng.randint(10, 99) for _ in range(TERMS)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token a character."""
    inner = Tokenizer(models.WordLevel({letter: id for id, letter in enumerate(LETTERS)}, unk_token=PAD))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=PAD, eos_token=EOS, model_max_length=128)


def config(hidden: int, layers: int, **more: int) -> LlamaConfig:
    """Of a small Llama."""
    return LlamaConfig(
        vocab_size=len(LETTERS), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=128, pad_token_id=0, bos_token_id=None, eos_token_id=1,
        tie_word_embeddings=True, **more,
    )  # fmt: skip


def trained(place: Path, tokenizer: PreTrainedTokenizerFast, steps: int, hidden: int, layers: int) -> PreTrainedModel:
    """A language model of chains; kept in its folder."""
    if (place / "config.json").exists():
        return LlamaForCausalLM.from_pretrained(place)
    torch.manual_seed(0)
    rng, network = random.Random(0), LlamaForCausalLM(config(hidden, layers))

    def loss() -> torch.Tensor:
        chains = list(draw(rng, BATCH))
        ids = padded(tokenizer, [prompt(each) + "\n".join(solution(each)) + EOS for each in chains])
        logits = network(input_ids=ids[:, :-1]).logits
        targets = ids[:, 1:].masked_fill(ids[:, 1:] == 0, -100)
        # What the terms are nobody can know.
        for row, each in zip(targets, chains, strict=True):
            row[: len(prompt(each)) - 1] = -100
        return cross_entropy(logits.flatten(0, 1), targets.flatten())

    fit(network, loss, steps, place.name)
    network.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return network.eval()


def classifier(place: Path, pair: BigLittleDecoder, steps: int) -> None:
    """Whether the last line so far is right, learnt from lines that the small model draws; kept in its folder."""
    if (place / "config.json").exists():
        return
    torch.manual_seed(0)
    rng, network = random.Random(2), LlamaForSequenceClassification(config(96, 3, num_labels=2))
    texts, labels = [], []
    asked = [prompt(numbers) for numbers in draw(rng, 40 * BATCH)]
    for source, result in zip(asked, pair.generate(asked, "small", batch_size=64, do_sample=True, seed=0), strict=True):
        before = ""
        for line in result.text.splitlines(keepends=True)[: TERMS - 1]:
            texts.append(source + before + line)
            labels.append(int(line_is_right(source, before, line)))
            before += line

    def loss() -> torch.Tensor:
        chosen = rng.sample(range(len(texts)), BATCH)
        ids = padded(pair.tokenizer, [texts[at] for at in chosen])
        return cross_entropy(network(input_ids=ids).logits, torch.tensor([labels[at] for at in chosen]))

    fit(network, loss, steps, place.name)
    network.save_pretrained(place)
    pair.tokenizer.save_pretrained(place)


def fit(network: PreTrainedModel, loss: Callable[[], torch.Tensor], steps: int, name: str) -> None:
    """AdamW, its rate falling to nothing."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step / 50) * (1 - step / (steps + 1)))
    network.train()
    for step in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % max(1, steps // 5) == 0:
            print(f"<!-- {name}: step {step + 1}, loss {float(value):.3f} -->", flush=True)


def padded(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> torch.Tensor:
    """Token ids ``[B, T]``, padded behind."""
    ids: torch.Tensor = tokenizer(list(texts), return_tensors="pt", padding=True).input_ids
    return ids


if __name__ == "__main__":
    main()
