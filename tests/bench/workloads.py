"""What the benchmarks score: a model of known shape, and five workloads drawn from real rows.

The model has random weights in the Qwen3 architecture (hidden size 512, MLP 1,536, 6 layers, 8/4
heads of 64, vocabulary 16,384, float32), and a tokenizer trained on the workloads' own texts, so
that token counts are those of real prose and code. Rows are read from a folder of published
benchmark files (`--data`); nothing of them is kept in the project.
"""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForSequenceClassification

from serve.jobs.record_reader import parse_record

Conversations = list[list[dict[str, Any]]]
SEED = 0
VOCABULARY = 16_384
MAX_POSITIONS = 8_192
_SALT_DIGITS = 8
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if loop.last and m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
)


def talk(prompt: str, response: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def rm_bench_pairs(data: Path, num_prompts: int = 40) -> Conversations:
    """Prompts of RM-Bench chat and code, one chosen and one rejected response each."""
    rows = []
    for name in ("chat", "code"):
        rows += json.loads((data / "rm-bench" / f"{name}_filtered.json").read_text("utf-8"))
    picked = random.Random(SEED).sample(rows, num_prompts)
    return [talk(row["prompt"], row[side][1]) for row in picked for side in ("chosen", "rejected")]


def judgebench_pairs(data: Path, num_pairs: int = 30) -> Conversations:
    """Questions of JudgeBench with both responses."""
    picked = random.Random(SEED).sample(judgebench_rows(data), num_pairs)
    return [talk(row["question"], row[f"response_{side}"]) for row in picked for side in "AB"]


def rmb_best_of_n(data: Path, num_groups: int = 12) -> Conversations:
    """Groups of RMB: the best response and all that lost to it."""
    rows = []
    for file in sorted((data / "rmb" / "BoN_set").rglob("*.json")):
        rows += json.loads(file.read_text("utf-8"))
    conversations = []
    for row in random.Random(SEED).sample(rows, num_groups):
        prompt = [{key: turn[key] for key in ("role", "content")} for turn in _turns(row)]
        for answer in (row["bon_best"], *row["loser_list"]):
            conversations.append([*prompt, {"role": "assistant", "content": answer["answer"]}])
    return conversations


def groups_of_16(data: Path, num_prompts: int = 6, num_responses: int = 16) -> Conversations:
    """As a trainer posts them: long prompts, each with 16 short responses.

    The prompts are JudgeBench questions with a worked answer in front, the responses sentences of
    about 45 tokens out of other answers.
    """
    chance = random.Random(SEED)
    rows = judgebench_rows(data)
    chance.shuffle(rows)
    return _groups(rows[:num_prompts], rows[num_prompts:], "AB", num_responses, chance)


def arriving(data: Path, num_prompts: int = 12, num_responses: int = 16) -> Conversations:
    """As an asynchronous trainer posts them: the answers to 12 prompts one by one, in any order.

    Prompts and responses as in `groups_of_16`, out of rows that no other workload has.
    """
    taken = {
        turn["content"]
        for conversations in (judgebench_pairs(data), groups_of_16(data))
        for (turn, _) in conversations
    }
    rows = [
        row
        for row in judgebench_rows(data)
        if not any(prompt.startswith(row["question"][:2_200]) for prompt in taken)
    ]
    chance = random.Random(SEED)
    chance.shuffle(rows)
    conversations = _groups(rows[:num_prompts], rows[num_prompts:], "BA", num_responses, chance)
    chance.shuffle(conversations)
    return conversations


WORKLOADS = {
    "RM-Bench pairs": rm_bench_pairs,
    "JudgeBench pairs": judgebench_pairs,
    "RMB best-of-n": rmb_best_of_n,
    "groups of 16": groups_of_16,
    "arriving": arriving,
}


def draw_salt() -> str:
    """Return a text that no conversation has begun with, of as many tokens as every other one."""
    return "".join(
        f"{digit} " for digit in f"{secrets.randbelow(10**_SALT_DIGITS):0{_SALT_DIGITS}}"
    )


def with_salt(conversations: Conversations, salt: str) -> Conversations:
    """Return conversations that begin with a salt: no cache has anything of them.

    What they share among themselves they share still.
    """
    return [[_salt_message(first, salt), *rest] for first, *rest in conversations]


def job_file(path: Path) -> Conversations:
    """Every conversation of a JSONL job file."""
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
    return [c for r in records for c in parse_record(r).conversations if isinstance(c, list)]


def build_model(folder: Path, workloads: list[Conversations]) -> Path:
    """Write the benchmark's checkpoint, with a tokenizer trained on the workloads."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(workloads), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<pad>",
        chat_template=TEMPLATE,
    )
    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1_536,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.05,
        num_labels=1,
        pad_token_id=wrapped.pad_token_id,
        eos_token_id=wrapped.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForSequenceClassification(config)
    with torch.no_grad():
        model.score.weight.normal_(std=0.1)
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


def judgebench_rows(data: Path) -> list[dict[str, Any]]:
    (file,) = (data / "judgebench").glob("*.jsonl")
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def _groups(
    rows: list[dict[str, Any]],
    others: list[dict[str, Any]],
    sides: str,
    num_responses: int,
    chance: random.Random,
) -> Conversations:
    """Long prompts out of rows, each with short responses out of other rows.

    Args:
        rows: what prompts are of: a question and a worked answer, cut.
        others: what responses are of: about 45 tokens each.
        sides: which response of a row is the worked answer, and which the source of responses.
        num_responses: of each prompt.
        chance: draws the responses.
    """
    worked, source = sides
    words = [word for row in others for word in row[f"response_{source}"].split(" ")]
    conversations = []
    for row in rows:
        prompt = f"{row['question']}\n\n{row[f'response_{worked}']}"[:2_200]
        for _ in range(num_responses):
            start = chance.randrange(len(words) - 40)
            conversations.append(talk(prompt, " ".join(words[start : start + 25])))
    return conversations


def _salt_message(message: dict[str, Any], salt: str) -> dict[str, Any]:
    content = message["content"]
    salted = (
        salt + content if isinstance(content, str) else [{"type": "text", "text": salt}, *content]
    )
    return {**message, "content": salted}


def _turns(row: dict[str, Any]) -> list[dict[str, Any]]:
    turns = row["conversation_input"]
    return turns if isinstance(turns, list) else [{"role": "user", "content": turns}]


def _texts(workloads: list[Conversations]) -> Iterator[str]:
    for conversations in workloads:
        for conversation in conversations:
            yield from (turn["content"] for turn in conversation)
