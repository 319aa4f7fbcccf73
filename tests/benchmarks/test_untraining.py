"""The ways to fine-tune differ in what they should, and what beats what is read off the right figures."""
from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from benchmarks import benchmark, untraining
from benchmarks.command import main
from benchmarks.trials import Finished, write_report
from benchmarks.trials import config_of as trials_config
from benchmarks.untraining import COMMON, CONFIG, best_weights, choose, compare_ways, trials, worst_ratio
from benchmarks.untraining_plot import blend_line, comparison_figure
from benchmarks.untraining_report import (
    Beaten,
    BlendPoint,
    Comparison,
    Row,
    Scores,
    beaten_ways,
    comparison_json,
    comparison_text,
    verdict,
)
from benchmarks.untraining_ways import LABELLED, SWEEP, TODAY, copied, old_images, ways
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.guard.guard_options import GuardOptions
from mgdet_plugin.plan.plan import Plan
from mgdet_plugin.plan.rules import check_rules, refuse_broken
from mgdet_plugin.runs.blends import Blend, BlendRow, Pair
from mgdet_plugin.runs.run import read_run
from tests.conftest import ROOT
from tests.support.run_folder import write_run

BREAKS = {'staged': None, 'all_1e-4': None, 'all_1e-3': 'rate', 'head_only': None, 'two_to_zero': 'skipped-level',
          'mosaic_frozen': 'mixing-while-frozen'}
HELD = {'keep_10': 'rate', 'keep_50': 'rate', 'keep_200': 'rate', 'keep_photos': 'rate', 'keep_new_alone': 'rate',
        'guide_keep_50': None, 'guide_keep_50_long': None, 'keep_50_weight_0.3': 'rate', 'keep_50_weight_3': 'rate',
        'keep_50_share_third': 'rate',
        **{f'keep_50_{name}': 'rate' for name in ('frozen_bn', 'lr_1e-3', 'lr_3e-3', 'no_mixing', 'half_steps')}}
KNOWN = ways(Config.fromfile(ROOT / CONFIG), {**{count: Path(f'old_{count}') for count in (10, 50, 200)},
                                              'photographs': Path('photographs')})


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """Stand in a folder with as many images and names as the embedded digits have, of no content, a box each."""
    monkeypatch.chdir(tmp_path)
    for domain, count in (('source', 600), ('target', 200)):
        folder = tmp_path / 'data/mgdet_digits' / domain
        (folder / 'train').mkdir(parents=True)
        names = [f'{index:04d}.jpg' for index in range(count)]
        for name in names:
            (folder / 'train' / name).touch()
        (folder / 'train.json').write_text(json.dumps(dict(
            images=[dict(id=index, file_name=name, width=192, height=192) for index, name in enumerate(names)],
            annotations=[dict(id=index + 1, image_id=index, category_id=1, bbox=[9, 9, 30, 40], area=1200, iscrowd=0)
                         for index in range(count)],
            categories=[dict(id=index, name=str(index)) for index in range(10)])))


def config_of(way):
    trial, = trials(way, KNOWN[way].options, [3])
    return trials_config(trial)


@pytest.fixture(scope='module')
def nano():
    init_default_scope('mmdet')
    return MODELS.build(Config.fromfile(ROOT / CONFIG).model)


@pytest.mark.parametrize('way', [*BREAKS, *HELD])
def test_each_way_runs_and_breaks_the_rule_it_is_named_for(way, nano):
    cfg = config_of(way)
    plan = Plan.from_cfg(cfg)
    refuse_broken(check_rules(plan, cfg, nano))
    found = {each.rule for each in check_rules(replace(plan, allow=frozenset()), cfg, nano) if each.is_error}
    assert found == {(BREAKS | HELD)[way]} - {None}
    assert plan.epochs == dict(steps=10, long=40).get(way.rpartition('_')[2], 20) and plan.start == 'full'
    assert cfg.train_cfg.val_interval == 5


def test_what_each_way_changes():
    assert [way for way, each in KNOWN.items() if each.family == TODAY] == list(BREAKS)
    brief = {way: [(stage.epochs, stage.freeze_level, stage.lr, stage.mosaic_prob, stage.mixup_prob)
                   for stage in Plan.from_cfg(config_of(way)).stages] for way in BREAKS}
    head, neck, full = (5, 2, 1e-4, 0, 0), (5, 1, 5e-5, 0.3, 0.1), (10, 0, 3e-5, 0.3, 0.1)
    assert brief == {
        'staged': [head, neck, full], 'all_1e-4': [(20, 0, 1e-4, 0.3, 0.1)], 'all_1e-3': [(20, 0, 1e-3, 0.3, 0.1)],
        'head_only': [(20, 2, 1e-4, 0, 0)], 'two_to_zero': [head, (15, 0, 3e-5, 0.3, 0.1)],
        'mosaic_frozen': [(5, 2, 1e-4, 1.0, 0.5), (5, 1, 5e-5, 1.0, 0.5), full]}


def test_a_run_takes_one_core_and_the_guard_only_watches():
    cfg = config_of('all_1e-3')
    loaders = [cfg[f'{split}_dataloader'] for split in ('train', 'val', 'test')]
    loaders.append(cfg.val_cfg.others.old.dataloader)
    assert [(each.num_workers, each.persistent_workers) for each in loaders] == [(0, False)] * 4
    assert [each.dataset.ann_file for each in loaders] == ['train.json', 'val.json', 'test.json', 'val.json']
    options = {key: value for key, value in cfg.default_hooks.drift_guard.items() if key != 'type'}
    guard = GuardOptions.build(options)
    assert {guard.actions(kind) for kind in ('drift', 'spike', 'divergence', 'nan', 'mismatch')} == {('warn', )}


def test_seeds_and_names_of_runs():
    found = trials('all_1e-4', KNOWN['all_1e-4'].options, [4, 9])
    assert [(each.name, each.seed) for each in found] == [('all_1e-4_seed4', 4), ('all_1e-4_seed9', 9)]
    assert all(set(COMMON) <= set(each.options) for each in found)
    assert choose(KNOWN, ()) == list(KNOWN) and choose(KNOWN, ['joint', 'staged']) == ['staged', 'joint']
    with pytest.raises(UserError, match="--only 'keep_5' is no way to fine-tune; there are staged, all_1e-4, "):
        choose(KNOWN, ['keep_5'])


def test_ways_that_hold_on():
    assert set(KNOWN) == {*BREAKS, *HELD, 'replay_50', 'joint', 'guide_long'}
    assert {way for way, each in KNOWN.items() if each.family == SWEEP} == {
        'keep_50_weight_0.3', 'keep_50_weight_3', 'keep_50_share_third', 'keep_50_frozen_bn', 'keep_50_lr_1e-3',
        'keep_50_lr_3e-3', 'keep_50_no_mixing', 'keep_50_half_steps', 'guide_long'}
    plans = {way: Plan.from_cfg(config_of(way)) for way in HELD}
    assert {way: (plan.keep.images, plan.keep.weight, plan.keep.beside(4)) for way, plan in plans.items()} == {
        **{f'keep_{count}': (f'old_{count}', 1, 4) for count in (10, 50, 200)}, 'keep_photos': ('photographs', 1, 4),
        'keep_new_alone': (None, 1, 4), 'guide_keep_50': ('old_50', 1, 4), 'guide_keep_50_long': ('old_50', 3, 4),
        'keep_50_weight_0.3': ('old_50', 0.3, 4),
        'keep_50_weight_3': ('old_50', 3, 4), 'keep_50_share_third': ('old_50', 1, 2),
        **{f'keep_50_{name}': ('old_50', 1, 4)
           for name in ('frozen_bn', 'lr_1e-3', 'lr_3e-3', 'no_mixing', 'half_steps')}}
    assert plans['keep_50_frozen_bn'].stages[0].freeze == ('*.bn', )
    assert {way for way, plan in plans.items() if len(plan.stages) == 3} == {'guide_keep_50', 'guide_keep_50_long'}
    assert plans['guide_keep_50_long'].epochs == Plan.from_cfg(config_of('guide_long')).epochs == 40


@pytest.mark.parametrize(('way', 'steps'), [('replay_50', 1000), ('joint', 1050)])
def test_ways_with_labels_take_as_many_steps_half_of_them_old(way, steps, digits):
    """And no image of one domain is mixed with one of the other: they are datasets of their own."""
    init_default_scope('mmdet')
    cfg = config_of(way)
    data = DATASETS.build(cfg.train_dataloader.dataset)
    new, old = (len(each) for each in data.datasets)
    assert new == old and (new + old) / cfg.train_dataloader.batch_size * Plan.from_cfg(cfg).epochs == steps
    assert KNOWN[way].family == LABELLED and cfg.train_dataloader.batch_size == 8
    if way == 'replay_50':
        seen = {data.datasets[1].get_data_info(index)['img_path'] for index in range(old)}
        assert {Path(path).name for path in seen} == {f'{index:04d}.jpg' for index in range(50)}


def test_old_images_are_copied_without_their_labels(digits, tmp_path):
    found, notes = old_images(tmp_path, None)
    assert {count: len(list(folder.iterdir())) for count, folder in found.items()} == {10: 10, 50: 50, 200: 200}
    assert {path.suffix for folder in found.values() for path in folder.iterdir()} == {'.jpg'}
    assert notes == ['keep_photos was not trained: give 128 photographs with --photographs DIR']
    with pytest.raises(UserError, match=r'--photographs .*old_10 holds 10 JPEG files; 128 are needed'):
        old_images(tmp_path, found[10])
    found, notes = old_images(tmp_path, found[200])
    assert len(list(found['photographs'].iterdir())) == 128 and not notes
    kept = (found[10] / '0003.jpg').stat().st_mtime_ns
    assert copied(sorted(found[10].iterdir()), found[10]) and (found[10] / '0003.jpg').stat().st_mtime_ns == kept


def row(way, seed, new, old, drift=1.0, old_drift=2.0, seconds=60.0):
    return Row(way, seed, Scores(new, min(1.0, 2 * new), old, min(1.0, 2 * old)), drift, old_drift, seconds)


ROWS = (row('staged', 0, 0.10, 0.30), row('staged', 1, 0.20, 0.40),
        row('clear', 0, 0.05, 0.10, math.inf, None), row('clear', 1, 0.09, 0.20),  # every seed below on both
        row('close', 0, 0.11, 0.28), row('close', 1, 0.12, 0.35),  # means below, seeds within
        row('trade', 0, 0.50, 0.01), row('trade', 1, 0.60, 0.02),
        row('equal', 0, 0.10, 0.20), row('equal', 1, 0.20, 0.20),  # the same mean new AP is not beaten
        row('staged_blend', 0, 0.13, 0.50), row('staged_blend', 1, 0.14, 0.52))
BLENDS = (BlendPoint('staged', 0, 0.5, Scores(0.0, 0.1, 0.6, 0.9), False),
          BlendPoint('staged', 0, 0.9, ROWS[10].scores, True),
          BlendPoint('staged', 1, 0.5, Scores(0.1, 0.1, 0.4, 0.9), False),
          BlendPoint('staged', 1, 0.9, ROWS[11].scores, True))
START = Scores(0.0, 0.002, 0.622, 0.972)


@pytest.fixture
def comparison():
    return Comparison(START, ROWS, BLENDS, 0.65)


def test_what_is_beaten_on_both_domains(comparison):
    found = beaten_ways(comparison)
    assert {(each.way, each.by): each.beyond_spread for each in found if each.by == 'staged'} == {
        ('clear', 'staged'): True, ('close', 'staged'): False}
    assert not [each for each in found if each.way in ('staged', 'trade')]
    assert Beaten('clear', 'staged_blend', True) in found and Beaten('close', 'staged_blend', True) in found
    assert verdict(comparison) == [
        '- staged has the higher AP on both domains than: clear (every seed), close (in the mean); the lower on both '
        'than: none',
        '- staged_blend has the higher AP on both domains than: clear (every seed), close (every seed); the lower on '
        'both than: none']
    turned = replace(comparison, rows=tuple(replace(each, way=dict(staged='clear', clear='staged').get(each.way,
                                                                                                    each.way))
                                            for each in ROWS))
    assert 'the lower on both than: clear (every seed), close (every seed)' in verdict(turned)[0]


def test_the_table(comparison):
    lines = comparison_text(comparison).splitlines()
    assert lines[:4] == [
        '| way | runs | new AP | new AP50 | old AP | old AP50 | K | N | H | worst drift | old drift | seconds |',
        '|---|---|---|---|---|---|---|---|---|---|---|---|',
        '| loaded weights | - | 0.000 | 0.002 | 0.622 | 0.972 | - | - | - | - | - | - |',
        '| staged | 2 | 0.150 ± 0.071 | 0.300 ± 0.141 | 0.350 ± 0.071 | 0.700 ± 0.141 | 0.563 ± 0.114 | - | - | '
        '1.00 ± 0.00 | 2.00 ± 0.00 | 60 ± 0 |']
    clear, = [line for line in lines if line.startswith('| clear')]
    assert clear.endswith('| inf | - | 60 ± 0 |')
    assert 'alpha 0.9 (seed 0), 0.9 (seed 1)' in '\n'.join(lines)


def test_one_seed_has_no_spread(comparison):
    alone = replace(comparison, rows=tuple(each for each in ROWS if each.seed == 0), blends=())
    text = comparison_text(alone)
    assert '±' not in text.split('\n\n')[0] and (
        '| staged | 1 | 0.100 | 0.200 | 0.300 | 0.600 | 0.482 | - | - | 1.00 | 2.00 | 60 |') in text
    assert 'picked' not in text and blend_line(alone) == []


def test_shares_of_what_was_known_and_of_what_can_be_won(comparison):
    """Against the loaded weights and the mean of everything at 1e-3; both at once as their harmonic mean."""
    rows = (row('all_1e-3', 0, 0.5, 0.0), row('all_1e-3', 1, 0.7, 0.0), row('keep_50', 0, 0.6, 0.311),
            row('trade', 0, 0.3, 0.622), row('above', 0, 0.2, 0.5))
    found = replace(comparison, rows=rows, blends=())
    assert found.values('keep_50', 'kept') == [pytest.approx(0.5)]
    assert found.values('keep_50', 'won') == [pytest.approx(1.0)]
    assert found.values('keep_50', 'both') == [pytest.approx(2 / 3)]
    assert found.values('all_1e-3', 'both') == [0, 0] and found.values('trade', 'both') == [pytest.approx(2 / 3)]
    assert verdict(found)[-1] == ('- higher than keep_50 on one domain: new AP: none; old AP: trade (0.622), '
                                  'above (0.500)')


def test_the_files(comparison, tmp_path):
    paths = write_report(tmp_path, 'found', comparison_json(comparison), comparison_text(comparison),
                         comparison_figure(comparison, KNOWN))
    assert [path.name for path in paths] == ['found.json', 'found.md', 'found.png']
    content = json.loads(paths[0].read_text())
    assert content['rows'][2] == dict(way='clear', seed=0, new_ap=0.05, new_ap50=0.1, old_ap=0.1, old_ap50=0.2,
                                      worst_drift=None, old_drift=None, seconds=60.0)
    assert content['means']['staged']['new_ap']['mean'] == pytest.approx(0.15)
    assert content['means']['clear']['old_drift'] is None and len(content['beaten']) == len(beaten_ways(comparison))
    assert content['blends'][1] == dict(way='staged', seed=0, alpha=0.9, picked=True, new_ap=0.13, new_ap50=0.26,
                                        old_ap=0.5, old_ap50=1.0)
    assert paths[1].read_text() == comparison_text(comparison)
    assert paths[2].read_bytes()[:4] == b'\x89PNG' and len(list(tmp_path.iterdir())) == 3


def test_the_plot_names_each_way_once_and_no_name_covers_another_or_a_mark():
    """As crowded as it gets: all ways, those that keep near one another; other settings have no names."""
    at = {'staged': (0.285, 0.07), 'head_only': (0.5, 0.0), 'all_1e-3': (0.01, 0.60), 'all_1e-4': (0.03, 0.42)}
    crowd = [way for way in KNOWN if way not in at]
    at |= {way: (0.58 + 0.005 * (index % 4), 0.59 + 0.004 * index) for index, way in enumerate(crowd)}
    found = Comparison(START, tuple(row(way, seed, new, old) for way, (old, new) in at.items() for seed in (0, 1)),
                       BLENDS, 0.65)
    figure = comparison_figure(found, KNOWN)
    axes, = figure.axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert {*KNOWN, 'staged blended'} <= set(lines)
    assert (lines['staged'].get_xdata()[0], lines['staged'].get_ydata()[0]) == (0.285, 0.07)
    assert lines['keep_50'].get_marker() == '*' != lines['keep_10'].get_marker()
    texts = {each.get_text(): each for each in axes.texts}
    assert set(texts) == {'loaded weights', *(each.title for each in KNOWN.values() if each.family != SWEEP)}
    assert texts['keep, 50 old images'].get_weight() == 'bold'
    boxes = [each.get_window_extent(figure.canvas.get_renderer()) for each in axes.texts]
    marks = axes.transData.transform([lines[way].get_xydata()[0] for way in KNOWN])
    for index, box in enumerate(boxes):
        assert box.count_overlaps(boxes[index + 1:]) == 0
        assert not [mark for mark in marks if box.contains(*mark)]
        assert axes.get_window_extent().contains(box.x0, box.y0) and axes.get_window_extent().contains(box.x1, box.y1)


def test_a_blend_is_a_line_between_its_ends(comparison):
    line = [pytest.approx(each) for each in ((0.622, 0.0), (0.5, 0.05), (0.51, 0.135), (0.35, 0.15))]
    assert blend_line(comparison) == line and blend_line(comparison, 'keep_50') == []
    axes, = comparison_figure(comparison, KNOWN).axes
    drawn, = [each for each in axes.get_lines() if each.get_label() == 'staged blended']
    assert list(map(tuple, drawn.get_xydata())) == line


def test_worst_drift_is_that_of_the_worst_validation(tmp_path):
    record = read_run(write_run(tmp_path / 'run', 'too_hot'))
    metrics = [each.metrics for each in record.validations]
    assert worst_ratio(record, metrics, 'val/') == pytest.approx(1.12 ** 7)
    assert worst_ratio(record, metrics[:3], 'val/') == pytest.approx(1.12 ** 2)
    assert worst_ratio(record, metrics, 'old/') is None
    followed = replace(record, pretrained={**record.pretrained, 'old/loss_cls': 2.0, 'old/loss_coord': 1.0})
    seen = [{'old/loss_cls': 3.0, 'old/loss_coord': 50.0}, {'old/loss_cls': 2.5}]  # boxes' loss is not guarded
    assert worst_ratio(followed, seen, 'old/') == 1.5
    assert worst_ratio(followed, [*seen, {'old/loss_cls': math.nan}], 'old/') == math.inf


def test_without_a_best_checkpoint_the_last_one_counts(tmp_path):
    (tmp_path / 'last_checkpoint').write_text('somewhere/epoch_20.pth')
    assert best_weights(tmp_path) == 'somewhere/epoch_20.pth'
    (tmp_path / 'best.pth').touch()
    assert best_weights(tmp_path) == str(tmp_path / 'best.pth')


class Stub:
    """Instead of test sets: a checkpoint scores by its folder, tensors by the weight and the statistic in them."""

    def scores_of(self, path):
        folder = Path(path)
        return START if folder.name == 'start.pth' else Scores(0.1 if 'staged' in folder.parent.name else 0.2, 0.3,
                                                               0.4, 0.5)

    def scores(self, state):
        return Scores(float(state['w']), float(state['bn.running_mean']), 0.4, 0.5)


def test_blends_are_picked_by_validation_and_measured_with_their_own_statistics(tmp_path, monkeypatch):
    calls = []

    def blend(pretrained, finetuned, alphas, by, keep):
        calls.append((Path(pretrained).name, Path(finetuned).name, tuple(alphas), by, keep))
        states = [{'w': torch.tensor(value), 'bn.running_mean': torch.tensor(value)} for value in (0.0, 1.0)]
        rows = tuple(BlendRow(alpha, {'loss_obj': 6.3 * 1.1, 'loss_cls': 3.3}, {},
                              {'bn.running_mean': torch.tensor(10 * alpha)}) for alpha in alphas)
        return Blend(Pair((pretrained, finetuned), tuple(states), {}), rows, ('coco/bbox_mAP', ), 2, by, keep, 'both',
                     ())

    monkeypatch.setattr(untraining, 'blend_weights', blend)
    runs = {way: [Finished(trials(way, {}, [5])[0], write_run(tmp_path / way, kind), 30.0)]
            for way, kind in (('staged', 'good'), ('all_1e-3', 'too_hot'))}
    found = compare_ways(runs, Stub())
    assert calls == [('start.pth', 'best.pth', (0.25, 0.5, 0.75, 0.9), 'new', 0.65)]
    assert compare_ways(runs, Stub()) == found and len(calls) == 1  # it was remembered
    kept = Finished(trials('keep_50', {}, [5])[0], write_run(tmp_path / 'kept', 'good'), 30.0)
    compare_ways({'keep_50': [kept]}, Stub())
    assert calls[1][3] == 'mean'
    assert found.start == START and found.ways == ['staged', 'all_1e-3', 'staged_blend']
    staged, naive, blended = found.rows
    assert (staged.seed, staged.scores.new_ap, staged.seconds) == (5, 0.1, 30.0) and staged.worst_drift < 1.1
    assert naive.scores.new_ap == 0.2 and naive.worst_drift == pytest.approx(1.12 ** 7) and naive.old_drift is None
    assert [(each.alpha, each.scores[:2], each.picked) for each in found.blends] == [
        (0.25, (0.25, 2.5), False), (0.5, (0.5, 5.0), False), (0.75, (0.75, 7.5), True),
        (0.9, pytest.approx((0.9, 9.0)), False)]
    assert blended.scores == found.blends[2].scores and blended.worst_drift == pytest.approx(1.1)
    assert 30.0 < blended.seconds < 40.0


@pytest.fixture
def tool(monkeypatch):
    """Return a function that runs the tool with stand-ins for its suites, and what was run."""
    ran = []
    timed = dict(suite='quick', peer='p', device='cpu', threads=1, ours_s=1.0, peer_s=2.0, ratio=0.5)
    monkeypatch.setattr(benchmark, 'SUITES', {})
    monkeypatch.setattr(benchmark, 'ROWS', {'quick': lambda: ran.append('quick') or [timed]})
    monkeypatch.setattr(benchmark, 'LEARNING', {'untraining': lambda options: ran.append(options) or 'a report'})

    def run(*arguments):
        assert main(arguments) == 0

    return run, ran


def test_learning_runs_only_when_it_is_named(tool, capsys):
    run, ran = tool
    run()
    assert ran == ['quick'] and 'ratio 0.50' in capsys.readouterr().out
    run('untraining', '--jobs', '3', '--seeds', '4', '5', '--out', 'here')
    options = ran[1]
    assert len(ran) == 2 and (options.folder, options.jobs, options.seeds) == (Path('here'), 3, (4, 5))
    assert capsys.readouterr().out == 'a report\n'


def test_the_tool_runs_from_any_folder(tmp_path):
    env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    done = subprocess.run([sys.executable, str(ROOT / 'tools/benchmark.py'), 'nosuch'], cwd=tmp_path, env=env,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: no suite ['nosuch']; there are inference, ")


@pytest.mark.parametrize('arguments, message', [
    (['untraining', 'nosuch'], r"no suite \['nosuch'\]; there are quick, untraining"),
    (['untraining', '--jobs', '0'], '--jobs must be at least 1'), (['untraining', '--seeds', 'x'], "invalid int .*'x'"),
    (['quick', '--seeds', '1', '1'], '--seeds must be different')])
def test_bad_values_are_refused_before_anything_runs(tool, arguments, message):
    run, ran = tool
    with pytest.raises(UserError, match=message):
        run(*arguments)
    assert ran == []
