"""Reading what a run left in its work folder."""
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.runs.run import read_run
from mgdet_plugin.runs.run_checks import check_run, checks_text
from mgdet_plugin.runs.run_page import write_report
from tests.conftest import DATA, ROOT
from tests.support.run_folder import ITERS, KINDS, guard, scalars, write_run, write_scalars

LIGHT = """
import sys
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.deploy.draw import draw_detections
from mgdet_plugin.runs.blends import blend_weights
from mgdet_plugin.runs.evaluation import before_after, first_losses
from mgdet_plugin.runs.run_checks import check_run
from mgdet_plugin.runs.run_page import write_report

def heavy():
    return [name for name in ('torch', 'mmdet', 'mmengine', 'mmcv', 'matplotlib') if name in sys.modules]

_, run, missing = sys.argv
assert len(check_run(run)) == 5
for refused in (lambda: check_run(missing), lambda: write_report(missing), lambda: first_losses(missing, missing),
                lambda: before_after(dict(new=missing), missing, missing), lambda: blend_weights(missing, missing),
                lambda: blend_weights(run, run, [2]), lambda: draw_detections(missing, missing, 'out.png')):
    try:
        refused()
    except UserError:
        continue
    raise SystemExit('not refused')
print('read, judged, refused:', heavy())
write_report(run)
print('drawn:', heavy())
"""


def change(folder, **fields):
    """Set fields of ``guard.json``."""
    path = folder / 'guard.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_run_is_read_as_written(tmp_path):
    record = read_run(write_run(tmp_path / 'run'))
    content = guard('good')
    assert (record.start, record.limit, record.guarded) == ('full', 0.2, ['loss_obj', 'loss_cls'])
    assert [each.name for each in record.stages] == ['head', 'neck', 'full']
    assert record.last.metrics == content['validations'][-1]['metrics'] and record.last.epoch == 30
    assert record.pretrained == content['baseline']['pretrained'] and record.events[0].kind == 'spike'
    assert record.ratio('loss_cls', record.last) == pytest.approx(content['validations'][-1]['ratios']['loss_cls'])
    assert list(record.training['step'][:2]) == [10, 20] and len(record.training['loss']) == 30 * ITERS / 10
    assert 'coco/bbox_mAP' not in record.training  # lines of validations count epochs


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_can_be_read(tmp_path, kind):
    assert read_run(write_run(tmp_path / 'run', kind, old=True)).bad_steps == (3 if kind == 'nan' else 0)


def test_what_a_run_was_held_by_is_read_as_written(tmp_path):
    keep = dict(images=50, held_out=12, by='agreement', at_least=0.9, share=0.5, weight=1.0, form='maps', source='old/')
    record = read_run(write_run(tmp_path))
    assert record.keep == {} and record.at_least == 0.95
    record.keep = keep
    record.write(str(tmp_path))
    assert read_run(tmp_path).keep == keep and read_run(tmp_path).at_least == 0.9
    change(tmp_path, keep=dict(keep, of_a_later_release=1))
    assert read_run(tmp_path).keep == keep


def test_null_is_not_finite(tmp_path):
    record = read_run(write_run(tmp_path / 'run', 'nan'))
    assert math.isnan(record.validations[12].metrics['val/loss_coord'])
    assert math.isnan(record.events[-1].values['loss'])


def test_a_resumed_run_replaces_what_it_trained_again(tmp_path):
    """The first start logged to iteration 300, was resumed at 200 and has come to 260."""
    content = guard('good')
    folder = write_run(tmp_path / 'run')
    for path in folder.glob('2026*/vis_data/scalars.json'):
        path.write_text(''.join(json.dumps(each) + '\n' for each in scalars(content, 1, 300)))
    write_scalars(folder / '20261124_110000', scalars(content, 201, 260, shift=1000))
    log = read_run(folder).training
    assert list(log['step']) == list(range(10, 261, 10))
    assert (log['loss'][log['step'] > 200] > 1000).all() and (log['loss'][log['step'] <= 200] < 1000).all()


def test_a_line_being_written_is_left_for_later(tmp_path):
    folder = write_run(tmp_path / 'run')
    path, = folder.glob('*/vis_data/scalars.json')
    before = len(read_run(folder).training['step'])
    path.write_text(path.read_text() + '{"lr": 0.1, "loss": 1')
    assert len(read_run(folder).training['step']) == before


def test_a_damaged_log(tmp_path):
    folder = write_run(tmp_path / 'run')
    path, = folder.glob('*/vis_data/scalars.json')
    path.write_text('{"lr": 0.1,\n' + path.read_text())
    with pytest.raises(UserError, match=r'cannot read .*scalars\.json: .*move it away'):
        read_run(folder)


def test_without_a_log_the_training_curves_are_empty(tmp_path):
    folder = write_run(tmp_path / 'run')
    for path in folder.glob('*/vis_data/scalars.json'):
        path.unlink()
    record = read_run(folder)
    assert record.training == {} and record.epochs == 30


def test_epochs_follow_the_stages_iterations(tmp_path):
    """Stages with other batch sizes have other numbers of iterations an epoch."""
    folder = write_run(tmp_path / 'run', 'no_validation')
    change(folder, stages=[dict(name='a', first_epoch=0, first_iter=0), dict(name='b', first_epoch=2, first_iter=20),
                           dict(name='c', first_epoch=4, first_iter=100)])
    assert read_run(folder).epochs_at([0, 10, 20, 60, 100, 140]) == pytest.approx([0, 1, 2, 3, 4, 5])


def test_epochs_before_the_first_validation(tmp_path):
    folder = write_run(tmp_path / 'run', 'no_validation')
    path, = folder.glob('*/vis_data/scalars.json')
    path.write_text(''.join(json.dumps(each) + '\n' for each in scalars(guard('no_validation'), 1, 3 * ITERS)))
    assert read_run(folder).epochs == pytest.approx(3)


def test_numbers_that_are_no_json_numbers_in_the_log(tmp_path):
    folder = write_run(tmp_path / 'run')
    path, = folder.glob('*/vis_data/scalars.json')
    lines = path.read_text().splitlines()
    path.write_text('\n'.join([json.dumps({**json.loads(lines[0]), 'loss': math.nan}), *lines[1:]]) + '\n')
    assert np.isnan(read_run(folder).training['loss'][0])


@pytest.mark.parametrize(('fields', 'message'), [
    (dict(version=2), 'has version 2, known is 1'),
    (dict(start='all'), "start is 'all', expected one of full, backbone, nothing"),
    (dict(validations=3), 'validations is 3, expected a list of objects'),
    (dict(validations=[4]), r'validations\[0\] is 4, expected an object'),
    (dict(validations=[dict(epoch=-1)]), r'validations\[0\]\.epoch is -1, expected a whole number from 0'),
    (dict(limit=None), 'limit is None, expected a number'),
    (dict(baseline=dict(pretrained={'val/loss': 'low'})), r"baseline\.pretrained\.val/loss is 'low'"),
    (dict(guarded='loss_obj'), "guarded is 'loss_obj', expected a list of texts"),
    (dict(bad_steps=True), 'bad_steps is True'),
    (dict(ended='well'), "ended is 'well'"),
    (dict(keep=['maps']), r"keep is \['maps'\], expected an object"),
    (dict(keep=dict(images='many')), "keep.images is 'many', expected a whole number"),
    (dict(keep=dict(at_least=-1)), r'keep\.at_least is -1.0, expected a share above 0, at most 1'),
    (dict(keep=dict(by='eye')), "keep.by is 'eye', expected one of labels, agreement")])
def test_a_record_that_is_not_one(tmp_path, fields, message):
    folder = write_run(tmp_path / 'run')
    change(folder, **fields)
    with pytest.raises(UserError, match=message):
        read_run(folder)


def test_what_is_read_judged_and_drawn_needs_no_torch(tmp_path):
    """Nor does a refusal need matplotlib: each would take seconds to import."""
    done = subprocess.run([sys.executable, '-c', LIGHT, write_run(tmp_path / 'run'), tmp_path / 'nowhere'],
                          capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split('\n')[:2] == ['read, judged, refused: []', "drawn: ['matplotlib']"]


def test_missing_and_damaged_records(tmp_path):
    with pytest.raises(UserError, match=r'there is no work folder .*nowhere'):
        read_run(tmp_path / 'nowhere')
    with pytest.raises(UserError, match=r'neither a guard\.json.* hook drift_guard.* nor a vis_data'):
        read_run(tmp_path)
    for content in ('{"version": 1,', '[]', '\xff', '', '[' * 100_000):
        (tmp_path / 'guard.json').write_bytes(content.encode('latin-1'))
        with pytest.raises(UserError, match=r'guard\.json'):
            read_run(tmp_path)


def test_a_record_of_an_earlier_release_is_read_judged_and_drawn(tmp_path):
    """``demo_run/guard.json`` is what a run of the demo left before the record had one dataclass; byte for byte."""
    folder = Path(shutil.copytree(DATA / 'demo_run', tmp_path / 'run'))
    run = read_run(folder)
    assert [(each.name, each.first_epoch, each.first_iter) for each in run.stages] == [
        ('head', 0, 0), ('neck', 5, 250), ('full', 10, 500)]
    assert run.last.metrics['coco/bbox_mAP'] == 0.06 and run.best == ['coco/bbox_mAP', 'greater']
    lines = checks_text(run, check_run(run)).splitlines()
    assert lines[0] == ('PASS  loss-below-random    val/loss 278.8 at epoch 20, random start 549, pretrained 572.9')
    assert [line[:4] for line in lines] == ['PASS'] * 4 + ['FAIL', 'verd'] and lines[-1] == 'verdict: FAIL'
    assert 'old/coco/bbox_mAP 0.624 -> 0.291 at epoch 20, the best: 46.6% left, at least 95% asked' in lines[4]
    assert [path.name for path in write_report(folder)] == [
        'domains.png', 'losses.png', 'metrics.png', 'weights.png', 'report.html']
    run.write(str(tmp_path))
    assert (tmp_path / 'guard.json').read_bytes() == (DATA / 'demo_run' / 'guard.json').read_bytes()
