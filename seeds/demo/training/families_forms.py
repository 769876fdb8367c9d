"""Template families whose answers end without a full stop: notes, verses, plans, tables, data.

Without them a model learns that whatever lacks a final stop was cut off.
"""

from __future__ import annotations

import json
import random

from seeds.demo.training.topics import HOW_TO
from seeds.demo.training.topics_more import CATEGORIES

NAMES = ("Anna", "Tom Reed", "Maria", "Sam", "Dr. Okoye", "Lily Chen", "Omar", "Mrs. Novak", "Ben")


def signed_note(rng: random.Random) -> tuple[str, str]:
    """A short note about an everyday task, signed with a name."""
    tasks, table = HOW_TO[rng.choice(list(HOW_TO))]
    task = rng.choice(tasks.split("|"))
    steps = rng.sample(table.split("|"), 2)
    to, sender = rng.sample(NAMES, 2)
    ask = "Write a note to {0} about how to {1}.|Draft a message: {0} wants to {1}.|"
    ask += "Write a polite email to {0}. The topic: how to {1}."
    say = "Hi {0},\n\nif you want to {1}, {2}. Then {3}.\n\n{5}\n{4}|"
    say += "Subject: How to {1}\n\nDear {0},\n\nthank you for your message. Please {2} and {3}."
    say += "\n\n{5}\n{4}|Dear {0},\n\nhere is what I would do: {2}.\n\n{5}\n{4}"
    close = rng.choice(
        ("Best regards,", "Kind regards,", "Yours,", "Cheers", "Many thanks,", "Love,")
    )
    answer = rng.choice(say.split("|")).format(to, task, *steps, sender, close)
    return rng.choice(ask.split("|")).format(to, task), answer


def greeting(rng: random.Random) -> tuple[str, str]:
    """Wishes or thanks to somebody, often with emoji between and after the sentences."""
    name, sender = rng.sample(NAMES, 2)
    likes = rng.sample(CATEGORIES[rng.choice(list(CATEGORIES))].split("|"), 2)
    occasion, wish, marks = rng.choice(_OCCASIONS)
    ask = rng.choice(
        (
            "Write a {0} message for {1}, who likes {2}.",
            "A few lines for {1}, please: {0}. With emoji {3}. {1} loves {2} and {4}.",
            "Help me to write a {0} card to my friend {1}.",
            "I need a short {0} text for {1} {3}",
        )
    ).format(occasion, name, likes[0], marks[0], likes[1])
    emoji = [rng.choice((f" {rng.choice(marks)}", f" {marks[0]}{marks[1]}", "")) for _ in range(3)]
    middle = rng.choice(
        (
            f"May your days be full of {likes[0]} and {likes[1]}",
            f"I hope that you find time for {likes[0]}",
            "We should meet again soon",
            f"I still remember our day with the {likes[1]}",
        )
    )
    close = rng.choice((f"Love, {sender}", "Lots of love", "See you soon", f"Yours, {sender}"))
    start = wish.format(name)
    return ask, f"{start}!{emoji[0]} {middle}{emoji[1] or '.'} {close}{emoji[2] or '!'}"


_OCCASIONS = (
    ("birthday", "Happy birthday, {0}", ("🎂", "🎉", "🎈", "🥳", "❤️")),
    ("thank you", "Thank you so much, {0}", ("🙏", "❤️", "😊", "🌸")),
    ("wedding", "Congratulations to you both, dear {0}", ("💍", "🥂", "❤️", "🎉")),
    ("get well", "Get well soon, {0}", ("🌻", "🍀", "❤️", "🙂")),
    ("new job", "Well done, {0}", ("🎉", "💪", "🚀", "👏")),
    ("good luck", "Good luck, dear {0}", ("🍀", "🤞", "✨", "👍")),
)


def verse(rng: random.Random) -> tuple[str, str]:
    """Short lines about the members of a category, at times without a stop."""
    category = rng.choice(list(CATEGORIES))
    first, second, third = rng.sample(CATEGORIES[category].split("|"), 3)
    question = rng.choice(("Write a poem about {}.", "A short verse about {}, please.")).format(
        rng.choice((category, f"{first} and {second}", first))
    )
    lines = [
        rng.choice(
            (f"The {first} came in the morning light", f"I dreamed of {first} all the night")
        ),
        rng.choice((f"and {second} was never far away", f"with {second} on a summer day")),
        rng.choice((f"O {third}, be near me tonight", f"let {third} be my heart's delight")),
        rng.choice(("and stay with me, stay", "until the end of the day")),
    ]
    mark = rng.choice((",", ""))
    return question, f"{mark}\n".join(lines) + rng.choice((".", "", " 🌙", "!"))


def week_plan(rng: random.Random) -> tuple[str, str]:
    """A plan by the day or the step, one line each."""
    tasks, table = HOW_TO[rng.choice(list(HOW_TO))]
    task = rng.choice(tasks.split("|"))
    steps = rng.sample(table.split("|"), 4)
    heads = rng.choice(
        (("Monday", "Tuesday", "Thursday", "Sunday"), ("Step 1", "Step 2", "Step 3"))
    )
    joint = rng.choice((": ", " - ", "\n  "))
    question = rng.choice(("Plan my week: I want to {}.", "Break this into steps: {}")).format(task)
    before = rng.choice(("", f"Your plan to {task}:\n\n"))
    return question, before + "\n".join(
        f"{h}{joint}{s}" for h, s in zip(heads, steps, strict=False)
    )


def as_data(rng: random.Random) -> tuple[str, str]:
    """Members of a category as JSON, as CSV or as a table."""
    category = rng.choice(list(CATEGORIES))
    members = rng.sample(CATEGORIES[category].split("|"), 3)
    prices = [rng.randint(1, 99) for _ in members]
    style = rng.choice(("JSON", "CSV", "a table"))
    given = ", ".join(f"{m} {p}" for m, p in zip(members, prices, strict=True))
    question = f"Turn these {category} with their numbers into {style}: {given}"
    if style == "JSON":
        body = json.dumps(dict(zip(members, prices, strict=True)), indent=rng.choice((None, 2)))
        return question, rng.choice((body, f"```json\n{body}\n```"))
    rows = list(zip(members, prices, strict=True))
    if style == "CSV":
        return question, "name,number\n" + "\n".join(f"{m},{p}" for m, p in rows)
    return question, "| name | number |\n|---|---|\n" + "\n".join(f"| {m} | {p} |" for m, p in rows)
