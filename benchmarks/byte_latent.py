"""What the local parts of a small byte latent transformer save it, in passes and not in seconds (docs/related/blt.md).

``python benchmarks/byte_latent.py --train a.jsonl.gz --test b.jsonl.gz --out DIR`` trains the network on the targets of
a data file, for so many minutes, and keeps it in a folder; with that folder there it only decodes.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from transformers import BltConfig, BltForCausalLM

from bild import BigLittleDecoder, Stats
from bild.evaluation import read_examples

OFFSET, VOCABULARY = 4, 260
"""A byte's token id is behind those of the special tokens."""
CHUNK, BATCH, PATCHES = 64, 16, 4.5
"""Bytes of a training text, texts of a step, and bytes that a patch is to have on average."""
SHARE = 0.15
"""Of the time, what the patcher learns first: where it expects little, a patch ends."""
PROMPT, NEW = 16, 64
POLICIES = ["large", *(f"exact:fallback_threshold={threshold}" for threshold in (0.8, 0.6, 0.4, 0.2)), "bild"]


def network() -> BltForCausalLM:
    """Four layers of 256 over patches, one and three of 128 over bytes."""
    local = {"vocab_size": VOCABULARY, "hidden_size": 128, "num_attention_heads": 4, "cross_attn_k": 2}
    local |= {"hidden_size_global": 256, "intermediate_size": 384}
    deep = {"num_attention_heads": 4, "vocab_size": VOCABULARY}
    config = BltConfig(
        vocab_size=VOCABULARY,
        patching_threshold=1.5,
        encoder_hash_byte_group_vocab=1009,
        cross_attn_k=2,
        patcher_config={**deep, "hidden_size": 96, "num_hidden_layers": 2, "intermediate_size": 256},
        encoder_config={**local, "num_hidden_layers": 1},
        decoder_config={**local, "num_hidden_layers": 3},
        global_config={"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 4, "intermediate_size": 768},
    )
    return BltForCausalLM(config)


def ids_of(text: str) -> list[int]:
    """A text as token ids."""
    return [OFFSET + byte for byte in text.encode()]


def learn(model: BltForCausalLM, data: torch.Tensor, seconds: float, patcher: bool) -> None:
    """Let the patcher, or all but the patcher, predict the next byte."""
    part = model.model.patcher if patcher else model
    weights = [weight.requires_grad_() for weight in part.parameters()] if patcher else list(part.parameters())
    if not patcher:
        model.model.patcher.requires_grad_(False)
    optimizer = torch.optim.AdamW([weight for weight in weights if weight.requires_grad], lr=1e-3, weight_decay=0.01)
    draw, begin, step, loss = random.Random(0), time.monotonic(), 0, torch.zeros(())
    while (passed := (time.monotonic() - begin) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, step / 100, 4 * (1 - passed))
        starts = [draw.randrange(len(data) - CHUNK) for _ in range(BATCH)]
        ids = torch.stack([data[start : start + CHUNK] for start in starts])
        scores = part(ids, patch_size=None)[2] if patcher else part(ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            print(f"{'patcher' if patcher else 'network'}, step {step}: {loss.item():.3f} nats a byte", flush=True)


@torch.inference_mode()
def threshold(model: BltForCausalLM, data: torch.Tensor) -> float:
    """The entropy that leaves patches as long as they are to be."""
    entropies = model.model.patcher(data[: 64 * CHUNK].view(64, CHUNK))[0]
    return float(entropies.quantile(1 - 1 / PATCHES))


def main() -> None:
    """Train, unless that was done, and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--train", help="data file whose targets are learnt")
    arguments.add_argument("--test", required=True, help="data file whose targets are begun")
    arguments.add_argument("--out", type=Path, required=True, help="folder of the network")
    arguments.add_argument("--minutes", type=float, default=15.0)
    arguments.add_argument("--texts", type=int, default=40)
    given = arguments.parse_args()
    torch.manual_seed(0)
    if not (given.out / "config.json").exists():
        model = network()
        texts = [example.references[0] for example in read_examples(given.train).examples]
        random.Random(0).shuffle(texts)
        data = torch.tensor(ids_of("\n".join(texts)))
        learn(model, data, 60 * given.minutes * SHARE, patcher=True)
        model.config.patching_threshold = threshold(model, data)
        learn(model, data, 60 * given.minutes * (1 - SHARE), patcher=False)
        model.save_pretrained(given.out)
    model = BltForCausalLM.from_pretrained(given.out, dtype=torch.float32).eval()
    prompts = [
        ids[:PROMPT] for example in read_examples(given.test).examples if len(ids := ids_of(example.references[0])) > 24
    ][: given.texts]
    report(model, prompts)


def report(model: BltForCausalLM, prompts: list[list[int]]) -> None:
    """Decode by every policy."""
    # Of the table of hashed bytes a pass reads a few rows.
    table = model.model.encoder_hash_tok_embedding.weight.numel()
    local = torch.nn.ModuleList([model.model.local_encoder, model.model.local_decoder, model.lm_head])
    sizes = [size_of(model) - table, size_of(local)]
    print(f"{sizes[0] / 1e6:.1f} M parameters that a pass reads, {sizes[1] / 1e6:.1f} M of them local")
    decoder = BigLittleDecoder(model, "blt:local")
    alone = [each.token_ids for each in decoder.generate(prompts, "large", max_new_tokens=NEW)]
    print("| policy | large passes a text | local passes | bytes a large pass | weights read | large's own text |")
    print("|---|---|---|---|---|---|")
    for policy in POLICIES:
        results = decoder.generate(prompts, policy, max_new_tokens=NEW)
        stats = Stats.total(result.stats for result in results)
        large, small = stats.num_large_steps, stats.num_small_steps
        traffic = (large * sizes[0] + small * sizes[1]) / (sizes[0] * stats.num_tokens)
        same = sum(result.token_ids == own for result, own in zip(results, alone, strict=True))
        count = len(prompts)
        print(
            f"| `{policy}` | {large / count:.1f} | {small / count:.1f} | {stats.num_tokens / large:.2f} "
            f"| {traffic:.0%} | {same} of {count} |",
            flush=True,
        )


def size_of(module: torch.nn.Module) -> int:
    """Its parameters."""
    return sum(each.numel() for each in module.parameters())


if __name__ == "__main__":
    main()
