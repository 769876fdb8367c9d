"""Groups of answers on one image against plain transformers, and what an image costs to read.

The model has random weights in the architecture of Qwen2.5-VL (decoder: hidden size 512, MLP 1,536,
6 layers; tower: width 192, MLP 512, 4 layers; float32): in both, a token costs the tower about as
much, compared with the decoder, as in Skywork-VL-Reward-7B. Images are the demonstration pictures
of LLaMA-Factory (`--data FOLDER` with 1.jpg, 2.jpg, 3.jpg) and a generated one; without the
folder, only this one. Times are seconds of CPU on one thread, which other processes change less
than the time on a clock. In every round each way gets an image with another corner, which no cache
has. Every round runs every way once, and begins with another one; ratios are taken within a round.
The last line is one JSON object.

    python tests/bench/images.py --data path/to/images
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from machine import matrix_rate
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plain_vision import PlainVisionModel
from vision import build_vision_model

from rm_core import BatchConfig, ModelConfig, RewardScorer
from rm_core.inputs.image_processor import ImageProcessor
from rm_core.inputs.images import ImageLimits, open_image, to_rgb
from rm_core.types import Encoded

MAX_PIXELS = 1_280 * 28 * 28
TOGETHER, ONE_BY_ONE, UNCACHED = "together", "one by one", "one by one, no caches"
PLAIN, PADDED = "plain, one by one", "plain, padded batch"
Messages = list[dict[str, Any]]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="folder with pictures; default: generated images only")
    add("--answers", type=int, default=8, help="answers in a group")
    add("--rounds", type=int, default=5)
    add("--only", choices=("groups", "reading"))
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    files = sorted(options.data.glob("*.jpg")) if options.data else []
    images = {file.name: Image.open(file).convert("RGB") for file in files}
    images["generated"] = draw(448, 448)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = build_model(Path(name))
        ways = Ways(folder)
        rate = matrix_rate(torch.device("cpu"), torch.float32)
        print(f"a matrix product at {rate / 1e9:.0f} GFLOP/s; medians of {options.rounds} rounds")
        groups, reading = {}, []
        if options.only != "reading":
            groups = {name: ways.measure(image, options) for name, image in images.items()}
            print_groups(groups, options.answers)
        if options.only != "groups":
            cases = read_cases()
            reading = [measure_reading(ways.scorer, *case, options.rounds) for case in cases]
            print_reading(reading)
    print(
        json.dumps(
            {
                "answers": options.answers,
                "rounds": options.rounds,
                "cores": os.cpu_count(),
                "torch": torch.__version__,
                "matrix_gflops": round(rate / 1e9, 1),
                "groups": groups,
                "reading": reading,
            }
        )
    )


def build_model(folder: Path) -> Path:
    """Write the benchmark's checkpoint."""
    return build_vision_model(
        folder,
        layout="new",
        tower={
            "hidden_size": 192,
            "intermediate_size": 512,
            "out_hidden_size": 512,
            "num_heads": 3,
            "window_size": 112,
            "fullatt_block_indexes": [3],
        },
        max_pixels=MAX_PIXELS,
        standard_deviation=0.05,
        hidden_size=512,
        intermediate_size=1_536,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=8_192,
        rope_scaling={"type": "mrope", "mrope_section": [8, 12, 12]},
    )


def draw(width: int, height: int) -> Image.Image:
    """Draw smooth colours with some noise, as a photo has them, always the same."""
    generator = torch.Generator().manual_seed(width)
    shape = (height // 32 + 2, width // 32 + 2, 3)
    coarse = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    smooth = Image.fromarray(coarse.numpy()).resize((width, height))
    noise = torch.randint(0, 12, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.blend(smooth, Image.fromarray(noise.numpy()), 0.1)


class Ways:
    """The ways to score a group, on one checkpoint.

    Args:
        folder: the checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        config = ModelConfig(str(folder), device="cpu", dtype="float32")
        self.scorer = RewardScorer.load(config)
        self._uncached = RewardScorer.load(
            config, BatchConfig(prefix_cache_bytes=0, vision_cache_bytes=0)
        )
        self._plain = PlainVisionModel(folder, "sdpa")
        self._random = random.Random(0)
        self._runs: dict[str, Callable[[list[Messages]], list[float]]] = {
            PADDED: self._plain.score_padded,
            PLAIN: self._plain.score_all,
            UNCACHED: lambda group: [r for m in group for r in self._score(self._uncached, [m])],
            ONE_BY_ONE: lambda group: [r for m in group for r in self._score(self.scorer, [m])],
            TOGETHER: lambda group: self._score(self.scorer, group),
        }
        self._computed = 0

    def measure(self, image: Image.Image, options: argparse.Namespace) -> dict[str, Any]:
        """Measure all ways on one image."""
        names = list(self._runs)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        rewards = {name: self._runs[name](self._group(image, options.answers, 0)) for name in names}
        tower_runs: dict[str, int] = {}
        computed: dict[str, int] = {}
        for round_index in range(options.rounds):
            start = round_index % len(names)
            for name in names[start:] + names[:start]:
                group = self._group(image, options.answers, self._random.getrandbits(24))
                runs_before, self._computed = self._count_tower_runs(), 0
                started = time.process_time()
                self._runs[name](group)
                seconds[name].append(time.process_time() - started)
                tower_runs[name] = self._count_tower_runs() - runs_before
                computed[name] = self._computed
        encoded = self.scorer.encoder.encode(self._group(image, 1, 0)[0])
        assert isinstance(encoded, Encoded)
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        return {
            "image_tokens": encoded.images[0].image.num_tokens,
            "conversation_tokens": encoded.num_tokens,
            "seconds": medians,
            "times_as_fast": {name: _compare(seconds[name], seconds[TOGETHER]) for name in names},
            "tower_runs": {n: c for n, c in tower_runs.items() if n not in (PLAIN, PADDED)},
            "computed_tokens": {n: c for n, c in computed.items() if n not in (PLAIN, PADDED)},
            "largest_difference": max(
                abs(ours - plain)
                for name in names
                for ours, plain in zip(rewards[name], rewards[PLAIN], strict=True)
            ),
            "reward_range": max(rewards[PLAIN]) - min(rewards[PLAIN]),
        }

    def _score(self, scorer: RewardScorer, group: list[Messages]) -> list[float]:
        encoded = [e for e in scorer.encoder.encode_all(group) if isinstance(e, Encoded)]
        images = [placed.image for e in encoded for placed in e.images]
        result = scorer.score_ids([e.input_ids for e in encoded], images=images)
        self._computed += result.num_computed_tokens
        return [output for output in result.outputs if isinstance(output, float)]

    def _count_tower_runs(self) -> int:
        towers = [s.loaded_model.vision_tower for s in (self.scorer, self._uncached)]
        return sum(tower.num_encoded for tower in towers if tower is not None)

    def _group(self, image: Image.Image, num_answers: int, color: int) -> list[Messages]:
        """Return answers on the image with a corner of the color, which makes it another image."""
        image = image.copy()
        image.paste((color >> 16, color >> 8 & 255, color & 255), (0, 0, 32, 32))
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        question = [
            {"type": "image", "image": file.getvalue()},
            {"type": "text", "text": "Which of these statements describes the picture?"},
        ]
        return [
            [
                {"role": "user", "content": question},
                {"role": "assistant", "content": f"Statement {i}. " + "It does. " * (3 + i % 4)},
            ]
            for i in range(num_answers)
        ]


def read_cases() -> list[tuple[str, bytes]]:
    """Return names and files of one image of 1 and one of 12 megapixels, as JPEG and PNG."""
    cases = []
    for width, height in ((1_152, 864), (4_000, 3_000)):
        for kind in ("JPEG", "PNG"):
            file = io.BytesIO()
            draw(width, height).save(file, kind)
            name = f"{kind}, {width * height / 1e6:.0f} megapixels"
            cases.append((name, file.getvalue()))
    return cases


def measure_reading(scorer: RewardScorer, name: str, file: bytes, rounds: int) -> dict[str, Any]:
    """Measure the steps from a file to features; medians of alternated rounds, in seconds."""
    loaded = scorer.loaded_model
    assert loaded.vision_tower is not None
    limits = ImageLimits(max_image_bytes=2**26)  # a PNG of 12 megapixels exceeds the default
    processor = ImageProcessor(loaded.checkpoint.path, limits=limits, cache_bytes=0)
    tower = loaded.vision_tower
    image = processor.process(file, name)
    seconds: dict[str, list[float]] = {}

    def take(step: str, run: Callable[[], object]) -> None:
        started = time.process_time()
        run()
        seconds.setdefault(step, []).append(time.process_time() - started)

    for _ in range(rounds):
        take("decode", lambda: to_rgb(open_image(file, limits, name), name))
        take("all of reading", lambda: processor.process(file, name))
        take("digest of it", lambda: sha256(image.pixels).digest())
        take("pixels to tower", lambda: tower.build_pixel_values([image]))
        take("tower", lambda: tower.encode([image]))
    return {
        "file": name,
        "file_bytes": len(file),
        "tokens": image.num_tokens,
        "seconds": {step: statistics.median(times) for step, times in seconds.items()},
    }


def print_groups(groups: dict[str, Any], num_answers: int) -> None:
    """Print a line for each image."""
    print(f"\n{num_answers} answers on one image: seconds of CPU (times those of `{TOGETHER}`)")
    for name, group in groups.items():
        print(f"{name}: {group['image_tokens']} tokens, {group['conversation_tokens']} with text")
        for way, seconds in group["seconds"].items():
            middle, low, high = group["times_as_fast"][way]
            ours = way in group["tower_runs"]
            tower = f"{group['tower_runs'][way]} tower runs" if ours else ""
            computed = f"{group['computed_tokens'][way]:,} tokens computed" if ours else ""
            ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            print(f"  {way:24}{seconds:8.3f}  {ratio:22}  {tower:13}  {computed}")
        difference, spread = group["largest_difference"], group["reward_range"]
        print(f"  rewards differ by at most {difference:.1e}; they range over {spread:.2f}")


def print_reading(reading: list[dict[str, Any]]) -> None:
    """Print a line for each file."""
    print("\nMilliseconds of CPU to read an image, and of the tower")
    for row in reading:
        steps = ", ".join(f"{step} {s * 1e3:.1f}" for step, s in row["seconds"].items())
        print(f"  {row['file']} ({row['tokens']} tokens): {steps}")


def _compare(seconds: list[float], other: list[float]) -> tuple[float, float, float]:
    ratios = [a / b for a, b in zip(seconds, other, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


if __name__ == "__main__":
    main()
