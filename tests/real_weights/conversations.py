"""Conversations for the checks on real weights: groups of answers, several turns, long, code.

Real prose, written for this purpose, so that activations are those of real text. With `--data` the
checks read rows of published benchmarks instead; nothing of those is part of the project.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

Messages = list[dict[str, Any]]
ROOT = Path(__file__).resolve().parent.parent.parent

# One prompt each, and answers that differ in quality, length or wording.
GROUPS: dict[str, tuple[str, list[str]]] = {
    "kettle": (
        "My electric kettle has white flakes in it after a few months. Are they dangerous, and how "
        "do I get rid of them without buying a special product?",
        [
            "The flakes are limescale, mostly calcium carbonate from hard water. They are "
            "harmless, though they make tea look cloudy and let the kettle use more energy. Fill "
            "it halfway with equal parts of water and white vinegar, bring it to the boil, leave "
            "it for half an hour, pour it out and boil fresh water twice to remove the taste. "
            "Citric acid, a tablespoon to a litre of water, works as well and smells less.",
            "They are limescale. Boil a mixture of vinegar and water, wait, and rinse.",
            "The flakes are pieces of the plastic coating that come off when the kettle is old. "
            "Throw the kettle away at once and see a doctor if you drank from it.",
            "Kettles are wonderful. In many countries people drink tea in the afternoon, and the "
            "history of tea is long and interesting. There are green teas and black teas.",
        ],
    ),
    "average": (
        "A cyclist rides 30 km at 20 km/h and then the same 30 km back at 30 km/h. What is the "
        "average speed of the whole trip? Explain briefly.",
        [
            "The way out takes 30/20 = 1.5 hours and the way back 30/30 = 1 hour, so the whole "
            "60 km take 2.5 hours. The average speed is 60/2.5 = 24 km/h. It is below 25 km/h "
            "because more time is spent at the lower speed.",
            "Average speed is total distance over total time: 60 km / 2.5 h = 24 km/h.",
            "The average of 20 and 30 is 25, so the average speed is 25 km/h.",
            "The way out takes 30/20 = 1.5 hours and the way back 30/30 = 1 hour, so the whole "
            "60 km take 2.5 hours. The average speed is 60/2.5 = 26 km/h. It is above 25 km/h "
            "because more time is spent at the higher speed.",
        ],
    ),
    "deadlock": (
        "Two threads of my program each lock a first mutex and then a second one, in opposite "
        "orders, and sometimes the program hangs. What is going on and what is the usual fix?",
        [
            "That is a deadlock: each thread holds the lock that the other one waits for, so "
            "neither can go on. It happens only when both have taken their first lock before "
            "either takes its second, which is why you see it sometimes. The usual fix is a fixed "
            "order: every thread takes the mutexes in the same order, for example by address. In "
            "C++ `std::scoped_lock lock(a, b);` takes both without deadlock.",
            "It is a deadlock. Take the locks in the same order everywhere.",
            "It is a race condition on the mutexes. Add a third mutex around nothing in "
            "particular, or call sleep(1) before the second lock so that they do not meet.",
            "Your computer is too slow. Buy one with more cores and the hanging will stop, since "
            "each thread then has a core of its own.",
        ],
    ),
    "letter": (
        "Write two or three sentences to a neighbour whose dog barks at night. Stay friendly.",
        [
            "Hello Ms Weber, I hope you are well! I wanted to mention that Bruno has been barking "
            "between two and four in the last few nights, and I can hear it in my bedroom. Is "
            "there anything that keeps him calmer at night? I would be glad to help, for example "
            "with a walk in the evening.",
            "Dear neighbour, your dog barks at night and I cannot sleep. Could we look for a "
            "solution together? Thank you very much.",
            "Your dog is a nuisance. If it barks once more I will call the police and a lawyer, "
            "and you will be sorry that you ever moved here.",
            "Dogs bark for many reasons: boredom, fear, noise, hunger. A dog of average size "
            "needs about two hours of exercise a day.",
        ],
    ),
}

CODE = """def merge(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
"""


def talk(*turns: str, system: str | None = None) -> Messages:
    """A conversation of these texts, the user's first."""
    messages: Messages = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return messages + [
        {"role": roles[index % 2], "content": text} for index, text in enumerate(turns)
    ]


def licence_text(num_characters: int) -> str:
    """The start of the project's licence, as a long text that everybody has."""
    return (ROOT / "LICENSE").read_text(encoding="utf-8")[:num_characters]


MANY_TURNS = talk(
    "I want to grow tomatoes on a balcony that faces east. Is that enough sun?",
    "With six hours of morning sun it usually is. Choose a cherry variety: small fruit ripens with "
    "less light and warmth than beefsteak tomatoes need.",
    "How large should the pots be, and what soil do I take?",
    "At least 15 litres each, with holes at the bottom. Ordinary vegetable compost is fine; mix in "
    "some sand or perlite so that water drains, and a handful of organic fertilizer.",
    "The leaves at the bottom turn yellow now. The plants are about a metre high.",
    "Yellow leaves at the bottom are common once a plant is that high. If only the oldest ones are "
    "affected, it moves its nitrogen upwards: feed it every week with tomato fertilizer and remove "
    "those leaves. If there are brown rings on them, it is early blight: cut them off, water the "
    "soil and not the leaves, and let air between the plants.",
    system="You are a gardener who answers in a few plain sentences.",
)


def own_groups() -> dict[str, list[Messages]]:
    """Answers to one prompt each, by the group's name."""
    return {
        name: [talk(prompt, answer) for answer in answers]
        for name, (prompt, answers) in GROUPS.items()
    }


def own_singles() -> dict[str, Messages]:
    """Conversations that share nothing: long, of several turns, code, other scripts."""
    return {
        "several turns": MANY_TURNS,
        "long text": talk(
            "Summarize this licence in one sentence:\n\n" + licence_text(4_000),
            "It lets you use, change and distribute the work freely if you keep its notices, and "
            "it grants you the patents that the contributors have in it.",
        ),
        "code": talk(
            "Write a function that merges overlapping intervals.",
            f"Sort them by their start, then extend or append:\n\n```python\n{CODE}```\n\nSorting "
            "takes O(n log n), the pass over the list O(n).",
        ),
        "other scripts": talk(
            "请用中文解释为什么天空是蓝色的，并给出一个英文总结。",
            "阳光穿过大气层时，空气分子对短波长的蓝光散射得更强，所以天空看起来是蓝色的。🌤️\n"
            "Summary: air scatters short (blue) waves more than long ones. Übrigens: naïve café.",
        ),
        "empty answer": talk("Say nothing.", ""),
    }


def published_groups(data: Path, num_groups: int) -> dict[str, list[Messages]]:
    """Prompts of RM-Bench with two of their responses each.

    Args:
        data: folder with `rm-bench/*_filtered.json`.
        num_groups: how many prompts; drawn with a fixed seed.

    Raises:
        FileNotFoundError: there are no such files.
    """
    files = sorted((data / "rm-bench").glob("*_filtered.json"))
    if not files:
        raise FileNotFoundError(f"{data} has no rm-bench/*_filtered.json")
    rows = [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))]
    drawn = random.Random(0).sample(rows, num_groups)
    return {
        f"rm-bench {number}": [talk(row["prompt"], row[side][1]) for side in ("chosen", "rejected")]
        for number, row in enumerate(drawn)
    }
