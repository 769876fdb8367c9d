"""Options of a benchmark: variants in which its published results differ.

Each option is a choice among names. The first choice is today's official variant and the default.
"""

from __future__ import annotations

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
    """

    name: str
    choices: tuple[str, ...]
    meaning: str


def choice(*choices: str, meaning: str) -> Any:
    """Define a field of an options class.

    Args:
        choices: allowed values; the first is the default.
        meaning: what the option determines, in words.
    """
    return field(default=choices[0], metadata={"choices": choices, "meaning": meaning})


@dataclass(frozen=True, slots=True)
class BenchmarkOptions:
    """Options of a benchmark without options; base of classes whose fields are `choice` fields.

    Raises:
        BenchmarkDataError: a value is not among the choices.
    """

    def __post_init__(self) -> None:
        for option in self.list_options():
            value = getattr(self, option.name)
            if value not in option.choices:
                raise BenchmarkDataError(
                    f"the option `{option.name}` is {value!r}; it must be "
                    f"{' or '.join(option.choices)}: {option.meaning}"
                )

    @classmethod
    def list_options(cls) -> tuple[Option, ...]:
        """Return all options, in order."""
        return tuple(
            Option(item.name, item.metadata["choices"], item.metadata["meaning"])
            for item in fields(cls)
        )

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
