"""A short, fixed share of the fuzzing of the reader; ``python tests/support/fuzz_reader.py`` runs more."""
from __future__ import annotations

import sys

import numpy as np
import pytest

from tests.support.fuzz_cases import SMALL, WHOLE, base, case
from tests.support.fuzz_reader import Findings, in_process, run


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='limits of memory and processor time are of Linux')
def test_six_hundred_cases_are_refused_or_read_exactly():
    findings = run(0, cases=600)
    assert findings.wrong == []
    assert sum(findings.counts.values()) >= 600
    assert findings.counts['refused'] > 300 and findings.counts['accepted'] > 30
    print(f'\n{dict(findings.counts)}')


@pytest.mark.parametrize('kind', [*SMALL, *WHOLE])
def test_the_files_the_cases_are_made_from_are_accepted(kind):
    assert in_process(kind, base(kind).content) == 'accepted'


def test_a_case_is_told_by_its_seed():
    assert case(123) == case(123) and case(123) != case(124)


def test_other_tensors_are_noticed():
    """The oracle can fail: changed array data, which the cases never touch, is reported."""
    content = bytearray(base('plain').content)
    first = base('plain').tensors['/conv2d/conv2d/kernel:0']
    at = content.index(first)
    content[at:at + 4] = np.float32(7).tobytes()
    assert in_process('plain', bytes(content)).startswith('WRONG: accepted with other tensors')
    findings = Findings()
    findings.enter(1, in_process('plain', bytes(content)))
    assert [seed for seed, _ in findings.wrong] == [1]
