"""Blends: their ends are the files bit for bit, the middle is the mean, and the one measured best is picked."""
from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mgdet_plugin.common.checkpoints import load_checkpoint
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import check_destination
from mgdet_plugin.keep.blending import blend_states, check_alphas
from mgdet_plugin.plan.progress import stages_before
from mgdet_plugin.runs import held_out
from mgdet_plugin.runs.blend_measuring import spread_batches
from mgdet_plugin.runs.blend_report import blend_checkpoint, blend_figure, blend_table
from mgdet_plugin.runs.blends import BlendRow, blend_weights, main_metric, pick
from mgdet_plugin.weights.checkpoint import read_checkpoint
from tests.support.small_run import CLASSES, make_dataset, run_tool, write_config
from tests.support.staged_run import differences

MAP = 'coco/bbox_mAP'
STATISTICS = ('running_mean', 'running_var', 'num_batches_tracked')


class Files:
    """A config, and weights before and after a pretended fine-tuning that held the backbone's statistics."""

    def __init__(self, folder: Path):
        self.folder, self.data = folder, make_dataset(folder / 'data')
        self.run = folder / 'run'
        self.run.mkdir()
        self.config = write_config(self.run / 'config.py', self.data, **{'train_cfg.val_begin': 1})
        self.with_old = folder / 'with_old.py'
        cfg = Config.fromfile(self.config)
        cfg.val_cfg = dict(type='ValLoop', others=dict(old=dict(
            dataloader=cfg.val_dataloader.to_dict(), evaluator=cfg.val_evaluator.to_dict())))
        cfg.dump(self.with_old)
        init_default_scope('mmdet')
        torch.manual_seed(0)
        self.before = self.state(cfg)
        self.after = {key: value if key.startswith('backbone') and key.endswith(STATISTICS) else other
                      for (key, value), other in zip(self.before.items(), self.state(cfg).values())}
        meta = dict(dataset_meta=dict(classes=CLASSES), epoch=3, iter=6)
        entry = dict(name='full', trained_parts=['neck'])
        self.pre, self.fine = str(folder / 'pre.pth'), str(self.run / 'best.pth')
        torch.save(dict(state_dict=self.before, meta={}), self.pre)
        torch.save(dict(state_dict=self.after, meta=meta, mgdet=dict(history=[], entry=entry, stage=0, run='x')),
                   self.fine)

    @staticmethod
    def state(cfg):
        state = MODELS.build(cfg.model).state_dict()
        for key, value in state.items():
            if key.endswith('running_mean'):
                value.normal_()
            elif key.endswith('running_var'):
                value.uniform_(0.5, 2)
            elif key.endswith('num_batches_tracked'):
                value.fill_(len(key))
        return state


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return Files(tmp_path_factory.mktemp('blend'))


@pytest.fixture
def measured(monkeypatch):
    """In place of a measurement: new AP 0, 0.3, 0.4 and old AP 0.4, 0.35, 0.1 at alpha 0, 0.5 and 1."""
    tables = dict(new=(0.0, 0.3, 0.4), old=(0.4, 0.35, 0.1))
    calls = []

    def measure(model, loader, evaluator):
        calls.append({key: value.clone() for key, value in model.state_dict().items()})
        index, domain = divmod(len(calls) - 1, 2)
        return {MAP: tables[('new', 'old')[domain]][min(index, 2)], 'loss': float(index), 'loss_cls': 0.5}

    monkeypatch.setattr(held_out, 'measure', measure)
    return calls


@pytest.mark.parametrize('alpha', [0.0, 1.0])
def test_ends_are_the_files_bit_for_bit(files, measured, alpha):
    blend = blend_weights(files.pre, files.fine, [alpha], str(files.with_old))
    wanted = files.after if alpha else files.before
    assert differences(dict(measured[0]), dict(wanted)) == []
    assert differences(blend_checkpoint(blend)['state_dict'], dict(wanted)) == []


def test_the_middle_is_the_mean_with_its_own_statistics(files, measured):
    """What was held while fine-tuning is kept bit for bit, statistics that moved are neither end's nor their mean."""
    blend = blend_weights(files.pre, files.fine, [1, 0, 0.5], str(files.with_old))
    assert [row.alpha for row in blend.rows] == [0, 0.5, 1] and blend.picked == 1
    state = blend.state()
    assert differences(dict(measured[2]), state) == [], 'what is written is what was measured'
    for index, end in ((0, files.before), (4, files.after)):
        assert differences(dict(measured[index]), dict(end)) == [], 'an end keeps its statistics beside the middle, too'
    estimated = 0
    for key, value in state.items():
        one, other = files.before[key], files.after[key]
        if key.startswith('backbone') and key.endswith(STATISTICS):
            assert torch.equal(value, one)
        elif key.endswith(STATISTICS[:2]):
            estimated += 1
            assert not any(torch.allclose(value, each) for each in (one, other, (one + other) / 2))
        elif key.endswith(STATISTICS[2]):
            assert value == 2  # batches of four of eight images
        else:
            torch.testing.assert_close(value, (one.double() + other.double()).div(2).float(), rtol=0, atol=1e-7)
    assert estimated == 2 * 14


def test_equal_tensors_stay_bit_for_bit():
    """(1 - alpha) * w + alpha * w is not w in floating point."""
    weights = torch.randn(10_000)
    naive = 0.7 * weights + 0.3 * weights
    assert not torch.equal(naive, weights)
    state = blend_states(dict(w=weights, n=torch.tensor(3)), dict(w=weights.clone(), n=torch.tensor(5)), 0.3)
    assert torch.equal(state['w'], weights) and state['n'] == 5


def rows(*points):
    return [BlendRow(alpha, {MAP: new}, {MAP: old}) for alpha, new, old in points]


def test_picks():
    found = rows((0, 0.0, 0.40), (0.25, 0.2, 0.39), (0.5, 0.35, 0.30), (1, 0.4, 0.1))
    assert picked(found, 'mean') == (2, [])
    assert picked(found, 'new') == (1, [])
    assert picked(found, 'new', 0.7) == (2, [])
    assert picked(found, 'new', 0.0) == (3, [])
    assert pick(found, (MAP, ), 'mean', 0.95, found[0])[0] == 3
    assert picked(rows((0, 0.3, 0.2), (1, 0.2, 0.3)), 'mean')[0] == 0  # equal: nearest the pretrained
    assert picked(rows((0, math.nan, 0.2), (1, 0.0, 0.1)), 'mean')[0] == 1


def picked(found, by, keep=0.95):
    return pick(found, (MAP, MAP), by, keep, found[0])


def test_none_keeps_enough_is_said():
    found = rows((0, 0.0, 0.5), (0.5, 0.2, 0.3), (0.75, 0.3, 0.4), (1, 0.4, 0.1))
    index, [note] = pick(found[1:], (MAP, MAP), 'new', 0.95, found[0])
    assert index == 1 and note == (f'no blend keeps 0.95 of the old-domain {MAP} of the pretrained weights, 0.5000; '
                                   'picked is the highest there, alpha 0.75')


def test_pretrained_weights_are_measured_to_compare_with(files, measured):
    """Without 0 among the shares the old domain alone is measured there."""
    blend = blend_weights(files.pre, files.fine, [0.5, 1], str(files.with_old), by='new', keep=0.9)
    assert [row.alpha for row in blend.rows] == [0.5, 1] and len(measured) == 5
    assert differences(dict(measured[4]), dict(files.before)) == []


def test_statistics_of_both_domains_in_shares(files, measured):
    """Here both domains show the same images, in other batches: a quarter of one, three quarters of the other."""
    means = {}
    for alpha, statistics in ((0.25, 'new'), (0.25, 'both')):
        blend = blend_weights(files.pre, files.fine, [alpha], str(files.with_old), statistics=statistics, cfg_options={
            'val_cfg.others.old.dataloader.batch_size': 2})
        means[statistics] = blend.state()['neck.blocks.0.conv1.bn.running_var']
    other = blend_weights(files.pre, files.fine, [0.25], str(files.with_old), statistics='new', cfg_options={
        'val_dataloader.batch_size': 2}).state()['neck.blocks.0.conv1.bn.running_var']
    assert not torch.allclose(other, means['new'])
    torch.testing.assert_close(means['both'], 0.25 * means['new'] + 0.75 * other)
    with pytest.raises(UserError, match=r'--statistics both needs images of the old domain'):
        blend_weights(files.pre, files.fine, [0.5], str(files.config), statistics='both')


def test_statistics_can_be_blended_too(files, measured):
    blend = blend_weights(files.pre, files.fine, [0.5], str(files.with_old), statistics='blended')
    key = 'neck.blocks.0.conv1.bn.running_var'
    assert torch.allclose(blend.state()[key], (files.before[key] + files.after[key]) / 2)


def test_a_domain_on_which_nothing_is_found_counts_as_0_and_is_said():
    found = [BlendRow(0, {'loss': 1.0}, {MAP: 0.4}), BlendRow(1, {MAP: 0.4}, {MAP: 0.1})]
    index, [note] = picked(found, 'mean')
    assert index == 1 and note == f'alpha 0 finds nothing on the new domain: its {MAP} counts as 0'


def test_main_metric():
    assert main_metric([{'loss': 1.0}, {'a/mAP': 0.1, MAP: 0.2}], [MAP]) == MAP  # the evaluator's first
    assert main_metric([{'loss': 1.0, 'pascal_voc/mAP': 0.1, 'pascal_voc/AP50': 0.1}]) == 'pascal_voc/mAP'
    with pytest.raises(UserError, match='no mAP'):
        main_metric([{'loss': 1.0}])


@pytest.mark.parametrize('alphas, what', [([0, 1.1], '1.1'), ([-0.1], '-0.1'), ([math.nan], 'nan'),
                                          ([0, 0.5, 0.5], 'twice'), ([], 'empty'), ([math.inf], 'inf')])
def test_refuses_alphas(alphas, what):
    with pytest.raises(UserError, match=what):
        check_alphas(alphas)


@pytest.mark.parametrize('options, what', [
    (dict(statistics='none'), 'statistics must be one of'), (dict(keep=math.nan), 'keep must lie'),
    (dict(images=1, alphas=[0.5]), 'at least 2 images'), (dict(config='no.py'), r'no\.py is not there'),
    (dict(by='best'), 'pick must be one of')])
def test_refuses_options(files, options, what):
    with pytest.raises(UserError, match=what):
        blend_weights(files.pre, files.fine, **dict(dict(config=str(files.with_old)), **options))


def test_refuses_files_that_do_not_belong_together(files, tmp_path):
    def refused(change, match):
        state = {key: value.clone() for key, value in files.before.items()}
        change(state)
        torch.save(dict(state_dict=state), tmp_path / 'other.pth')
        with pytest.raises(UserError, match=match):
            blend_weights(str(tmp_path / 'other.pth'), files.fine, config=str(files.with_old))

    def classes(state):
        for key in state:
            if '.predict_convs.' in key:
                state[key] = torch.cat([state[key], state[key][:2]])

    refused(classes, 'different class counts .13 and 11 rows.*start.pth')
    refused(lambda state: state.pop('neck.blocks.0.conv1.conv.weight'), 'of different models: ')
    with pytest.raises(UserError, match=r'missing\.pth are not there'):
        blend_weights(str(tmp_path / 'missing.pth'), files.fine)


def test_the_config_beside_the_weights(files, tmp_path, measured):
    assert blend_weights(files.pre, files.fine, [1]).metrics == (MAP, )
    shutil.copy(files.fine, tmp_path / 'best.pth')
    with pytest.raises(UserError, match=r'holds 0 configs.*--config CFG'):
        blend_weights(files.pre, str(tmp_path / 'best.pth'))


def test_training_images_are_evenly_spread_and_not_augmented(files):
    cfg = Config.fromfile(files.config)
    cfg.val_dataloader.batch_size = 3
    batches = list(spread_batches(cfg.train_dataloader, cfg.val_dataloader, 4))
    ids = [sample.img_id for batch in batches for sample in batch['data_samples']]
    assert ids == [0, 2, 4, 6] and [len(batch['inputs']) for batch in batches] == [2, 2]
    again = list(spread_batches(cfg.train_dataloader, cfg.val_dataloader, 4))
    assert all(torch.equal(one, other) for pair in zip(batches, again) for one, other in
               zip(pair[0]['inputs'], pair[1]['inputs']))
    whole = spread_batches(cfg.train_dataloader, cfg.val_dataloader, 100)
    assert sum(len(batch['inputs']) for batch in whole) == 8


def test_table_and_picture(files, measured):
    blend = blend_weights(files.pre, files.fine, [0, 0.5, 1], str(files.with_old), by='new', keep=0.8)
    lines = blend_table(blend).splitlines()
    assert [line[:5] for line in lines if line.startswith('*')] == ['* 0.5'] and 'AP' in lines[1]
    assert lines[3].split() == ['*', '0.5', '0.300', '1.000', '0.500', '0.350', '1.000', '0.500']
    first, second = blend_figure(blend).axes
    assert list(first.lines[0].get_ydata()) == [0.0, 0.3, 0.4]
    assert [text.get_text() for text in second.texts] == ['0', '0.5', '1']


def test_the_tool(files, tmp_path):
    """Measured by mmdet's CocoMetric; what it writes is a whole checkpoint that tools and exporters take."""
    out, plot, report = tmp_path / 'blend.pth', tmp_path / 'plot.png', tmp_path / 'blend.json'
    done = run_tool('blend_weights', files.pre, files.fine, '--alphas', 0.5, '--config', files.config, '--out', out,
                    '--plot', plot, '--json', report, '--images', 4, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'only the new domain is measured' in done.stdout and '\n* 0.5 ' in done.stdout
    _, content = load_checkpoint(out)
    written = json.loads(report.read_text())
    assert content['meta']['blend'] == written and written['alpha'] == 0.5
    assert {MAP, 'loss', 'loss_obj'} <= set(written['table'][0]['new'])
    assert content['meta']['dataset_meta'] == dict(classes=CLASSES)
    assert [entry['name'] for entry in stages_before(content)] == ['full']
    assert read_checkpoint(out).class_names == list(CLASSES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['blend.json', 'blend.pth', 'plot.png']
    cfg = Config.fromfile(files.config)
    cfg.merge_from_dict(dict(load_from=str(out), work_dir=str(tmp_path / 'test'), experiment_name='blend'))
    assert Runner.from_cfg(cfg).test()[MAP] == pytest.approx(written['table'][0]['new'][MAP])


def test_the_tool_refuses(files, tmp_path):
    done = run_tool('blend_weights', files.pre, files.fine, '--alphas', 2, cwd=tmp_path)
    line, = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert done.returncode == 2 and 'within 0 and 1, got 2' in line and 'Traceback' not in done.stderr
    with pytest.raises(UserError, match='it is the file to read from'):
        check_destination(Path(files.fine), Path(files.pre), Path(files.fine))
    with pytest.raises(UserError, match=r'there is no folder .*no; make it'):
        check_destination(tmp_path / 'no' / 'plot.png', Path(files.pre), Path(files.fine))
