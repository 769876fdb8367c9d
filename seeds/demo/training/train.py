"""Train the demo model: `python -m seeds.demo.training.train --out DIR [--data DIR]`.

One good answer is compared with corruptions of it (Bradley-Terry), with dense side losses that make
a small model learn faster; the side heads are thrown away when the checkpoint is written. Start at
`main`.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AttentionInterface,
    PreTrainedTokenizerFast,
    Qwen3ForSequenceClassification,
)

from seeds.demo.training.architecture import make_config, train_tokenizer
from seeds.demo.training.batches import Encoded, GroupMaker, collate
from seeds.demo.training.corpus import Example, documents
from seeds.demo.training.embeddings import cooccurrence_embeddings, word_classes
from seeds.demo.training.matching import MatchingMaker
from seeds.demo.training.stream import Plan, build_pools, group_stream
from seeds.demo.training.trainee import Trainee, float32_attention, tie_query_to_key

logger = logging.getLogger(__name__)


WEIGHTS = {"pair": 1.0, "single": 0.5, "kind": 0.5, "overlap": 0.5, "lm": 0.15}


def make_optimizers(trainee: Trainee, plan: Plan) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices and AdamW for everything else."""
    layers = [p for p in trainee.model.model.layers.parameters() if p.dim() == 2]
    taken = {id(p) for p in layers}
    others = [p for p in trainee.parameters() if id(p) not in taken]
    muon = torch.optim.Muon(layers, lr=plan.muon_lr, weight_decay=0.01)
    adam = torch.optim.AdamW(others, lr=plan.lr, betas=(0.9, 0.98), weight_decay=0.01)
    for optimizer in (muon, adam):
        for part in optimizer.param_groups:
            part["highest_lr"] = part["lr"]
    return [muon, adam]


def fit(trainee: Trainee, stream: Iterator[list[Encoded]], classes: list[int], plan: Plan) -> None:
    """Run `plan.steps` steps of AdamW with warm-up and cosine decay; changes `trainee`."""
    optimizers = make_optimizers(trainee, plan)
    pad = int(trainee.model.config.pad_token_id or 0)
    started, tokens, shown = time.monotonic(), 0, dict.fromkeys(WEIGHTS, 0.0)
    for step in range(plan.steps):
        share = step / plan.steps
        factor = min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * share))
        for part in (part for optimizer in optimizers for part in optimizer.param_groups):
            part["lr"] = part["highest_lr"] * max(factor, 0.01)
        batch = collate(next(stream), classes, pad, step >= plan.matching_steps and step % 2 == 0)
        with torch.autocast("cpu", torch.bfloat16):
            losses = trainee.losses(batch)
        torch.stack([WEIGHTS[k] * v for k, v in losses.items()]).sum().backward()
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        tokens += batch.ids.numel()
        for name, value in losses.items():
            shown[name] += 0.04 * (value.item() - shown[name]) if step else value.item()
        if step % 25 == 24:
            parts = " ".join(f"{name} {value:.3f}" for name, value in shown.items())
            rate = tokens / (time.monotonic() - started)
            logger.info("step %d  %s  %.0f tokens/s", step + 1, parts, rate)


def save(
    model: Qwen3ForSequenceClassification, tokenizer: PreTrainedTokenizerFast, out: Path
) -> None:
    """Write the checkpoint's files into `out`, each replaced at once; leaves other files alone."""
    scratch = out.with_name(out.name + ".new")
    shutil.rmtree(scratch, ignore_errors=True)
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(scratch.iterdir()):
        file.chmod(0o644)
        os.replace(file, out / file.name)
    scratch.rmdir()


def make_trainee(examples: list[Example]) -> tuple[Trainee, PreTrainedTokenizerFast]:
    """Train the tokenizer and return it with a model whose weights have their first values."""
    # hh-rlhf is offensive in places, and a vocabulary is easily read: it gives no tokens.
    tokenizer = train_tokenizer(
        f"{e.question}\n{e.answer}" for e in examples if e.source != "hh-rlhf"
    )
    model = Qwen3ForSequenceClassification(
        make_config(tokenizer.pad_token_id, tokenizer.eos_token_id)
    )
    AttentionInterface.register("float32_attention", float32_attention)
    model.set_attn_implementation("float32_attention")
    tie_query_to_key(model, (1, 2))
    documents = tokenizer([f"{e.question}\n{e.answer}" for e in examples]).input_ids
    start = cooccurrence_embeddings(documents, word_classes(tokenizer), model.config.hidden_size)
    model.model.embed_tokens.weight.data[: len(start)] = start / 3
    return Trainee(model, middle=2), tokenizer


def main() -> None:
    """Parse the command line, train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--data", type=Path, help="folder of the permitted data files")
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--hold-out", nargs="*", default=list(Plan.held_out_sources))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    plan = Plan(steps=args.steps, seed=args.seed, held_out_sources=tuple(args.hold_out))
    torch.manual_seed(plan.seed)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    started = time.monotonic()
    pools = build_pools(args.data, plan)
    examples = [example for _, pool in pools for example in pool]
    trainee, tokenizer = make_trainee(examples)
    logger.info("%d parameters", sum(p.numel() for p in trainee.model.parameters()))
    classes = word_classes(tokenizer)
    long_ones = documents(plan.seed, 400)
    maker = GroupMaker(tokenizer, [*examples, *long_ones], plan.seed)
    matching = MatchingMaker(tokenizer, classes, plan.seed)
    fit(trainee, group_stream(maker, matching, pools, long_ones, plan), classes, plan)
    save(trainee.model.eval(), tokenizer, args.out)
    logger.info("done in %.0f s", time.monotonic() - started)


if __name__ == "__main__":
    main()
