"""Options of a benchmark: variants in which its published results differ.

Each option is a choice among names; some accept a number instead. The first choice is today's
official variant and the default.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Self

from rm_core.errors import BenchmarkDataError


class Option(NamedTuple):
    """One option, as the command line shows it.

    Attributes:
        name: name of the option.
        choices: allowed values; the first is the default.
        meaning: what the option determines.
        accepts_number: whether any finite number is allowed too.
    """

    name: str
    choices: tuple[str, ...]
    meaning: str
    accepts_number: bool = False

    @property
    def values(self) -> tuple[str, ...]:
        """Allowed values, for messages."""
        return (*self.choices, "NUMBER") if self.accepts_number else self.choices

    def allows(self, value: str) -> bool:
        """Return whether a value is allowed."""
        if value in self.choices:
            return True
        with contextlib.suppress(ValueError):
            return self.accepts_number and math.isfinite(float(value))
        return False


def choice(*choices: str, meaning: str, accepts_number: bool = False) -> Any:
    """Define a field of an options class.

    Args:
        choices: allowed values; the first is the default.
        meaning: what the option determines, in words.
        accepts_number: whether any finite number is allowed too.
    """
    return field(default=choices[0], metadata={"option": (choices, meaning, accepts_number)})


@dataclass(frozen=True, slots=True)
class BenchmarkOptions:
    """Options of a benchmark without options; base of classes whose fields are `choice` fields.

    Raises:
        BenchmarkDataError: a value is not among the choices.
    """

    def __post_init__(self) -> None:
        for option in self.list_options():
            value = getattr(self, option.name)
            if not option.allows(value):
                raise BenchmarkDataError(
                    f"the option `{option.name}` is {value!r}; it must be "
                    f"{' or '.join(option.values)}: {option.meaning}"
                )

    @classmethod
    def list_options(cls) -> tuple[Option, ...]:
        """Return all options, in order."""
        return tuple(Option(item.name, *item.metadata["option"]) for item in fields(cls))

    @classmethod
    def from_strings(cls, values: Mapping[str, str]) -> Self:
        """Create options from values by name; `-` in names is read as `_`.

        Raises:
            BenchmarkDataError: a name or a value is unknown; the message lists the known ones.
        """
        options = {name.replace("-", "_"): value for name, value in values.items()}
        names = [option.name for option in cls.list_options()]
        for name in options:
            if name not in names:
                raise BenchmarkDataError(
                    f"unknown option `{name}` of this benchmark; "
                    + (f"known: {', '.join(names)}" if names else "the benchmark has no options")
                )
        return cls(**options)

    def to_dict(self) -> dict[str, str]:
        """Return the chosen values by name."""
        return {option.name: getattr(self, option.name) for option in self.list_options()}
