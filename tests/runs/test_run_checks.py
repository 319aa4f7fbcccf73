"""The five checks, and the tool that prints them."""
import json

import pytest

from mgdet_plugin.runs.run import read_run
from mgdet_plugin.runs.run_checks import NAMES, check_run, kept, verdict, verdict_line
from tests.support.run_folder import PRETRAINED, guard, write_run
from tests.support.small_run import ROOT, run_tool


def judged(folder, change=None, kind='good', old=False):
    """Name of a check -> what it found, for a run whose record was changed."""
    write_run(folder, kind, old)
    content = guard(kind, old)
    if change:
        change(content)
    (folder / 'guard.json').write_text(json.dumps(content))
    return {each.name: each for each in check_run(read_run(folder))}


def failed(found):
    return [name for name in NAMES if found[name].passed is False]


@pytest.mark.parametrize(('kind', 'expected'), [
    ('good', []), ('too_hot', ['losses-within-band']), ('random_start', ['performance-kept']),
    ('nan', ['no-nan']), ('backbone', []), ('nothing', ['losses-within-band', 'performance-kept']),
    ('no_validation', ['loss-below-random', 'losses-within-band', 'performance-kept'])])
def test_what_each_kind_of_run_fails(tmp_path, kind, expected):
    assert failed(judged(tmp_path, kind=kind)) == expected


def test_a_run_that_ended_without_a_validation_set_is_not_asked_for_it(tmp_path):
    def change(content):
        content.update(baseline=dict(pretrained={}, random={}), validations=[])

    found = judged(tmp_path, change)
    assert failed(found) == [] and found['performance-kept'].passed is None
    assert 'the run had no validation' in found['performance-kept'].line


def test_figures_of_a_good_run(tmp_path):
    found = judged(tmp_path)
    last = guard()['validations'][-1]
    assert found['loss-below-random'].figures == dict(
        epoch=30, loss=last['metrics']['val/loss'], random=pytest.approx(310.2), pretrained=pytest.approx(14.9))
    assert found['losses-within-band'].figures['ratios'] == pytest.approx(last['ratios'])
    best = max(guard()['validations'], key=lambda each: each['metrics']['coco/bbox_mAP'])
    assert found['performance-kept'].figures['epoch'] == best['epoch']
    assert f'val/loss {last["metrics"]["val/loss"]:.4g} at epoch 30' in found['loss-below-random'].line


@pytest.mark.parametrize(('ratio', 'passed'), [(1.2, True), (1.2001, False), (None, False)])
def test_the_edge_of_the_band(tmp_path, ratio, passed):
    """A loss at exactly the limit passes; one that is not finite does not."""

    def change(content):
        content['validations'][-1]['metrics']['val/loss_obj'] = ratio and PRETRAINED['loss_obj'] * ratio

    assert judged(tmp_path, change)['losses-within-band'].passed == passed


def test_a_run_that_left_the_band_and_came_back_passes_and_tells(tmp_path):
    def change(content):
        content['validations'][3]['metrics']['val/loss_cls'] = PRETRAINED['loss_cls'] * 1.5

    check = judged(tmp_path, change)['losses-within-band']
    assert check.passed and 'worst of the run 1.5 (loss_cls, epoch 4)' in check.line


@pytest.mark.parametrize('start', ['full', 'backbone'])
def test_a_stop_by_the_guard_fails(tmp_path, start):
    check = judged(tmp_path, lambda content: content.update(ended='guard', start=start))['losses-within-band']
    assert not check.passed and 'the guard stopped the run at iteration 1200' in check.line
    assert judged(tmp_path, kind='too_hot')['losses-within-band'].figures['stopped_at'] == 320


def test_nothing_detected_counts_as_zero(tmp_path):
    def change(content):
        for entry in content['validations']:
            for name in ('coco/bbox_mAP', 'coco/bbox_mAP_50'):
                del entry['metrics'][name]

    check = judged(tmp_path, change)['performance-kept']
    assert not check.passed and check.figures['value'] == 0
    assert 'coco/bbox_mAP 0.000 at epoch 1, the best (nothing was detected, counted as 0)' in check.line


def renamed(content, names):
    """The record of a run whose evaluator gives its figures other names."""
    for figures in (*content['baseline'].values(), *(each['metrics'] for each in content['validations'])):
        for name, other in names.items():
            if name in figures:
                figures[other] = figures.pop(name)


VOC = {'coco/bbox_mAP': 'pascal_voc/mAP', 'coco/bbox_mAP_50': 'pascal_voc/AP50'}


@pytest.mark.parametrize('recorded', ['pascal_voc/mAP', 'coco/bbox_mAP', ''])
def test_a_run_is_judged_by_the_metric_that_is_there(tmp_path, recorded):
    """VOCMetric's, also where an earlier release wrote down COCO's name, which the run never gave."""

    def change(content):
        renamed(content, VOC)
        content.update(metric=recorded, best=['coco/bbox_mAP', 'greater'])

    by_coco = judged(tmp_path / 'coco')['performance-kept']
    check = judged(tmp_path / 'voc', change)['performance-kept']
    assert check.passed and check.line == by_coco.line.replace('coco/bbox_mAP', 'pascal_voc/mAP')
    assert 'nothing was detected' not in check.line and check.figures['metric'] == 'pascal_voc/mAP'


def test_figures_that_are_no_detection_are_told_apart(tmp_path):
    def no_boxes(content):
        for entry in content['validations']:
            entry['metrics']['coco/bbox_mAP'] = -1.0

    def other_items(content):
        renamed(content, {'coco/bbox_mAP': 'coco/bbox_mAP_s'})

    assert 'the best (there are no boxes to find)' in judged(tmp_path / 'a', no_boxes)['performance-kept'].line
    line = judged(tmp_path / 'b', other_items)['performance-kept'].line
    assert 'not among the figures given' in line and 'nothing was detected' not in line


def test_a_loss_of_a_single_class_is_left_out(tmp_path):
    """It is 0 throughout, and nothing can be held against it."""

    def change(content):
        for figures in (*content['baseline'].values(), *(each['metrics'] for each in content['validations'])):
            figures['val/loss_cls'] = 0.0

    check = judged(tmp_path, change)['losses-within-band']
    assert check.passed and list(check.figures['ratios']) == ['loss_obj'] and 'loss_cls' not in check.line
    assert read_run(tmp_path).silent == ['val/loss_cls']


def test_a_backbone_has_no_performance_to_keep(tmp_path):
    """Whatever was measured of the random head before the first step."""

    def change(content):
        content['baseline']['pretrained'] = dict(guard()['baseline']['random'])
        for entry in content['validations']:
            entry['metrics'] = {name: value for name, value in entry['metrics'].items() if 'coco' not in name}

    found = judged(tmp_path, change, kind='backbone')
    assert [found[name].passed for name in NAMES] == [True, None, None, True, None]
    assert 'not asked: only the backbone was pretrained' in found['performance-kept'].line


def log_of(folder, losses, figures):
    """The log of a run without a guard: its training losses, ten an epoch, and the figures of every second epoch."""
    lines = [dict(loss=loss, lr=1e-3, epoch=step // 10 + 1, step=step + 1) for step, loss in enumerate(losses)]
    lines += [dict(each, time=0.1, data_time=0.0, step=2 * index + 2) for index, each in enumerate(figures)]
    (folder / '20260101_000000/vis_data').mkdir(parents=True)
    (folder / '20260101_000000/vis_data/scalars.json').write_text(''.join(f'{json.dumps(each)}\n' for each in lines))


FALLING = [50.0 / (step + 1) for step in range(40)]


@pytest.mark.parametrize(('losses', 'scores', 'expected'), [
    (FALLING, [0.1, 0.3], [True, None, None, True, None]), (FALLING[::-1], [0.1, 0.3], [False, None, None, True, None]),
    (FALLING, [0.0, 0.0], [True, None, False, True, None]), ([9.0, 8.0, float('nan'), 5.0], [0.1, 0.3],
                                                             [True, None, None, False, None])])
def test_a_run_without_a_guard_is_judged_by_its_log(tmp_path, losses, scores, expected):
    """Of mmdet's own loop, as configs for training from nothing have it."""
    log_of(tmp_path, losses, [{'pascal_voc/mAP': score, 'pascal_voc/AP50': score} for score in scores])
    run = read_run(tmp_path)
    checks = check_run(run)
    assert [each.passed for each in checks] == expected
    assert [(each.epoch, each.iter) for each in run.validations][:1] == [(2, 20 if len(losses) > 4 else 2)]
    assert f'pascal_voc/mAP {scores[-1]:.3f} at epoch' in checks[2].line
    assert sum('no guard (default hook drift_guard)' in each.line for each in checks) == 4
    assert verdict(checks) == ('FAIL' if False in expected else 'NOT MEASURED')


FROM_NOTHING = 'load_from = None\nmodel = dict(backbone=dict(init_cfg=None))\n'


@pytest.mark.parametrize(('config', 'scores', 'expected', 'result'), [
    (FROM_NOTHING, [0.1, 0.3], [True, None, None, True, None], 'PASS'),
    (FROM_NOTHING, [0.0, 0.0], [True, None, False, True, None], 'FAIL'),
    (FROM_NOTHING.replace('None\n', "'a.pth'\n"), [0.1, 0.3], [True, None, None, True, None], 'NOT MEASURED'),
    (FROM_NOTHING.replace('=None)', "=dict(type='Pretrained'))"), [0.1, 0.3], [True, None, None, True, None],
     'NOT MEASURED'),
    ('load_from = (', [0.1, 0.3], [True, None, None, True, None], 'NOT MEASURED')])
def test_a_run_from_nothing_is_not_asked_for_what_it_had_not(tmp_path, config, scores, expected, result):
    """By the config that it left: without a guard, as configs for training from nothing have it."""
    log_of(tmp_path, FALLING, [{'pascal_voc/mAP': score} for score in scores])
    (tmp_path / 'my.py').write_text(config)
    checks = check_run(read_run(tmp_path))
    assert [each.passed for each in checks] == expected and verdict(checks) == result
    said = ' '.join([each.line for each in checks] + [verdict_line(checks)])
    assert ('no guard' in said and 'pretrained weights' in said) == (result == 'NOT MEASURED')
    assert ('nothing was pretrained' in said) == (config is FROM_NOTHING)
    assert ('nothing right is detected yet' in said) == (result == 'FAIL')


def test_the_best_checkpoint_is_what_is_judged(tmp_path):
    """The end may be a little worse; but the losses of both must be in the band."""

    def change(content, ratio=1.0):
        content['validations'][-1]['metrics']['coco/bbox_mAP'] = 0.01
        best = max(content['validations'], key=lambda each: each['metrics']['coco/bbox_mAP'])
        if ratio > 1:
            best['metrics']['val/loss_cls'] = PRETRAINED['loss_cls'] * ratio

    found = judged(tmp_path, change)
    assert found['performance-kept'].passed and 'at the end 0.010 (epoch 30)' in found['performance-kept'].line
    epoch = found['performance-kept'].figures['epoch']
    check = judged(tmp_path, lambda content: change(content, 1.3))['losses-within-band']
    assert not check.passed and f'too high: loss_cls at epoch {epoch}' in check.line


def test_the_metric_may_not_fall_at_all(tmp_path):
    def change(content):
        content['baseline']['pretrained']['coco/bbox_mAP'] = max(
            each['metrics']['coco/bbox_mAP'] for each in content['validations'])

    assert judged(tmp_path, change)['performance-kept'].passed
    assert not judged(tmp_path, lambda content: content['baseline']['pretrained'].update(
        {'coco/bbox_mAP': 0.5}))['performance-kept'].passed


def test_missing_baselines_are_said(tmp_path):
    found = judged(tmp_path, lambda content: content.update(baseline=dict(pretrained={}, random={})))
    assert failed(found) == ['loss-below-random', 'losses-within-band', 'performance-kept']
    assert 'the loss of a random start was not measured' in found['loss-below-random'].line
    assert 'no pretrained value of loss_obj, loss_cls was measured' in found['losses-within-band'].line


KEEP = dict(images=50, held_out=12, by='agreement', at_least=0.9, share=0.5, weight=1.0, form='maps', source='old/')
OLD_MAP = 'old/coco/bbox_mAP'


def followed(shares, **fields):
    """A change to a record: the old domain's AP goes from 0.6 to shares of it, in the last validations."""
    def change(content):
        content['baseline']['pretrained'][OLD_MAP] = 0.6
        content['validations'] = content['validations'][-len(shares):]
        for each, share in zip(content['validations'], shares):
            each['metrics'][OLD_MAP] = 0.6 * share
        content.update(fields)
    return change


@pytest.mark.parametrize(('shares', 'keep', 'passed', 'said'), [
    ([0.95, 0.95], {}, True, 'old/coco/bbox_mAP 0.600 -> 0.570 at epoch 30, the best: 95.0% left, at least 95% asked; '
                             'at the end 0.570 (epoch 30): 95.0%; by labels'),
    ([1.1, 1.2], {}, True, '120.0% left'),
    ([0.95, 0.94], {}, False, 'at the end 0.564 (epoch 30): 94.0%; by labels; too little at epoch 30'),
    ([0.95, 0.94], KEEP, True, "; by agreement with the loaded weights' own detections on 12 held-out images"),
    ([0.89, 0.5], KEEP, False, 'at epoch 29, the best: 89.0% left, at least 90% asked; at the end 0.300 (epoch 30): '
                               "50.0%; by agreement with the loaded weights' own detections on 12 held-out images; too "
                               'little at epoch 29 and 30'),
    ([0.95, 0.95], dict(KEEP, by='labels', held_out=1), True, 'by labels on 1 held-out image')])
def test_what_is_left_of_the_old_domain_is_judged(tmp_path, shares, keep, passed, said):
    def change(content):
        followed(shares, keep=keep)(content)
        for index, each in enumerate(content['validations']):
            each['metrics']['coco/bbox_mAP'] = 0.3 + 0.1 * index  # the last is the best by the new images alone

    found = judged(tmp_path, change, old=True)
    check = found['old-kept']
    assert check.passed is passed and said in check.line
    assert (check.figures['last_share'], check.figures['at_least']) == (
        pytest.approx(shares[-1]), keep.get('at_least', 0.95))
    assert verdict([*found.values()]) == verdict_line([*found.values()]) == ('PASS' if passed else 'FAIL')


def test_nothing_detected_on_the_old_domain_is_nothing_left(tmp_path):
    """CocoMetric then gives no figure, and its losses are measured all the same."""
    def change(content):
        for entry in content['validations']:
            del entry['metrics'][OLD_MAP]

    check = judged(tmp_path, change, old=True)['old-kept']
    assert check.passed is False and check.figures['share'] == 0


def without_a_set(content):
    content.update(baseline=dict(pretrained={}, random={}), validations=[])


@pytest.mark.parametrize(('old', 'change', 'why'), [
    (False, lambda content: None, 'no images of what the weights knew are followed'),
    (True, lambda content: content['baseline']['pretrained'].pop(OLD_MAP),
     'old/coco/bbox_mAP was 0.000 before training: the loaded weights find nothing there that could be kept'),
    (True, followed([0.9, 0.9], baseline=dict(guard()['baseline'], pretrained={**guard()['baseline']['pretrained'],
                                                                               OLD_MAP: 0})),
     'old/coco/bbox_mAP was 0.000 before'),
    (False, without_a_set, 'the run had no validation')])
def test_a_run_whose_old_domain_is_not_measured_is_no_all_clear(tmp_path, old, change, why):
    checks = [*judged(tmp_path, change, old=old).values()]
    assert verdict(checks) == 'NOT MEASURED' and checks[-1].passed is None
    line = verdict_line(checks)
    assert line.startswith(f'NOT MEASURED: whether the model was untrained: {why}') and '\n' not in line
    assert 'keep=dict(images=FOLDER)' in line and 'val_cfg.others=dict(old=...)' in line


@pytest.mark.parametrize(('start', 'result'), [('backbone', 'PASS'), ('nothing', 'FAIL')])
def test_where_nothing_was_learnt_before_nothing_is_asked(tmp_path, start, result):
    found = judged(tmp_path, kind=start)
    assert 'not asked' in found['old-kept'].line and verdict_line([*found.values()]) == result


def test_a_failure_stays_one_where_something_is_not_measured(tmp_path):
    assert verdict_line([*judged(tmp_path, kind='too_hot').values()]) == 'FAIL'


@pytest.mark.parametrize(('keep', 'shares', 'epoch'), [
    ({}, (0.5, 0.99, 0.9, 0.8), 30),  # the best by the new images alone
    (KEEP, (0.5, 0.99, 0.9, 0.8), 29),  # the best of those that keep enough
    (KEEP, (0.5, 0.6, 0.85, 0.7), 29),  # the one that keeps most
    (KEEP, (0.5, 0.6, 0.6, 0.6), 30)])
def test_the_best_checkpoint_is_one_that_keeps_enough(tmp_path, keep, shares, epoch):
    def change(content):
        followed(shares, keep=keep)(content)
        for index, each in enumerate(content['validations']):
            each['metrics']['coco/bbox_mAP'] = 0.1 * index

    judged(tmp_path, change, old=True)
    assert kept(read_run(tmp_path)).epoch == epoch


@pytest.mark.parametrize('change', [
    lambda content: content.update(bad_steps=1),
    lambda content: content['validations'][2]['weights'].update(neck=None),
    lambda content: content['events'][0].update(kind='nan')])
def test_each_trace_of_nan_fails(tmp_path, change):
    assert failed(judged(tmp_path, change)) == ['no-nan']


def test_the_tool_prints_and_exits_by_the_verdict(tmp_path):
    done = run_tool('check_run', write_run(tmp_path / 'good', old=True), cwd=ROOT)
    *lines, last = done.stdout.splitlines()
    assert done.returncode == 0 and last == 'verdict: PASS'
    assert [line.split()[:2] for line in lines] == [['PASS', name] for name in NAMES]
    done = run_tool('check_run', write_run(tmp_path / 'alone'), cwd=ROOT)
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith('verdict: NOT MEASURED: ')
    done = run_tool('check_run', write_run(tmp_path / 'nan', 'nan'), '--json', cwd=ROOT)
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    assert done.returncode == 1 and found['verdict'] == 'FAIL'
    assert [each['passed'] for each in found['checks']] == [True, True, True, False, None]


def test_the_tool_refuses_in_one_line(tmp_path):
    for arguments, message in (([tmp_path], 'drift_guard'), ([tmp_path / 'no'], 'no work folder'),
                               ([], 'required: WORK_DIR')):
        done = run_tool('check_run', *arguments, cwd=ROOT)
        assert done.returncode == 2 and done.stdout == ''
        line, = done.stderr.splitlines()
        assert line.startswith('error: ') and message in line


def test_json_holds_null_for_what_is_not_a_number(tmp_path):
    from mgdet_plugin.runs.run_checks import checks_json
    record = read_run(write_run(tmp_path, 'nothing'))
    checks = check_run(record)
    found = json.loads(json.dumps(checks_json(record, checks), allow_nan=False))
    assert found['checks'][0]['figures']['pretrained'] is None and verdict(checks) == 'FAIL'
