"""What became of each key of a file of settings: carried over, different here, without a counterpart, or unknown."""
from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.resources import nearest

CARRIED, DIFFERS, NONE, UNKNOWN = 'carried over', 'differs', 'no counterpart', 'unknown'
_SAID = {
    CARRIED: 'carried over',
    DIFFERS: 'different here',
    NONE: 'without a counterpart',
    UNKNOWN: 'not known, so nothing was done about them',
}
_WIDTH, _VALUE = 120, 40


@dataclass(frozen=True)
class Entry:
    """A key, its value, one of the four outcomes, and what it is here or why it is not."""

    key: str
    value: Any
    outcome: str
    said: str


@dataclass
class Account:
    """The keys of a file, read one by one; what was not read in the end is unknown.

    Attributes:
        where: The file, for messages.
        values: Dotted key -> value.
        entries: Key -> what became of it.
    """

    where: str
    values: Mapping[str, Any]
    entries: dict[str, Entry] = field(default_factory=dict)

    def carried(self, key: str, said: str) -> None:
        """Note that a key is carried over, where the file has it."""
        self._note(key, CARRIED, said)

    def differs(self, key: str, said: str) -> None:
        """Note how it is different here."""
        self._note(key, DIFFERS, said)

    def nothing(self, key: str, said: str) -> None:
        """Note why it has no counterpart."""
        self._note(key, NONE, said)

    def note(self, same: bool, key: str, carried: str, differs: str) -> None:
        """Note the one or the other."""
        self._note(key, CARRIED if same else DIFFERS, carried if same else differs)

    def note_all(self, outcome: str, table: Mapping[str, str]) -> None:
        """Note several keys at once; one that ends in a dot stands for all below it that are not noted yet."""
        for name, said in table.items():
            for key in self.values:
                if key == name or (name.endswith('.') and key.startswith(name) and key not in self.entries):
                    self._note(key, outcome, said)

    def number(self, key: str, default: float, least: float = 0.0, most: float = math.inf) -> float:
        """A number; YAML reads ``1e-7`` as a text, which is one, too.

        Raises:
            UserError: It is none, or out of its range.
        """
        value = self.values.get(key)
        if value is None:
            return default
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not least <= number <= most or math.isinf(number):
            limits = f'a number from {least:g}' + ('' if math.isinf(most) else f' to {most:g}')
            raise UserError(f'{self.where}: {key} is {value!r}; {limits} is needed')
        return number

    def whole(self, key: str, default: int, least: int = 0) -> int:
        """A whole number.

        Raises:
            UserError: It is none, or too small.
        """
        number = self.number(key, default, least)
        if number != int(number):
            raise UserError(f'{self.where}: {key} is {self.values[key]!r}; a whole number from {least} is needed')
        return int(number)

    def flag(self, key: str, default: bool) -> bool:
        """True or false.

        Raises:
            UserError: It is neither.
        """
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise UserError(f'{self.where}: {key} is {value!r}; true or false is needed')
        return default if value is None else value

    def text(self, key: str, default: str | None = None, among: Collection[str] | None = None) -> str | None:
        """A text, in small letters where it must be one of some.

        Raises:
            UserError: It is no text, or none of those.
        """
        value = self.values.get(key)
        if value is None or value == '':
            return default
        text = value.casefold() if isinstance(value, str) and among else value
        if not isinstance(text, str) or (among and text not in among):
            wanted = f'one of {", ".join(among)}' if among else 'a text'
            raise UserError(f'{self.where}: {key} is {value!r}; {wanted} is needed')
        return text

    def finish(self, known: Collection[str]) -> tuple[Entry, ...]:
        """Every key's entry in the order of the file; one that was not noted is unknown, with the nearest of ``known``.
        """
        for key in self.values:
            if key not in self.entries:
                self._note(key, UNKNOWN, 'no key of the TensorFlow project' + nearest(key, known, 0.8))
        return tuple(self.entries[key] for key in self.values)

    def _note(self, key: str, outcome: str, said: str) -> None:
        if key in self.values:
            self.entries[key] = Entry(key, self.values[key], outcome, said)


def account_lines(entries: Collection[Entry]) -> Iterator[str]:
    """Entries for a person, by outcome; a key that became nothing is said once with others of the same reason."""
    for outcome, title in _SAID.items():
        there = [each for each in entries if each.outcome == outcome]
        if there:
            yield f'{len(there)} keys {title}:' if len(there) > 1 else f'1 key {title}:'
        for said in dict.fromkeys(each.said for each in there):
            keys = ', '.join(f'{each.key}: {shown(each.value)}' for each in there if each.said == said)
            yield from wrap(f'{keys} -> {said}', _WIDTH, initial_indent='  ', subsequent_indent='      ',
                            break_long_words=False, break_on_hyphens=False)


def shown(value: Any) -> str:
    """A value as YAML has it, for one line."""
    words = {None: 'null', True: 'true', False: 'false'}
    text = words[value] if value is None or isinstance(value, bool) else str(value)
    return text if len(text) <= _VALUE else text[:_VALUE - 3] + '...'
