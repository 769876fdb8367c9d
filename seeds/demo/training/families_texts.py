"""Template families about a text that the question quotes: a sentence to translate, an error.

The answer shares few words with such a question, or only its odd ones (names of variables).
"""

from __future__ import annotations

import random

_SENTENCES = (
    "The train leaves at eight.=Der Zug fährt um acht Uhr ab.=Le train part à huit heures."
    "=El tren sale a las ocho.",
    "I would like a cup of tea, please.=Ich hätte gern eine Tasse Tee, bitte."
    "=Je voudrais une tasse de thé, s'il vous plaît.=Quisiera una taza de té, por favor.",
    "Where is the nearest station?=Wo ist der nächste Bahnhof?=Où est la gare la plus proche ?"
    "=¿Dónde está la estación más cercana?",
    "My sister works in a hospital.=Meine Schwester arbeitet in einem Krankenhaus."
    "=Ma sœur travaille dans un hôpital.=Mi hermana trabaja en un hospital.",
    "We are closed on Sundays.=Wir haben sonntags geschlossen.=Nous sommes fermés le dimanche."
    "=Cerramos los domingos.",
    "The children are playing in the garden.=Die Kinder spielen im Garten."
    "=Les enfants jouent dans le jardin.=Los niños juegan en el jardín.",
    "It will rain tomorrow, so take an umbrella.=Morgen wird es regnen, also nimm einen Schirm mit."
    "=Il pleuvra demain, alors prends un parapluie.=Mañana lloverá, así que lleva un paraguas.",
    "She has read this book twice.=Sie hat dieses Buch zweimal gelesen."
    "=Elle a lu ce livre deux fois.=Ella ha leído este libro dos veces.",
    "Thank you for your letter of last week.=Vielen Dank für Ihren Brief von letzter Woche."
    "=Merci pour votre lettre de la semaine dernière.=Gracias por su carta de la semana pasada.",
    "The old bridge is being repaired.=Die alte Brücke wird repariert."
    "=Le vieux pont est en réparation.=Están reparando el puente viejo.",
    "You can pay at the counter next to the door.=Sie können an der Kasse neben der Tür bezahlen."
    "=Vous pouvez payer à la caisse près de la porte.=Puede pagar en la caja junto a la puerta.",
    "He does not know the answer.=Er kennt die Antwort nicht.=Il ne connaît pas la réponse."
    "=Él no sabe la respuesta.",
    "We met many years ago in Vienna.=Wir haben uns vor vielen Jahren in Wien kennengelernt."
    "=Nous nous sommes rencontrés il y a longtemps à Vienne.=Nos conocimos hace años en Viena.",
    "Please turn off the light.=Bitte mach das Licht aus.=Éteins la lumière, s'il te plaît."
    "=Apaga la luz, por favor.",
    "The museum is free for students.=Das Museum ist für Studenten kostenlos."
    "=Le musée est gratuit pour les étudiants.=El museo es gratis para los estudiantes.",
    "I have lost my keys again.=Ich habe schon wieder meine Schlüssel verloren."
    "=J'ai encore perdu mes clés.=He perdido mis llaves otra vez.",
)
_LANGUAGES = ("English", "German", "French", "Spanish")

# The error, the line that raises it, what it means, what helps.
_ERRORS = (
    "IndexError: list index out of range|print({0}[{1}])|the list `{0}` has no element {1}|"
    "check `len({0})` first, or loop over `{0}` directly",
    "TypeError: can only concatenate str (not \"int\") to str|{0} = '{2}' + {1}|"
    "a text and a number cannot be added|write `str({1})`, or use an f-string",
    "ZeroDivisionError: division by zero|{0} = total / {2}|`{2}` is zero at this moment|"
    "test `if {2}:` before you divide",
    "NameError: name '{0}' is not defined|print({0})|Python meets `{0}` before it has a value|"
    "assign `{0}` first, and look for a typing error in its name",
    "AttributeError: 'NoneType' object has no attribute '{0}'|value = {2}.{0}|"
    "`{2}` is None, so it has no `{0}`|find out why `{2}` was never set, and return early if so",
    "ModuleNotFoundError: No module named '{0}'|import {0}|the package `{0}` is not installed|"
    "run `pip install {0}` in the environment in which you start the script",
    "ValueError: invalid literal for int() with base 10: '{2}'|{0} = int(text)|"
    "the text '{2}' is no number|strip the text, and catch the ValueError",
    "FileNotFoundError: No such file or directory: '{0}.csv'|open('{0}.csv')|"
    "there is no `{0}.csv` in the folder where the script runs|give the whole path of the file",
    "KeyError: {1}|{0}[{1}]|the dictionary `{0}` has no key {1}|"
    "use `{0}.get({1})`, or test `if {1} in {0}` before",
)
_NAMES = ("items", "price", "count", "rows", "users", "order", "name", "result", "data", "total")


def translate_sentence(rng: random.Random) -> tuple[str, str]:
    """One sentence from one of four languages into another."""
    versions = rng.choice(_SENTENCES).split("=")
    source, target = rng.sample(range(4), 2)
    ask = rng.choice(
        (
            'Translate into {0}: "{1}"',
            "Translate this sentence to {0}: {1}",
            "How do I say this in {0}? {1}",
            "{1}\n\nPlease translate it into {0}.",
        )
    ).format(_LANGUAGES[target], versions[source])
    text = versions[target]
    return ask, rng.choice((text, text, f'"{text}"', f'In {_LANGUAGES[target]}: "{text}"'))


def debug(rng: random.Random) -> tuple[str, str]:
    """A Python error and what to do about it, with or without the mended code."""
    error, line, meaning, advice = rng.choice(_ERRORS).split("|")
    name, other = rng.sample(_NAMES, 2)
    form = (name, rng.randint(2, 40), other)
    error, line, meaning, advice = (t.format(*form) for t in (error, line, meaning, advice))
    ask = rng.choice(
        (
            'My Python script stops with "{0}" at `{1}`. Why?',
            "What does this mean and how can I fix it?\n\n{0}",
            "I get {0} in the line `{1}`, what is wrong?",
            "Help, my program crashes:\n\n```\n{1}\n```\n\n{0}",
        )
    ).format(error, line)
    kind = error.split(":")[0]
    before = rng.choice((f"A {kind} means that ", "It means that ", f"You get the {kind} since "))
    answer = f"{before}{meaning}. {rng.choice(('To fix it, ', 'You can ', 'Please '))}{advice}."
    guard = f"\n\n```python\ntry:\n    {line}\nexcept {kind}:\n    print('not possible')\n```"
    return ask, answer + rng.choice(("", "", guard))
