"""A progress bar for jobs on large files."""
from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

DELAY = 1.0  # seconds before a bar appears


def byte_progress(total: int, label: str) -> Any:
    """A bar that counts bytes, on standard error; it appears after a second, and only on a terminal.

    Args:
        total: Bytes the job handles in all.
        label: What the job does.

    Returns:
        A context manager with ``update(bytes)``.
    """
    return tqdm(total=total, desc=label, unit='B', unit_scale=True, delay=DELAY, leave=False, file=sys.stderr,
                disable=not sys.stderr.isatty())
