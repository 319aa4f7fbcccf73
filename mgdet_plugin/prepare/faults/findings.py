"""What was found in a data set: how bad it is, how often, the first examples, and what to do about it."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mgdet_plugin.datasets.formats.dataset_report import number_of
from mgdet_plugin.prepare.faults.picture_records import Corners

ERROR, WARNING, NOTE = 'error', 'warning', 'note'
SEVERITIES = (ERROR, WARNING, NOTE)  # worst first
EXIT_CODES = {ERROR: 3, WARNING: 1, NOTE: 0}  # 2 is for bad usage, as everywhere
IN_A_LINE = 3  # examples
_OF_ONE = dict(are='is', have='has', lie='lies', reach='reaches', fill='fills', fit='fits', give='gives')
IN_A_RECORD = 1_000  # examples of a finding


@dataclass(frozen=True)
class Example:
    """One place of a finding.

    Attributes:
        path: The picture; empty where it is about none.
        split: Its split.
        text: What is wrong there.
        boxes: Corners (x1, y1, x2, y2) of the boxes it is about, in pixels of the picture.
        labels: Place of the class of each.
    """

    path: str
    split: str = ''
    text: str = ''
    boxes: tuple[Corners, ...] = ()
    labels: tuple[int, ...] = ()

    def line(self) -> str:
        """The example for a person."""
        where = f'{self.split}: {self.path}' if self.split and self.path else self.path
        return f'{where} ({self.text})' if where and self.text else where or self.text


@dataclass(frozen=True)
class Finding:
    """Everything of one kind that was found.

    Attributes:
        kind: Its name, as docs/doctor.md lists it.
        severity: One of :data:`SEVERITIES`.
        count: How many there are.
        what: What they are, for a person; the count comes first.
        advice: What to do about it.
        examples: Where, the first ones first.
    """

    kind: str
    severity: str
    count: int
    what: str
    advice: str
    examples: Sequence[Example] = field(default_factory=tuple)

    def lines(self) -> list[str]:
        """The finding for a person."""
        shown = '; '.join(each.line() for each in self.examples[:IN_A_LINE])
        more = f' and {len(self.examples) - IN_A_LINE:,} more' if len(self.examples) > IN_A_LINE else ''
        return [f'{self.severity:<8}{self.kind}: {self.what}', *([f'        {shown}{more}'] if shown else []),
                f'        -> {self.advice}']


def found(kind: str, severity: str, examples: Sequence[Example], whole: str, what: str,
          advice: str) -> Iterator[Finding]:
    """The finding of some examples, and nothing where there is none.

    Args:
        kind: Its name.
        severity: One of :data:`SEVERITIES`.
        examples: Each of what is counted.
        whole: What they are some of, with its number: '9 boxes'.
        what: What is wrong with them, after 'N of WHOLE', its verb first and in the plural.
        advice: What to do about it.
    """
    if examples:
        yield Finding(kind, severity, len(examples), some_of(len(examples), whole, what), advice, examples)


def some_of(count: int, whole: str, what: str) -> str:
    """'N of WHOLE WHAT', the verb that WHAT begins with in the number of N."""
    verb, _, rest = what.partition(' ')
    return f'{count:,} of {whole} {_OF_ONE.get(verb, verb) if count == 1 else verb} {rest}'


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Findings, the worst and then the most frequent first."""
    return sorted(findings, key=lambda each: (SEVERITIES.index(each.severity), -each.count))


def exit_code(findings: Iterable[Finding]) -> int:
    """0 for notes alone or nothing, 1 for warnings, 3 for errors."""
    return max((EXIT_CODES[each.severity] for each in findings), default=0)


def verdict_line(findings: Sequence[Finding]) -> str:
    """How many there are of each severity."""
    counts = [(sum(each.severity == severity for each in findings), severity) for severity in SEVERITIES]
    said = [number_of(count, severity) for count, severity in counts if count]
    return f'{"" if exit_code(findings) else "clean: "}{", ".join(said) or "nothing found"}'


def as_json(finding: Finding) -> dict[str, Any]:
    """The finding as plain data, with its first thousand examples."""
    return asdict(replace(finding, examples=tuple(finding.examples[:IN_A_RECORD])))
