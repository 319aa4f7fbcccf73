"""Speed and learning against named peers, in a checkout: the benchmarks are no part of an installation."""
from __future__ import annotations

import sys
from collections.abc import Sequence

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.resources import ROOT


def benchmark_command(arguments: Sequence[str]) -> int:
    """Run the suites named."""
    if not (ROOT / 'benchmarks').is_dir():
        raise UserError('the benchmarks are not installed with the package; run tools/benchmark.py of a checkout')
    sys.path.insert(0, str(ROOT))
    from benchmarks.command import main
    return main(arguments)
