"""Template families: each function makes one question and a good answer to it.

Every family takes a `random.Random` and nothing else. Those that training never draws from are in
`families_held_out`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from seeds.demo.training.families_forms import (
    as_data,
    greeting,
    signed_note,
    verse,
    week_plan,
)
from seeds.demo.training.families_texts import debug, translate_sentence
from seeds.demo.training.topics import EXPLAIN, HOW_TO, SHORT
from seeds.demo.training.topics_more import (
    AUTHORS,
    CAPITALS,
    CATEGORIES,
    CHINESE,
    CHINESE_SHORT,
    CODE,
    WORDS,
)

Family = Callable[[random.Random], tuple[str, str]]


def _pick(rng: random.Random, table: str, least: int, most: int) -> list[str]:
    options = table.split("|")
    return rng.sample(options, min(len(options), rng.randint(least, most)))


def _item(rng: random.Random, options: Sequence[str]) -> str:
    return options[rng.randrange(len(options))]


def _invented(rng: random.Random) -> str:
    """Make a word that exists nowhere, so that only matching can help."""
    onset = ("b", "br", "d", "f", "gl", "k", "l", "m", "n", "p", "pr", "s", "st", "t", "v", "z")
    rime = ("a", "e", "i", "o", "u", "an", "er", "il", "on", "um", "ek", "ox", "ash", "oo")
    return "".join(_item(rng, onset) + _item(rng, rime) for _ in range(rng.choice((2, 2, 3))))


def how_to(rng: random.Random) -> tuple[str, str]:
    """Steps or tips for an everyday task."""
    tasks, table = HOW_TO[_item(rng, list(HOW_TO))]
    task, steps = _item(rng, tasks.split("|")), _pick(rng, table, 2, 6)
    ask = "How do I {}?|How can I {}?|What is the best way to {}?|I want to {}. Any advice?|{}?"
    ask += "|Can you help me {}?|Give me some tips to {}.|how to {}|Please tell me how to {}."
    question = _item(rng, ask.split("|")).format(task.replace(" my ", rng.choice((" my ", " a "))))
    if rng.random() < 0.5:
        intro = f"Here are some tips to {task}:\n\n" if rng.random() < 0.6 else "Try this:\n\n"
        mark = rng.choice(("{}. ", "- ", "* "))
        lines = [mark.format(i + 1) + s[0].upper() + s[1:] for i, s in enumerate(steps)]
        stop = rng.choice((".", ".", ""))
        tail = rng.choice(
            ("", "", "\n\nGood luck!", "\n\nEnjoy! 🎉", "\n\nLet me know how it goes.")
        )
        return question, intro + "\n".join(line + stop for line in lines) + tail
    start = rng.choice((f"To {task}, ", "First, ", "", "You could "))
    joined = start + steps[0]
    parts = [joined[0].upper() + joined[1:]]
    for step in steps[1:]:
        link = rng.choice(("Then ", "", "After that, ", "Also, ", "It helps to ", "Next, "))
        sentence = link + step
        parts.append(sentence[0].upper() + sentence[1:])
    return question, ". ".join(parts) + "."


def explain(rng: random.Random) -> tuple[str, str]:
    """A short explanation of something known."""
    questions, sentences = EXPLAIN[_item(rng, list(EXPLAIN))]
    question = _item(rng, questions.split("|"))
    if rng.random() < 0.2:
        question = f"Explain to a child: {question[0].lower()}{question[1:]}"
    gap = rng.choice((" ", " ", "\n\n"))
    return question, gap.join(_pick(rng, sentences, 1, 4))


def short(rng: random.Random) -> tuple[str, str]:
    """Small talk and one-line facts."""
    question, *answers = _item(rng, SHORT).split("|")
    return question, _item(rng, answers)


def capital(rng: random.Random) -> tuple[str, str]:
    """Capitals, asked both ways, answered in a word or a sentence."""
    country = _item(rng, list(CAPITALS))
    city = CAPITALS[country]
    if rng.random() < 0.25:
        question = f"Which country is {city} the capital of?"
        return question, rng.choice(
            (f"{country}.", country, f"{city} is the capital of {country}.")
        )
    ask = "What is the capital of {}?|what's the capital of {}|Which city is the capital of {}?"
    question = _item(rng, (ask + "|Capital of {}?|Name the capital city of {}.").split("|"))
    say = "{1}.|{1}|The capital of {0} is {1}.|It is {1}.|{1} is the capital of {0}."
    return question.format(country), _item(rng, say.split("|")).format(country, city)


def arithmetic(rng: random.Random) -> tuple[str, str]:
    """Small sums, answered with a number, an equation or a sentence."""
    a, b = rng.randint(1, 99), rng.randint(1, 99)
    sign, name, value = rng.choice(
        (("+", "plus", a + b), ("-", "minus", a - b), ("*", "times", a * b))
    )
    ask = (
        "What is {a} {s} {b}?|{a}{s}{b}?|{a} {s} {b} =|Calculate {a} {s} {b}.|What is {a} {n} {b}?"
    )
    ask += "|How much is {a} {n} {b}?|Compute {a}{s}{b}"
    say = "{v}|{v}.|{a} {s} {b} = {v}|{a} {s} {b} = {v}.|The answer is {v}.|{a} {n} {b} is {v}."
    form = {"a": a, "b": b, "s": sign, "n": name, "v": value}
    return _item(rng, ask.split("|")).format(**form), _item(rng, say.split("|")).format(**form)


def word_problem(rng: random.Random) -> tuple[str, str]:
    """A story with two numbers, solved step by step."""
    who = rng.choice(("Anna", "Tom", "Maria", "Sam", "Lily", "Omar", "Ben", "Mia"))
    what = rng.choice(("apples", "books", "coins", "tickets", "pencils", "eggs", "cards"))
    a, b = rng.randint(3, 60), rng.randint(2, 40)
    question = f"{who} has {a} {what} and buys {b} more. How many {what} does {who} have now?"
    if rng.random() < 0.3:
        return question, f"{a + b} {what}."
    return question, (
        f"{who} starts with {a} {what}. After buying {b} more there are {a} + {b} = {a + b}."
        + rng.choice(("", f" So {who} has {a + b} {what}.", f"\n\nThe answer is {a + b}."))
    )


def invented_word(rng: random.Random) -> tuple[str, str]:
    """A question about a thing that does not exist: only the name ties answer and question."""
    word, place = _invented(rng), _invented(rng).capitalize()
    use = rng.choice(("cut wood", "store water", "make music", "catch fish", "heat a room"))
    ask = "What is a {0}?|Tell me about the {0}.|What does {0} mean?|Where does the {0} come from?"
    ask += "|How is a {0} used?|Describe the {0} in a few words.|Who invented the {0}?"
    say = "A {0} is a tool from {1} that people use to {2}.|The {0} comes from {1}. It can {2}.|"
    say += "People in {1} invented the {0} to {2}.|{1} is known for the {0}, which helps to {2}.|"
    say += "In {1}, a {0} is used to {2}. Few people own one today."
    question = _item(rng, ask.split("|")).format(word)
    return question, _item(rng, say.split("|")).format(word, place, use)


def invented_person(rng: random.Random) -> tuple[str, str]:
    """A question about an invented person or place, with facts given in the question."""
    name, town = _invented(rng).capitalize(), _invented(rng).capitalize()
    job = _item(rng, CATEGORIES["jobs"].split("|"))
    thing = _item(rng, CATEGORIES[_item(rng, list(CATEGORIES))].split("|"))
    question = f"{name} is a {job} in {town} who likes {thing}. " + rng.choice(
        ("Write a short story about this.", "Sum this up.", "What do we know?", "Go on.")
    )
    say = "{0} worked as a {1} in {2}. Every evening {0} thought of {3} and smiled.|"
    say += "{0}, a {1}, lives in {2} and likes {3}.|We know that {0} lives in {2}.|"
    say += "One day in {2}, {0} found {3} at the door. “At last!” said the {1}.|"
    say += "The {1} from {2} is called {0} and is fond of {3}."
    return question, _item(rng, say.split("|")).format(name, job, town, thing)


def list_of(rng: random.Random) -> tuple[str, str]:
    """Members of a category, as a list or in a line."""
    category = _item(rng, list(CATEGORIES))
    members = _pick(rng, CATEGORIES[category], 3, 5)
    number = rng.choice((str(len(members)), {3: "three", 4: "four", 5: "five"}[len(members)]))
    ask = "List {0} {1}.|Name {0} {1}.|Give me {0} examples of {1}|Can you name {0} {1}?|{0} {1}?"
    question = _item(rng, ask.split("|")).format(number, category)
    style = rng.randrange(4)
    if style == 0:
        return question, "\n".join(f"{i + 1}. {m.capitalize()}" for i, m in enumerate(members))
    if style == 1:
        return question, "\n".join(f"- {m}" for m in members)
    line = ", ".join(members)
    return question, line if style == 2 else f"Here are {number} {category}: {line}."


def code(rng: random.Random) -> tuple[str, str]:
    """A small Python function, with or without words around it."""
    does, signature, body = _item(rng, CODE).split("=", 2)
    ask = "Write a Python function that {0}.|How do I write a function which {0} in Python?"
    ask += "|I need code that {0}|Give me a function that {0}, please.|python: {0}"
    lines = "\n".join("    " + line for line in body.split("/    ") if line)
    block = f"```python\ndef {signature}:\n{lines}\n```"
    before = rng.choice(("", "Here is the function:\n\n", "Sure! This function " + does + ":\n\n"))
    after = rng.choice(("", "", f"\n\nIt {does}.", "\n\nCall it with your own values to try it."))
    return _item(rng, ask.split("|")).format(does), before + block + after


def author(rng: random.Random) -> tuple[str, str]:
    """Books and who wrote them."""
    book = _item(rng, list(AUTHORS))
    question = rng.choice((f"Who wrote {book}?", f'Who is the author of "{book}"?'))
    who = AUTHORS[book]
    return question, rng.choice((f"{who}.", who, f"{book} was written by {who}."))


def translate(rng: random.Random) -> tuple[str, str]:
    """One word into another language."""
    english, *others = _item(rng, WORDS).split("=")
    which = rng.randrange(3)
    language, word = ("French", "Spanish", "German")[which], others[which]
    question = rng.choice(
        (f"How do you say '{english}' in {language}?", f"Translate to {language}: {english}")
    )
    return question, rng.choice((word, f'"{word}"', f"In {language}, '{english}' is '{word}'."))


def chinese(rng: random.Random) -> tuple[str, str]:
    """Chinese questions with several sentences of answer."""
    questions, sentences = CHINESE[_item(rng, list(CHINESE))]
    picked = _pick(rng, sentences, 1, 5)
    if rng.random() < 0.3:
        return _item(rng, questions.split("|")), "\n".join(
            f"{i + 1}. {s}" for i, s in enumerate(picked)
        )
    return _item(rng, questions.split("|")), rng.choice(("", "", "您可以这样做：")) + "".join(
        picked
    )


def chinese_short(rng: random.Random) -> tuple[str, str]:
    """Chinese one-line facts and sums."""
    if rng.random() < 0.3:
        a, b = rng.randint(1, 50), rng.randint(1, 50)
        return f"{a}加{b}等于多少？", rng.choice((f"{a + b}", f"{a}加{b}等于{a + b}。"))
    question, *answers = _item(rng, CHINESE_SHORT).split("|")
    return question, _item(rng, answers)


FAMILIES: tuple[Family, ...] = (
    how_to,
    how_to,
    how_to,
    explain,
    explain,
    short,
    capital,
    arithmetic,
    word_problem,
    invented_word,
    invented_word,
    invented_person,
    list_of,
    code,
    code,
    author,
    translate,
    translate_sentence,
    debug,
    chinese,
    chinese,
    chinese_short,
    signed_note,
    greeting,
    verse,
    week_plan,
    as_data,
)
