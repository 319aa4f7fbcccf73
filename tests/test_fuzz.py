"""A short, fixed share of the fuzzing of what reads files of strangers; ``make fuzz`` runs more."""
from __future__ import annotations

import logging
import os
import sys

import pytest

from tests.support.annotated_sets import picture
from tests.support.fuzz.kinds import AnnotationKind
from tests.support.fuzz.run import run
from tests.support.fuzz.watched import outcome_of, tree_hash


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='the bound in time is a signal')
@pytest.mark.parametrize(('kind', 'cases'), [('checkpoint', 25), ('guard.json', 80), ('annotations', 150)])
def test_each_case_is_read_or_refused_in_one_line_and_touches_nothing_else(kind, cases):
    found = run(kind, cases=cases, minutes=5, commands=False)
    assert found.wrong == []
    assert found.counts.total() == cases and found.counts['refused'] > cases / 10 and found.counts['accepted']
    print(f'\n{kind}: {dict(found.counts)}')


def test_what_the_cases_are_made_from_is_accepted(tmp_path):
    kind = AnnotationKind(tmp_path / 'kind', tmp_path / 'secret')
    for form in kind.forms:
        assert outcome_of(lambda form=form: kind.use(tmp_path / 'kind' / form), tmp_path, tmp_path / 'x') == 'accepted'


@pytest.mark.parametrize(('act', 'told'), [
    (lambda secret, _: (secret / 'a.png').read_bytes(), 'reads'),
    (lambda secret, _: (secret / 'b').write_text('x'), 'writes'),
    (lambda secret, _: (secret / 'a.png').unlink(), 'os.remove'), (lambda secret, _: os.system('true'), 'os.system'),
    (lambda secret, own: (own / 'a').rename(secret / 'c'), 'os.rename'), (lambda *_: 1 / 0, 'ZeroDivisionError'),
    (lambda secret, _: (secret.parent / 'other').mkdir(), 'os.mkdir')])
def test_what_is_wrong_is_noticed(act, told, tmp_path):
    """The oracle can fail."""
    own, secret = tmp_path / 'own', tmp_path / 'secret'
    own.mkdir()
    (own / 'a').touch()
    picture(secret / 'a.png')
    before = tree_hash(secret)
    found = outcome_of(lambda: act(secret, own), own, secret)
    assert found.startswith(f'WRONG: {told}'), found
    assert (tree_hash(secret) == before) == (told not in ('writes', 'os.remove', 'os.rename'))
