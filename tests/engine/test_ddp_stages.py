"""Two processes go through the stages as one: equal bit for bit after every edge, and resumed as if never stopped."""
from __future__ import annotations

import json
import re

import pytest
import torch

from mgdet_plugin.plan.freezing import digest
from mgdet_plugin.plan.plan import Plan, build_plan
from mgdet_plugin.plan.progress import Progress
from tests.support.ddp_run import LONG, SHORT, TABLES
from tests.support.small_run import make_dataset
from tests.support.staged_run import differences, newest, state_of
from tests.support.two_processes import run_two

PREDICT = 'bbox_head.predict_convs'

class Runs:
    """What the two processes left of a run."""

    def __init__(self, folder):
        self.folder = folder

    def records(self, name):
        return [json.loads((self.folder / f'{name}-rank{rank}.json').read_text()) for rank in (0, 1)]

    def finals(self, name):
        """Weights and random state of each process at the end."""
        return [torch.load(self.folder / f'{name}-rank{rank}.pth') for rank in (0, 1)]

    def moments(self, name, moment):
        """The notes of both processes at each moment of a kind."""
        one, other = ([note for note in record['notes'] if note['moment'] == moment] for record in self.records(name))
        assert len(one) == len(other) > 0
        return list(zip(one, other))

    def apart(self, name, moment):
        """Names of the tensors that differ between the processes, at each moment of a kind."""
        return [{key for key in one['digests'] if one['digests'][key] != other['digests'][key]}
                for one, other in self.moments(name, moment)]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """All runs of ``tests/support/ddp_run.py``, in the same two processes."""
    folder = tmp_path_factory.mktemp('runs')
    data = make_dataset(tmp_path_factory.mktemp('data') / 'set')
    make_dataset(data.parent / 'old', count=5, seed=1)  # for the run that is held
    run_two('tests.support.ddp_run', folder, data, timeout=240)
    return Runs(folder)


def trained(name, stage):
    """Whether a tensor may change in a stage."""
    return stage == 2 or (name.startswith(PREDICT) if stage == 0 else not name.startswith('backbone.'))


def lengths(table):
    """Epochs of the stages of LONG but the last where one process alone decides, by its table."""
    plan, progress, epoch, found = Plan(build_plan(LONG)), Progress(), 0, []
    while progress.stage < 2:
        epoch += 1
        progress.after_validation(plan, epoch, {'table/value': table[epoch - 1]})
        if progress.is_over(plan, epoch):
            found.append(epoch - progress.first_epoch)
            progress.advance(epoch, 2 * epoch, {})
    return found


# ---- one run of three stages

def test_a_metric_ends_a_stage_for_all_where_each_sees_another(runs):
    """The first decides; each alone would decide otherwise."""
    assert [lengths(table) for table in TABLES] == [[2, 3], [4, 2]]
    for rank, record in enumerate(runs.records('whole')):
        measured = [note['metrics']['table/value'] for note in record['notes'] if note['moment'] == 'validated, last']
        assert tuple(measured) == TABLES[rank]
        stages = [note['stage'] for note in record['notes'] if note['moment'] == 'epoch begins, last']
        assert stages == [0, 0, 1, 1, 1, 2]
    assert [entry['epochs'] for entry in newest(runs.folder / 'whole')['mgdet']['history']] == [2, 3]


def test_each_sees_images_of_its_own(runs):
    images = [sorted(one['images'] + other['images']) for one, other in runs.moments('whole', 'iteration')]
    assert len(images) == 12
    assert [sorted(images[index] + images[index + 1]) for index in range(0, 12, 2)] == [list(range(8))] * 6


@pytest.mark.parametrize('name', ['whole', 'resumed', 'grouped', 'grouped-resumed7'])
def test_equal_after_every_edge_and_at_the_end(runs, name):
    """Parameters and buffers, before and after each edge, at each epoch's end and after the last."""
    for moment in ('epoch begins, first', 'epoch begins, last', 'epoch ends, last', 'validated, last',
                   'run ends, last'):
        assert not any(runs.apart(name, moment)), moment
    one, other = runs.finals(name)
    assert differences(one['state_dict'], other['state_dict']) == []


def test_running_statistics_are_what_the_hook_makes_equal(runs):
    """Before the hook at an epoch's end: parameters are equal, the statistics of what trains are not."""
    parameters = set(runs.records('whole')[0]['parameters'])
    for (note, _), apart in zip(runs.moments('whole', 'epoch ends, first'),
                                runs.apart('whole', 'epoch ends, first')):
        assert not apart & parameters
        assert apart == {key for key in note['digests'] if key.endswith(('running_mean', 'running_var'))
                         and trained(key, note['stage'])}


def test_what_is_frozen_stays_and_what_trains_changes(runs):
    for record in runs.records('whole'):
        starts = [note for note in record['notes'] if note['moment'] == 'epoch begins, last']
        ends = [note for note in record['notes'] if note['moment'] == 'epoch ends, last']
        for stage in range(3):
            start = next(note['digests'] for note in starts if note['stage'] == stage)
            end = [note['digests'] for note in ends if note['stage'] == stage][-1]
            changed = {key for key in start if start[key] != end[key]}
            assert changed == {key for key in start if trained(key, stage)}, LONG[stage]['name']


def test_the_best_of_a_stage_is_restored_in_both(runs):
    """The next stage begins with the checkpoint of the best epoch, the first, in both processes."""
    path = runs.folder / 'whole' / 'stage1_best.pth'
    best = torch.load(path)
    assert (best['meta']['epoch'], best['mgdet']['best']) == (1, TABLES[0][0])
    expected = {key: digest(value) for key, value in best['state_dict'].items()}
    for before, after in zip(runs.moments('whole', 'epoch begins, first')[2],
                             runs.moments('whole', 'epoch begins, last')[2]):
        assert before['digests'] != after['digests'] == expected


# ---- resumed

def test_random_states_are_of_each_process(runs):
    one, other = (final['random_state'] for final in runs.finals('whole'))
    assert differences(one, other) == ['/torch']
    assert differences(newest(runs.folder / 'whole')['random_state'], [one, other]) == []


@pytest.mark.parametrize('whole, stopped, resumed', [
    ('whole', 'stopped', 'resumed'),  # in stage 2, trained and not validated
    ('grouped', 'grouped-stopped7', 'grouped-resumed7'),  # within an epoch of stage 2, right after a step
])
def test_both_resumed_equal_the_uninterrupted_run(runs, whole, stopped, resumed):
    final, end = runs.records(resumed)[0]['notes'], runs.records(stopped)[0]['notes'][-1]
    assert end['moment'] == 'iteration' or end['moment'].startswith('epoch ends')
    assert next(note['stage'] for note in final if 'stage' in note) == 1
    assert differences(state_of(newest(runs.folder / stopped)), state_of(newest(runs.folder / whole))) == []
    assert differences(runs.finals(resumed), runs.finals(whole)) == []  # weights and random state of each


def test_a_group_of_iterations_steps_as_one(runs):
    """Four iterations an epoch, three a step: equal parameters in both though gradients are exchanged at steps."""
    assert newest(runs.folder / 'grouped')['meta']['iter'] == 4 * sum(stage['epochs'] for stage in SHORT)
    steps = {int(state['step']) for state in newest(runs.folder / 'grouped')['optimizer']['state'].values()}
    assert steps == {4, 6}  # two an epoch: of the neck in two epochs, of the last layers in three


# ---- the control

def test_frozen_before_wrapping_goes_apart_without_an_error(runs):
    """What DDP was built without is never averaged: thawed, it differs between the processes from the first step."""
    parameters = runs.records('mistake')[0]['parameters']
    thawed = {name for name in parameters if trained(name, 1) and not name.startswith(PREDICT)}
    first, second, third = runs.apart('mistake', 'epoch ends, last')
    assert first == set()
    assert second == third == thawed
    one, other = (final['state_dict'] for final in runs.finals('mistake'))
    gaps = {name: float((one[name] - other[name]).abs().max()) for name in thawed}
    assert max(gaps.values()) > 1e-4  # of rates of 5e-5, in four steps


def test_the_proof_by_hash_notices_that_processes_go_apart(runs):
    """The same mistake with the proof on: the edge after it ends the run, in both processes."""
    for rank in range(2):
        refused = (runs.folder / f'refused-rank{rank}.txt').read_text()
        assert re.search(r"stage 'neck': \d+ tensors differ between processes", refused)


# ---- found by these runs, mended

def test_the_average_is_saved_with_the_statistics_that_were_validated(runs):
    """Where a checkpoint holds a moving average, its buffers are those of the model, as in one process."""
    saved = newest(runs.folder / 'whole')
    model = {key.removeprefix('module.'): value for key, value in saved['ema_state_dict'].items()}
    buffers = [key for key in saved['state_dict'] if key.endswith(('running_mean', 'running_var'))]
    assert len(buffers) == 60
    assert [key for key in buffers if not torch.equal(saved['state_dict'][key], model[key])] == []


def test_resumed_while_gradients_wait(runs):
    """Gradients that wait for their step are not exchanged yet, so each process has its own."""
    assert differences(runs.finals('grouped-resumed5'), runs.finals('grouped')) == []


def test_a_seed_for_each_process_leaves_the_order_one(runs):
    """randomness.diff_rank_seed: every image is seen once an epoch, as in mmengine."""
    pairs = runs.moments('two-seeds', 'iteration')
    assert sorted(image for pair in pairs for note in pair for image in note['images']) == list(range(8))


def test_the_best_of_a_stage_is_restored_where_one_disk_has_it(runs):
    """Machines without a common folder: only the first has the file, and all go on from it or none does."""
    assert not any(runs.apart('two-disks', 'epoch begins, last'))


# ---- a run that is held to its start weights

def test_held_processes_are_one_and_share_the_old_images(runs):
    assert runs.apart('held', 'run ends, last') == [set()]
    one, other = ([note['old'] for note in record['notes'] if note['moment'] == 'iteration']
                  for record in runs.records('held'))
    assert all(len(each) == 2 for each in (*one, *other))  # as many as new ones
    for steps in (one[:2], other[:2]):
        assert len(steps) == 2
    first_epoch = [index for pair in zip(one[:2], other[:2]) for each in pair for index in each]
    assert len(set(first_epoch[:4])) == 4  # the four of the memory, gone through together, and then again
    assert sorted(first_epoch[4:]) == sorted(first_epoch[:4])


def test_a_held_run_resumed_by_two_equals_the_whole_one(runs):
    assert differences(*(state_of(newest(runs.folder / name)) for name in ('held', 'held-stopped'))) == []
