"""Mutants of the maths, the plan and what is kept, and which share of them the fast tests find: ``make mutation``.

    python -m tests.support.mutation [--sample N] [--seed S] [--only PART_OF_A_NAME] [--again] [TEST ...]

mutmut makes the mutants (``[tool.mutmut]`` of pyproject.toml), in a copy of the package under mutants/. Its own runner
starts pytest for each; here pytest collects once, and every mutant is a fork of it that runs the tests which call the
mutated function, quickest first, until one fails. What is left is written to mutants/survivors.txt.
"""
from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path('mutants')
EQUIVALENT = Path('tests/data/equivalent_mutants.txt')
CPU_TIMES, CPU_SECONDS, WALL_TIMES = 3, 5, 40  # of what a mutant's tests take: a mutant that takes longer is found
TESTS_SECONDS = 4  # CPU time of the quickest tests a mutant is given; with more it could only be found oftener
TIMED_OUT = -signal.SIGXCPU, -signal.SIGALRM, -signal.SIGKILL


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % confidence interval of a share (Wilson, 1927)."""
    share, extra = hits / count, z * z / count
    middle = (share + extra / 2) / (1 + extra)
    half = z * math.sqrt(share * (1 - share) / count + extra / (4 * count)) / (1 + extra)
    return middle - half, middle + half


def sampled(names: Mapping[str, list[str]], count: int, seed: int) -> dict[str, list[str]]:
    """So many mutants of all files, each file's in proportion; the choice in one does not depend on the others."""
    total = sum(map(len, names.values()))
    return {file: random.Random(f'{seed} {file}').sample(own, min(len(own), math.ceil(count * len(own) / total)))
            for file, own in sorted(names.items())}


def make_mutants() -> None:
    """Copy the package and its tests to mutants/ and mutate what pyproject.toml says."""
    from mutmut import __main__ as mutmut
    from mutmut.mutation.trampoline import set_mutant_under_test
    set_mutant_under_test('mutant_generation')
    FOLDER.mkdir(exist_ok=True)
    mutmut.copy_src_dir()
    mutmut.copy_also_copy_files()
    for path in mutmut.walk_source_files():
        done = mutmut.create_file_mutants(path)
        if done.error:
            raise done.error


def mutants_of() -> dict[str, list[str]]:
    """Source file -> names of its mutants, within mutants/."""
    return {str(path.with_suffix('')): list(json.loads(path.read_text())['exit_code_by_key'])
            for path in sorted(Path('mgdet_plugin').rglob('*.py.meta'))}


def change(file: str, name: str) -> str:
    """What a mutant changes: ``file: - line as it is + line as it was made``."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    os.chdir('..')
    try:
        lines = get_diff_for_mutant(name, path=file).splitlines()[2:]
    finally:
        os.chdir(FOLDER)
    both = [f'{line[0]} {line[1:].strip()}' for line in lines if line[:1] in '+-' and 'mutmut' not in line]
    return f'{file}: {" ".join(both)}'


def in_fork(job: Callable[[], Any], cpu: float = math.inf) -> tuple[int, Any]:
    """Do a job in a forked process, which ends itself: its exit status, below 0 for a signal, and what it gave."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        if cpu < math.inf:
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(cpu), math.ceil(cpu) + 2))
            signal.alarm(math.ceil(cpu * WALL_TIMES))
        try:
            os.write(write, json.dumps(job()).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(write)
    with open(read, 'rb') as pipe:
        content = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), json.loads(content) if content else None


class Trials:
    """A pytest plugin that tries mutants in place of running the tests once.

    Args:
        chosen: Source file -> names of mutants to try.
        known: Name -> what was found before; those that were killed are not tried again.
    """

    def __init__(self, chosen: Mapping[str, Sequence[str]], known: Mapping[str, str]) -> None:
        self.chosen = chosen
        self.found = {name: known[name] for names in chosen.values() for name in names
                      if known.get(name) in ('killed', 'timed out')}
        self.failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note of a failure."""
        self.failed |= report.failed

    def run(self, items: Sequence[pytest.Item]) -> bool:
        """Whether one of some tests fails; the rest is not run."""
        for item, following in zip(items, [*items[1:], None]):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return True
        return False

    def traced(self, items: Sequence[pytest.Item]) -> dict[str, Any]:
        """Test -> the functions it calls, and its CPU time in seconds."""
        from mutmut.mutation.trampoline import set_mutant_under_test
        from mutmut.state import state
        set_mutant_under_test('stats')
        calls = {}
        for item in items:  # each for itself, as a shared fixture's calls are those of all who use it
            begun = time.process_time()
            if self.run([item]):
                raise AssertionError(f'{item.nodeid} fails without a mutant')
            calls[item.nodeid] = sorted(state()._stats), time.process_time() - begun
            state()._stats.clear()
        return calls

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Find out which test calls what, then try each mutant."""
        from mutmut.mutation.trampoline import set_mutant_under_test
        from mutmut.utils.format_utils import mangled_name_from_mutant_name
        read_traced = in_fork(lambda: Path('traced.json').write_text(json.dumps(self.traced(session.items))))
        if read_traced[0]:
            raise pytest.UsageError('the tests do not pass as they are')
        tests, spent = defaultdict(list), {}
        for name, (functions, seconds) in json.loads(Path('traced.json').read_text()).items():
            spent[name] = seconds
            for function in functions:
                tests[function].append(name)
        items = {item.nodeid: item for item in session.items}
        print(f'{len(items)} tests take {sum(spent.values()):.0f} s of CPU time', file=sys.__stderr__, flush=True)
        for file, names in self.chosen.items():
            for name in (each for each in names if each not in self.found):
                mine, total = [], 0.0
                for each in sorted(tests[mangled_name_from_mutant_name(name)], key=spent.__getitem__):
                    total += spent[each]
                    if not mine or total < TESTS_SECONDS:
                        mine.append(each)

                def trial(name: str = name, mine: Sequence[str] = mine) -> None:
                    set_mutant_under_test(name)
                    if self.run([items[each] for each in mine]):
                        os._exit(3)

                code = in_fork(trial, CPU_SECONDS + CPU_TIMES * min(total, TESTS_SECONDS))[0] if mine else 0
                self.found[name] = ('not called' if not mine else 'survived' if not code else
                                    'timed out' if code in TIMED_OUT else 'killed')
                Path('found.json').write_text(json.dumps(self.found))
            counts = Counter(self.found[name] for name in names)
            print(f'{file}: {dict(counts)}', file=sys.__stderr__, flush=True)
        return True


def report(chosen: Mapping[str, Sequence[str]], found: Mapping[str, str]) -> str:
    """A line a file and the whole; survivors go to a file."""
    reasons = dict.fromkeys(EQUIVALENT.read_text().splitlines()) if EQUIVALENT.is_file() else {}
    lines, survivors, totals = [], [], Counter()
    for file, names in chosen.items():
        left = {name: change(file, name) for name in names if found[name] in ('survived', 'not called')}
        equal = [name for name in left if left[name] in reasons]
        survivors += [f'{found[name]} {name}\n    {left[name]}' for name in left if name not in equal]
        killed, count = len(names) - len(left), len(names)
        totals.update(killed=killed, count=count, equal=len(equal))
        lines.append(f'{file:45} {killed:4} of {count:4} killed, {len(equal):3} equivalent')
    Path('survivors.txt').write_text('\n'.join(survivors) + '\n')
    for what, count in (('all', totals['count']), ('those not equivalent', totals['count'] - totals['equal'])):
        low, high = wilson(totals['killed'], count)
        lines.append(f'killed of {what}: {totals["killed"]} of {count}, {totals["killed"] / count:.1%} '
                     f'(95 %: {low:.1%} to {high:.1%})')
    return '\n'.join([*lines, f'timed out, counted as killed: {list(found.values()).count("timed out")}'])


def main() -> int:
    """Make mutants, then go on in their folder, where the tests import the mutated package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--sample', type=int, default=600)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', default='', help='only mutants with this in their name')
    parser.add_argument('--again', action='store_true',
                        help='of the last run, only what was not killed: after tests were added and nothing changed')
    parser.add_argument('--made', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('tests', nargs='*')
    args = parser.parse_args()
    if not args.made:
        make_mutants()
        os.chdir(FOLDER)
        os.environ['PYTHONPATH'] = os.getcwd()
        os.execv(sys.executable, [sys.executable, '-m', 'tests.support.mutation', '--made', *sys.argv[1:]])
    import tomllib
    settings = tomllib.loads(Path('pyproject.toml').read_text())['tool']['mutmut']
    names = mutants_of()
    chosen = {file: [name for name in own if args.only in name]
              for file, own in sampled(names, args.sample, args.seed).items()}
    print(f'{sum(map(len, chosen.values()))} of {sum(map(len, names.values()))} mutants, seed {args.seed}', flush=True)
    known = json.loads(Path('found.json').read_text()) if args.again and Path('found.json').is_file() else {}
    trials = Trials(chosen, known)
    pytest.main(['--quiet', '--no-header', '--no-summary', '--show-capture=no', *settings['pytest_add_cli_args'],
                 *(args.tests or settings['pytest_add_cli_args_test_selection'])], plugins=[trials])
    if len(trials.found) < sum(map(len, chosen.values())):
        return 1
    print(report(chosen, trials.found))
    return 0


if __name__ == '__main__':
    sys.exit(main())
