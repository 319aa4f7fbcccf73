"""Fuzz the reader of Keras weights files: ``python tests/support/fuzz_reader.py --minutes 10 [--seed 0]``.

Each case is a small valid file with its structure changed (array data is left alone): flipped bits, fields set to
other addresses and odd values, pieces copied over others, zip headers changed. The reader must refuse it by one line
or read every tensor bit-equal, in two seconds of processor time and 200 MB. Most cases run in forked workers, where
the HDF5 library may crash or hang: such a case, and a share of all others, goes through ``open_weights`` as users run
it, and the same is asked of it there. Exit code 1 if anything else happened; of the older format, which has no
checksums, about one case in a thousand has an array in free space, and is told as read with other tensors.
"""
from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.container.archive import open_weights
from tests.support.fuzz_cases import SMALL, WHOLE, Tensors, base, case, read, tensors

SECONDS, MEGABYTES = 2.0, 200
WORKER_SECONDS = .6  # then the case goes through the sandbox, which decides
BATCH = 400
SANDBOX_SHARE = 300  # every so many cases one goes through open_weights


def in_process(kind: str, content: bytes) -> str:
    """What becomes of a case in this process: ``refused``, ``accepted``, or what is wrong."""
    try:
        got = read(kind, content)
    except UserError as error:
        return 'refused' if '\n' not in str(error) else f'WRONG: a refusal of several lines: {error!r}'
    except Exception as error:
        return f'WRONG: {type(error).__name__}: {error}'
    same = got.keys() == base(kind).tensors.keys() and all(got[key] == base(kind).tensors[key] for key in got)
    return 'accepted' if same else f'WRONG: accepted with other tensors: {difference(kind, got)}'


def difference(kind: str, got: Tensors) -> list[str]:
    """Names of the first tensors that differ."""
    expected = base(kind).tensors
    return [key for key in sorted(expected.keys() | got.keys()) if expected.get(key) != got.get(key)][:3]


def processor_seconds() -> float:
    """Processor time of this process and its ended children: other programs on the machine do not count."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def through_sandbox(kind: str, content: bytes, folder: Path) -> tuple[str, float]:
    """What becomes of a case as users run it, and the processor time taken."""
    path = folder / 'case.bin'
    path.write_bytes(content)
    start = processor_seconds()
    try:
        with open_weights(path) as weights:
            got = tensors(kind, weights)
        result = 'accepted' if got == base(kind).tensors else f'WRONG: accepted: {difference(kind, got)}'
    except UserError as error:
        result = 'refused' if '\n' not in str(error) else f'WRONG: a refusal of several lines: {error!r}'
    except Exception as error:
        result = f'WRONG: {type(error).__name__}: {error}'
    seconds = processor_seconds() - start
    return (result if seconds < SECONDS else f'WRONG: {seconds:.1f} seconds, {result}'), seconds


@dataclass
class Findings:
    """What a run found.

    Attributes:
        counts: Cases by outcome.
        wrong: Seed and outcome of every case that broke a promise.
        seconds: The longest case in a worker.
        sandbox_seconds: The longest case through the sandbox, the start of its process included.
        megabytes: The most a worker grew by.
    """

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0
    sandbox_seconds: float = 0
    megabytes: float = 0

    def enter(self, seed: int, outcome: str) -> None:
        """Count a case."""
        if outcome.startswith('WRONG'):
            self.wrong.append((seed, outcome))
            print(f'seed {seed}: {outcome}', flush=True)
        self.counts[outcome.partition(':')[0]] += 1


def work(first: int, last: int, pipe: int) -> None:
    """In a forked worker: run cases, writing a line each."""
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2 * MEGABYTES * 2 ** 20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for seed in range(first, last):
        signal.setitimer(signal.ITIMER_PROF, WORKER_SECONDS)
        start = time.process_time()
        outcome = in_process(*case(seed))
        seconds = time.process_time() - start
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - usage) / 1024
        os.write(pipe, json.dumps((seed, outcome, seconds, grown)).encode() + b'\n')
        if grown > MEGABYTES:
            break
    os._exit(0)


def run_batch(first: int, last: int, findings: Findings, folder: Path) -> int:
    """Run cases in a worker until it has done all or a case ended it; returns the seed to go on from."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        os.close(out)
        work(first, last, into)
    os.close(into)
    following = first
    with os.fdopen(out) as lines:
        for line in lines:
            seed, outcome, seconds, grown = json.loads(line)
            following = seed + 1
            findings.seconds = max(findings.seconds, seconds)
            findings.megabytes = max(findings.megabytes, grown)
            again = grown > MEGABYTES or outcome == 'WRONG: MemoryError: '
            findings.enter(seed, outcome) if not again else None
            if again or seed % SANDBOX_SHARE == 0:
                sandboxed(seed, findings, folder)
    _, status = os.waitpid(child, 0)
    if status:
        findings.counts['ended the worker, then through the sandbox'] += 1
        sandboxed(following, findings, folder)
        following += 1
    return following


def sandboxed(seed: int, findings: Findings, folder: Path) -> None:
    """Run one case through the sandbox and count it."""
    outcome, seconds = through_sandbox(*case(seed), folder)
    findings.sandbox_seconds = max(findings.sandbox_seconds, seconds)
    findings.enter(seed, outcome if outcome.startswith('WRONG') else f'{outcome} through the sandbox')


def run(first: int, cases: int | None = None, minutes: float | None = None) -> Findings:
    """Fuzz.

    Args:
        first: Seed of the first case.
        cases: How many cases, None for as many as the time allows.
        minutes: How long, None for as long as the cases take.
    """
    end = time.monotonic() + 60 * minutes if minutes is not None else float('inf')
    findings, seed = Findings(), first
    for kind in WHOLE | SMALL:
        base(kind)
    with TemporaryDirectory() as folder:
        while time.monotonic() < end and (cases is None or seed < first + cases):
            last = seed + BATCH if cases is None else min(seed + BATCH, first + cases)
            seed = run_batch(seed, last, findings, Path(folder))
    return findings


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--minutes', type=float, default=10)
    parser.add_argument('--seed', type=int, default=0, help='of the first case; every case has its own')
    arguments = parser.parse_args()
    findings = run(arguments.seed, minutes=arguments.minutes)
    print(f'seeds from {arguments.seed}, {arguments.minutes} minutes: {dict(findings.counts)}')
    print(f'longest case {findings.seconds:.2f} s, through the sandbox {findings.sandbox_seconds:.2f} s; '
          f'most memory {findings.megabytes:.0f} MB; {len(findings.wrong)} wrong')
    return 1 if findings.wrong else 0


if __name__ == '__main__':
    sys.exit(main())
