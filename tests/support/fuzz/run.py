"""Fuzz what reads files of strangers: ``python -m tests.support.fuzz.run checkpoint --minutes 10 [--seed 0]``.

Each case is a sound file with values of other kinds, sizes and places in it, or with its bytes changed, read as users
read it. It must be read, or refused by one line, in ten seconds, and touch nothing outside its folder: Python's audit
hook tells of files opened, written and removed, of processes and of connections; a tree of someone else's is the same
before and after. Every ``PROCESS`` seconds a case goes to the real command. Exit code 1 if anything else happened.
"""
from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from tests.support.annotated_sets import picture
from tests.support.fork_server import ROOT, environment
from tests.support.fuzz.kinds import KINDS
from tests.support.fuzz.watched import outcome_of, tree_hash

PROCESS = 40.0  # seconds between two cases that go to a command
PROCESS_SECONDS = 400  # the machine may be busy


@dataclass
class Findings:
    """What a run found: cases by outcome, and seed and outcome of those that broke a promise."""
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[int, str]] = field(default_factory=list)
    longest: float = 0

    def enter(self, seed: int, outcome: str, how: str = '') -> None:
        """Count a case."""
        if outcome.startswith('WRONG'):
            self.wrong.append((seed, outcome))
            print(f'seed {seed}{how}: {outcome}', file=sys.__stdout__, flush=True)
        self.counts[outcome.partition(':')[0] + how] += 1


def by_command(kind: Any, path: Path, target: Path) -> str:
    """What becomes of a case as a command of its own."""
    name, *arguments = kind.command(path, target)
    try:
        ran = subprocess.run([sys.executable, str(ROOT / 'tools' / f'{name}.py'), *arguments], cwd=target, text=True,
                             capture_output=True, check=False, timeout=PROCESS_SECONDS, env=environment())
    except subprocess.TimeoutExpired:
        return f'WRONG: {name} takes more than {PROCESS_SECONDS} seconds'
    said = ran.stdout + ran.stderr
    if 'Traceback' in said or ran.returncode not in (0, 1, 2):
        return f'WRONG: {name} ends with {ran.returncode}: {said.strip().splitlines()[-3:]}'
    return 'refused' if ran.returncode == 2 else 'accepted'


def run(name: str, first: int = 0, cases: int | None = None, minutes: float = 10, commands: bool = True) -> Findings:
    """Fuzz one kind.

    Args:
        name: A key of ``KINDS``.
        first: Seed of the first case.
        cases: How many, None for as many as the time allows.
        minutes: How long at most.
        commands: Whether some go to the real commands.
    """
    findings = Findings()
    here = os.getcwd()
    with TemporaryDirectory() as made:
        folder, secret = Path(made, 'own'), Path(made, 'secret')
        picture(secret / 'a.png')
        (secret / 'best.pth').write_bytes(b'weights')
        (folder / 'work').mkdir(parents=True)
        kind = KINDS[name](folder / 'kind', secret)
        before, end, process = tree_hash(secret), time.monotonic() + 60 * minutes, time.monotonic() + PROCESS
        seed = first
        try:
            while time.monotonic() < end and (cases is None or seed < first + cases):
                target = folder / 'work' / 'case'
                shutil.rmtree(target, ignore_errors=True)
                target.mkdir()
                os.chdir(target)
                path, begun = kind.write(Random(seed), target), time.monotonic()
                if commands and begun > process:
                    findings.enter(seed, by_command(kind, path, target), ' by the command')
                    process = time.monotonic() + PROCESS
                else:
                    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                        outcome = outcome_of(lambda path=path: kind.use(path), folder, secret)  # type: ignore[misc]
                    findings.enter(seed, outcome)
                    findings.longest = max(findings.longest, time.monotonic() - begun)
                if tree_hash(secret) != before:
                    findings.enter(seed, 'WRONG: the tree of someone else is changed')
                    before = tree_hash(secret)
                seed += 1
        finally:
            os.chdir(here)
    return findings


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('kind', choices=[*KINDS, 'all'])
    parser.add_argument('--minutes', type=float, default=10, help='for each kind')
    parser.add_argument('--seed', type=int, default=0, help='of the first case; every case has its own')
    parser.add_argument('--cases', type=int, help='at most so many')
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    wrong = 0
    for name in KINDS if arguments.kind == 'all' else [arguments.kind]:
        found = run(name, arguments.seed, arguments.cases, arguments.minutes)
        print(f'{name}, seeds from {arguments.seed}: {sum(found.counts.values())} cases, {dict(found.counts)}, the '
              f'longest {found.longest:.1f} s, {len(found.wrong)} wrong')
        wrong += len(found.wrong)
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
