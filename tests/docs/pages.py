"""What a page of the documentation holds: its sections and the rows of its tables."""
from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / 'docs').glob('*.md'), *(ROOT / folder / 'README.md' for folder in ('', 'tools', 'weights'))])


def text_of(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r'^```.*?^```', '', page.read_text(), flags=re.DOTALL | re.MULTILINE)


def sections(page: Path) -> dict[str, str]:
    """Heading -> what stands below it, up to the next heading of any level."""
    _, *parts = re.split(r'^#+ (.*)$', text_of(page), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2]))


def rows(text: str) -> list[dict[str, str]]:
    """The rows of the tables in a text, column -> cell."""
    found: list[dict[str, str]] = []
    for table in re.findall(r'(?:^\|.*\|\n)+', text, flags=re.MULTILINE):
        head, _, *body = [[cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in table.splitlines()]
        assert all(len(cells) == len(head) for cells in body), f'a row has another number of cells: {head}'
        found += [dict(zip(head, cells)) for cells in body]
    return found


def anchors(page: Path) -> set[str]:
    """What a link may name behind ``#``: headings in lower case, spaces as hyphens, punctuation left out."""
    return {re.sub(r'[^\w\- ]', '', heading).strip().lower().replace(' ', '-') for heading in sections(page)}
