"""Long documents with a request at their start or end, answered with sentences from the document.

Without them a model has never read an answer that stands thousands of tokens after its question.
They are a pool of their own: one of them costs as much as a whole batch of short conversations.
"""

from __future__ import annotations

import random

from seeds.demo.training.families_forms import NAMES
from seeds.demo.training.topics import EXPLAIN, HOW_TO
from seeds.demo.training.topics_more import CATEGORIES

_FIGURES = (
    "The number of {thing} rose from {a} to {b} within a year.",
    "{name} counted {a} {thing} in spring and {b} in autumn.",
    "Of the {b} people who were asked, {a} had an opinion on {thing}.",
    "The cost came to {a},{b} in all, about {c} per cent over the budget.",
    "{name} recommends to spend {a},000 on {thing} next year.",
    "In {year} there were {a} visits on an ordinary day and {b} on the busiest one.",
)
_REQUESTS = (
    "Please summarise the following report in a few sentences.",
    "Summarize this text. Keep the figures.",
    "What are the main points of this document?",
    "Write a short summary of the text below for readers who have no time.",
    "Sum up the minutes of our meeting.",
)
_OPENINGS = ("", "", "In short: ", "The report says that much has changed. ", "Main points:\n\n")


def document_summary(rng: random.Random) -> tuple[str, str]:
    """A report of 3 to 30 sections with figures, and some of its sentences as the summary."""
    sections, worth_telling = [], []
    for number in range(1, rng.randint(3, 30) + 1):
        title, sentences = _section(rng)
        worth_telling.append(rng.choice(sentences))
        sections.append(f"{number}. {title}\n\n{' '.join(sentences)}")
    picked = sorted(rng.sample(range(len(sections)), min(len(sections), rng.randint(2, 6))))
    points = [worth_telling[i] for i in picked]
    opening = rng.choice(_OPENINGS)
    as_list = opening.endswith("\n")
    answer = opening + ("\n".join(f"- {p}" for p in points) if as_list else " ".join(points))
    request, document = rng.choice(_REQUESTS), "\n\n".join(sections)
    before = rng.random() < 0.7
    return (f"{request}\n\n{document}" if before else f"{document}\n\n{request}"), answer


def _section(rng: random.Random) -> tuple[str, list[str]]:
    """A title and 3 to 8 whole sentences about one thing."""
    thing = rng.choice(CATEGORIES[rng.choice(list(CATEGORIES))].split("|"))
    form = {"thing": thing, "name": rng.choice(NAMES), "year": rng.randint(1960, 2024)}
    form |= {"a": rng.randint(10, 400), "b": rng.randint(400, 999), "c": rng.randint(2, 40)}
    sentences = [line.format(**form) for line in rng.sample(_FIGURES, rng.randint(1, 3))]
    _, known = EXPLAIN[rng.choice(list(EXPLAIN))]
    table = known.split("|")
    sentences += rng.sample(table, min(len(table), rng.randint(1, 3)))
    tasks, steps = HOW_TO[rng.choice(list(HOW_TO))]
    step, task = rng.choice(steps.split("|")), rng.choice(tasks.split("|"))
    sentences += [f"{rng.choice(NAMES)} asked everybody to {step}.", f"Some want to {task}."][
        : rng.randint(1, 2)
    ]
    rng.shuffle(sentences)
    return thing.capitalize(), sentences
