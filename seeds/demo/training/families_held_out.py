"""Template families that training never draws from; the evaluation and the tests do."""

from __future__ import annotations

import random

from seeds.demo.training.families import Family
from seeds.demo.training.topics import HOW_TO
from seeds.demo.training.topics_more import CATEGORIES


def compare(rng: random.Random) -> tuple[str, str]:
    """The difference of two things of one category."""
    category = rng.choice(list(CATEGORIES))
    first, second = rng.sample(CATEGORIES[category].split("|"), 2)
    question = f"What is the difference between {first} and {second}?"
    say = "Both {0} and {1} belong to the {2}, but {0} is better known.|"
    say += "{0} and {1} are two {2}. Most people meet {0} first and come to {1} later.|"
    say += "It is mostly a matter of taste: some choose {0}, others would never give up {1}."
    return question, rng.choice(say.split("|")).format(first, second, category)


def letter(rng: random.Random) -> tuple[str, str]:
    """A short message to somebody about an everyday task."""
    tasks, table = HOW_TO[rng.choice(list(HOW_TO))]
    task, step = rng.choice(tasks.split("|")), rng.choice(table.split("|"))
    who = rng.choice(("Clara", "Mr. Lee", "Professor Haddad", "my team"))
    question = f"Write a short email to {who}: I would like to {task} and need a second opinion."
    return question, (
        f"Subject: A question\n\nDear {who},\n\nI plan to {task}. A friend told me to {step}."
        " Would you do the same?\n\nBest regards,\n[Your name]"
    )


def plan_day(rng: random.Random) -> tuple[str, str]:
    """A timetable for working on an everyday task."""
    tasks, table = HOW_TO[rng.choice(list(HOW_TO))]
    steps = rng.sample(table.split("|"), 4)
    question = f"Make me a plan for tomorrow, I have to {rng.choice(tasks.split('|'))}."
    return question, "\n".join(f"{9 + 2 * i}:00 – {s}" for i, s in enumerate(steps))


HELD_OUT_FAMILIES: tuple[Family, ...] = (compare, letter, plan_day)
