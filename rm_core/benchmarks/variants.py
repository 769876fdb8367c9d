"""Options of a benchmark: where its published runs differ, each a choice among names.

The first choice is the official way today, and the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Self

from rm_core.errors import BenchmarkDataError


class Option(NamedTuple):
    """One option, as the command line shows it.

    Attributes:
        name: as it is given.
        choices: what it may be; the first is the default.
        meaning: what it decides.
    """

    name: str
    choices: tuple[str, ...]
    meaning: str


def choice(*choices: str, meaning: str) -> Any:
    """A field of an options record.

    Args:
        choices: what it may be; the first is the default.
        meaning: what it decides, for people.
    """
    return field(default=choices[0], metadata={"choices": choices, "meaning": meaning})


@dataclass(frozen=True, slots=True)
class BenchmarkOptions:
    """Of a benchmark that has none; base of those whose fields are made by `choice`.

    Raises:
        BenchmarkDataError: a value is not among the choices.
    """

    def __post_init__(self) -> None:
        for option in self.list_options():
            value = getattr(self, option.name)
            if value not in option.choices:
                raise BenchmarkDataError(
                    f"the option `{option.name}` is {value!r}; it may be "
                    f"{' or '.join(option.choices)}: {option.meaning}"
                )

    @classmethod
    def list_options(cls) -> tuple[Option, ...]:
        """All options, in their order."""
        return tuple(
            Option(item.name, item.metadata["choices"], item.metadata["meaning"])
            for item in fields(cls)
        )

    @classmethod
    def from_strings(cls, values: Mapping[str, str]) -> Self:
        """The record with these values, `-` in names read as `_`.

        Raises:
            BenchmarkDataError: a name or a value is unknown; says what there is.
        """
        given = {name.replace("-", "_"): value for name, value in values.items()}
        names = [option.name for option in cls.list_options()]
        for name in given:
            if name not in names:
                raise BenchmarkDataError(
                    f"there is no option `{name}` of this benchmark; "
                    + (f"there is {', '.join(names)}" if names else "it has none")
                )
        return cls(**given)

    def to_dict(self) -> dict[str, str]:
        """What was chosen, by name."""
        return {option.name: getattr(self, option.name) for option in self.list_options()}
