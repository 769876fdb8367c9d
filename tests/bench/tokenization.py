"""Token ids and processor time of both tokenizer libraries, with real vocabularies.

`equality` compares the token ids of the texts of the check at load with every token of the
vocabulary, of random texts, and of every string in JSON files. It prints each difference.

`time` encodes conversations whole, with either library in turn, and prints medians. Its data are
JSON arrays of objects with `prompt` and the lists of answers `chosen` and `rejected` (RM-Bench).

`prompts` encodes the answers to a prompt together and alone, in turn, and prints medians.

`threads` encodes with one thread and with two, each with an encoder, and prints medians of the
elapsed time. `messages` prints the processor time of pickling batches of token ids as tuples and as
buffers of 64-bit integers.

    python tests/bench/tokenization.py equality TOKENIZER --data FOLDER [--texts 1000000]
    python tests/bench/tokenization.py time TOKENIZER --data FILE... [--rounds 5]
    python tests/bench/tokenization.py prompts|threads|messages TOKENIZER --data FOLDER [--rounds 5]

TOKENIZER is a folder with tokenizer.json. Without a chat template, it gets one of Qwen3's form.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import pickle
import random
import statistics
import struct
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

from posts import Texts
from transformers import AutoTokenizer
from workloads import TEMPLATE, Conversations, talk

from rm_core import ChatEncoder
from rm_core.config import TokenizerMode
from rm_core.inputs.text_tokenizer import TextTokenizer
from rm_core.inputs.tokenizer_check import build_texts

_BATCH = 2_000
_SPACES = (" ", "  ", "\n", "\n\n", "\r\n", "\t", "\r", " \n", "\u3000", "\xa0", "\x85", "\u2028")
_PIECES = (
    *("the", " and", "x", "Zz", "don", "'s", "'LL", "'\u017f", "\u212a", "é", "1", "23", "2024"),
    *(
        "\u0663",
        "\u00bd",
        "!",
        "...",
        "!!!",
        "(",
        "=>",
        "/*",
        "_",
        "-",
        "中国",
        "の",
        "한",
        "ж",
        "ไ",
    ),
    *("e\u0301", "\u0301", "\u0323", "\u0345", "\u1acd", "\u3099", "\u200d", "😀", "👩\u200d👧"),
    *("\ufe0f", "<|", "|>", "<", "\0", "\x1b", "\xad", "\ufeff", "\u1112\u1161", "\u11ab"),
)
_MARKS = "\u0301\u0323\u0308\u0345\u05b0\u064b\u0e48\u302a\u1dc0\u20d0\u1acd\u07fd"
_ASCII = "abcdefghijklmnopqrstuvwxyzABCDE0123456789 .,'\n"
_BLOCKS = (*range(0, 0x3100, 128), *range(0xA000, 0xAC00, 128), *range(0x10000, 0x1FB00, 128))


def generate_texts(markers: list[str], number: int, seed: int) -> Iterator[str]:
    """Yield texts of mixed pieces, runs, one block of Unicode each, any characters, and marks."""
    generator = random.Random(seed)
    parts = [part for marker in markers for part in (marker, marker[:-1], marker[1:])]
    pieces = [*_PIECES, *_SPACES, *_SPACES, *parts]
    characters = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) != "Cs"]
    known = [c for c in characters if unicodedata.category(c) not in ("Cn", "Co")]
    for index in range(number):
        size = generator.randint(1, 16)
        match index % 8:
            case 0 | 1 | 2:
                yield "".join(generator.choices(pieces, k=size))
            case 3:
                first, run, last = generator.choices(pieces, k=3)
                yield first + run * generator.randint(1, 64) + last
            case 4:
                block = generator.choice(_BLOCKS)
                yield "".join(map(chr, generator.choices(range(block, block + 128), k=size)))
            case 5:
                yield "".join(generator.choices(known, k=size))
            case 6:
                yield "".join(generator.choices(_ASCII, k=4 * size))
            case _:
                letter = generator.choice([*"aeo한かक", generator.choice(characters)])
                yield letter + "".join(generator.choices(_MARKS, k=size))


def read_strings(folder: Path) -> Iterator[str]:
    """Yield every string in the JSON and JSON Lines files of a folder, also gzipped."""

    def walk(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list | dict):
            for item in value.values() if isinstance(value, dict) else value:
                yield from walk(item)

    for file in sorted(folder.rglob("*.json*")):
        content = file.read_bytes()
        text = (gzip.decompress(content) if file.suffix == ".gz" else content).decode()
        for document in text.split("\n") if ".jsonl" in file.suffixes else [text]:
            yield from walk(json.loads(document) if document.strip() else None)


def compare(arguments: argparse.Namespace) -> int:
    """Compare token ids; return the number of texts that differ."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    backend = tokenizer.backend_tokenizer
    fast = TextTokenizer(backend, backend.to_str(), check_interval=0)
    print(f"{arguments.tokenizer}: {fast.choice.name}, {fast.choice.reason}")
    markers = [token.content for token in backend.get_added_tokens_decoder().values()]
    vocabulary = backend.decode_batch([[i] for i in range(backend.get_vocab_size())], False)
    sources = {
        "vocabulary": build_texts(vocabulary, markers),
        "random": generate_texts(markers[:24], arguments.texts, arguments.seed),
        "data": (text for folder in arguments.data for text in read_strings(folder)),
    }
    num_different = 0
    for name, texts in sources.items():
        num_texts = num_tokens = 0
        while batch := list(itertools.islice(texts, _BATCH)):
            encodings = backend.encode_batch_fast(batch, add_special_tokens=False)
            num_texts += len(batch)
            num_tokens += sum(map(len, encodings))
            for text, encoding in zip(batch, encodings, strict=True):
                if fast.tokenize(text) != encoding.ids:
                    num_different += 1
                    print("different:", ascii(text[:100]))
        print(f"{name}: {num_texts:,} texts, {num_tokens:,} tokens", flush=True)
    print(f"{num_different} texts differ; in use at the end: {fast.choice.name}")
    return num_different


def measure(arguments: argparse.Namespace) -> int:
    """Print the median processor time of encoding a conversation with each library."""
    encoders = {mode: create_encoder(arguments.tokenizer, mode) for mode in get_args(TokenizerMode)}
    records = [row for file in arguments.data for row in json.loads(file.read_text())]
    conversations = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": answer}]
        for row in records
        for answer in (*row["chosen"], *row["rejected"])
    ]
    times: dict[str, list[float]] = {name: [] for name in encoders}
    num_tokens: dict[str, int] = {}
    for _ in range(arguments.rounds + 1):
        for name, encoder in encoders.items():
            started = time.process_time()
            encoded = [encoder.encode(conversation) for conversation in conversations]
            times[name].append(time.process_time() - started)
            num_tokens[name] = sum(e.num_tokens for e in encoded)
    assert len(set(num_tokens.values())) == 1
    total = num_tokens["auto"]
    print(f"{len(conversations):,} conversations, {total / len(conversations):,.0f} tokens each")
    for name, seconds in times.items():
        median = statistics.median(seconds[1:])  # the first round fills caches
        print(
            f"{name} ({encoders[name].text_tokenizer.choice.name}): "
            f"{median / len(conversations) * 1e6:,.0f} us a conversation, "
            f"{median / total * 1e6:.3f} us a token; rounds {[round(s, 3) for s in seconds]}"
        )
    return 0


def create_encoder(folder: Path, mode: TokenizerMode) -> ChatEncoder:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template or TEMPLATE
    return ChatEncoder(tokenizer, pad_token_id=None, max_length=1 << 17, tokenizer_mode=mode)


def draw_groups(texts: Texts, prompt: int, size: int, number: int) -> list[Conversations]:
    """Draw groups of answers of 1,000 characters to prompts of so many characters."""
    prompts = [texts.draw(prompt) for _ in range(number)]
    return [[talk(prompt, texts.draw()) for _ in range(size)] for prompt in prompts]


def measure_prompts(arguments: argparse.Namespace) -> int:
    """Print the processor time of a conversation alone, and with the answers to its prompt."""
    texts = Texts(arguments.data[0])
    for mode in get_args(TokenizerMode):
        encoder = create_encoder(arguments.tokenizer, mode)
        print(f"{encoder.text_tokenizer.choice.name}; medians in us a conversation")
        for prompt, size in ((1_000, 2), (1_000, 16), (4_000, 16), (16_000, 16)):
            times: dict[str, list[float]] = {"alone": [], "together": []}
            for number in range(arguments.rounds + 1):
                groups = draw_groups(texts, prompt, size, 4)
                for name in sorted(times, reverse=bool(number % 2)):
                    started = time.process_time()
                    for group in groups:
                        for part in [group] if name == "together" else [[one] for one in group]:
                            encoder.encode_all(part)
                    times[name].append((time.process_time() - started) / (4 * size) * 1e6)
            alone, together = (statistics.median(each[1:]) for each in times.values())
            print(
                f"prompt of {prompt:,} characters, {size} answers: alone {alone:,.0f}, "
                f"together {together:,.0f}, ratio {together / alone:.2f}",
                flush=True,
            )
    return 0


def measure_threads(arguments: argparse.Namespace) -> int:
    """Print the elapsed time of a conversation with one thread, and with two."""
    texts = Texts(arguments.data[0])
    for mode in get_args(TokenizerMode):
        encoders = [create_encoder(arguments.tokenizer, mode) for _ in range(2)]
        for size in (1_000, 20_000):
            times: dict[int, list[float]] = {1: [], 2: []}
            for number in range(arguments.rounds + 1):
                conversations = [c for (c,) in draw_groups(texts, size, 1, 64)]
                for num_threads in sorted(times, reverse=bool(number % 2)):
                    started = time.perf_counter()
                    with ThreadPoolExecutor(num_threads) as pool:
                        parts = [conversations[i::num_threads] for i in range(num_threads)]
                        list(pool.map(lambda e, part: e.encode_all(part), encoders, parts))
                    times[num_threads].append((time.perf_counter() - started) / 64 * 1e6)
            one, two = (statistics.median(each[1:]) for each in times.values())
            print(
                f"{encoders[0].text_tokenizer.choice.name}, prompt of {size:,} characters: one "
                f"thread {one:,.0f} us a conversation, two {two:,.0f}",
                flush=True,
            )
    return 0


def measure_messages(arguments: argparse.Namespace) -> int:
    """Print the processor time of pickling and reading token ids, as tuples and as buffers."""
    encoder = create_encoder(arguments.tokenizer, "auto")
    groups = draw_groups(Texts(arguments.data[0]), 1_000, 1, 64)
    sequences = [encoder.encode(c).input_ids for (c,) in groups]

    def dump_buffers() -> bytes:
        return pickle.dumps([struct.pack(f"{len(s)}q", *s) for s in sequences], 5)

    def load_buffers(data: bytes) -> list[tuple[int, ...]]:
        return [struct.unpack(f"{len(b) // 8}q", b) for b in pickle.loads(data)]

    tuples, buffers = pickle.dumps(sequences, 5), dump_buffers()
    assert load_buffers(buffers) == sequences
    ways: dict[str, Callable[[], object]] = {
        "tuples, written": lambda: pickle.dumps(sequences, 5),
        "buffers, written": dump_buffers,
        "tuples, read": lambda: pickle.loads(tuples),
        "buffers, read": lambda: load_buffers(buffers),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(20 * arguments.rounds):
        for name, run in ways.items():
            started = time.process_time()
            run()
            times[name].append((time.process_time() - started) / len(sequences) * 1e6)
    num_tokens = sum(map(len, sequences)) / len(sequences)
    print(f"{num_tokens:,.0f} tokens a sequence; {len(tuples):,} and {len(buffers):,} bytes")
    for name, each in times.items():
        print(f"{name}: {statistics.median(each):.1f} us a sequence")
    return 0


def main() -> int:
    """Run one of the commands; return the number of differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, run in {
        "equality": compare,
        "time": measure,
        "prompts": measure_prompts,
        "threads": measure_threads,
        "messages": measure_messages,
    }.items():
        command = commands.add_parser(name)
        command.add_argument("tokenizer", type=Path)
        command.add_argument("--data", type=Path, nargs="+", default=[])
        command.add_argument("--texts", type=int, default=1_000_000)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--rounds", type=int, default=5)
        command.set_defaults(run=run)
    arguments = parser.parse_args()
    result: int = arguments.run(arguments)
    return result


if __name__ == "__main__":
    sys.exit(bool(main()))
