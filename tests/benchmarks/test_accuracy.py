"""The head to head: what each run is told, which are chosen and reported, whose lead counts, and scoring anew."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope

from benchmarks import accuracy as suite
from benchmarks import accuracy_plot as plot
from benchmarks import accuracy_report as report
from benchmarks import benchmark, rescoring
from benchmarks.accuracy import CASES, Case, accuracy, choose, curve, finished_runs, ordered_trials
from benchmarks.accuracy_report import METRICS, OURS, PEER, Accuracy, Run, Score
from benchmarks.benchmark import LearningOptions
from benchmarks.command import main
from benchmarks.rescoring import SCORINGS, RawMaps, Scoring, distinct, settings
from benchmarks.trials import config_of, write_report
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.runs.held_out import build_domain
from tests.conftest import ROOT
from tests.support.small_run import make_dataset, write_config

TITLES = [case.title for case in CASES]
VARIANTS = {case.name: case for case in CASES if case.group == 'variants'}


def figures(ap, small=-1.0):
    return dict(zip(METRICS, (ap, ap + 0.2, ap - 0.1, small, ap, ap)))


def run(name, seed, *aps, group='heads', data='bccd', seconds=60.0):
    """A run that was measured at epochs 3, 6, ..."""
    points = {3 * (index + 1): figures(ap) for index, ap in enumerate(aps)}
    return Run(group, data, name, seed, 2_750_000 if name == OURS else 3_860_000, points, seconds)


@pytest.fixture
def result():
    runs = (run(OURS, 0, 0.2, 0.4, 0.5), run(OURS, 1, 0.3, 0.5, 0.54, seconds=80.0),
            run(PEER, 0, 0.1, 0.2, 0.4), run(PEER, 1, 0.1, 0.2, 0.46),
            run('recipe', 0, 0.44, group='variants'), run('recipe', 1, 0.48, group='variants'),
            run('overlap_iol', 1, 0.45, group='variants'),
            run(OURS, 0, 0.7, data='digits'), run(PEER, 0, 0.8, data='digits'))
    scores = tuple(Score('bccd', OURS, name, seed, figures(ap)) for name, seed, ap in (
        (report.CONFIGURED, 0, 0.5), (report.CONFIGURED, 1, 0.54), ('standard', 0, 0.48), ('standard', 1, 0.52)))
    return Accuracy(runs, scores)


@pytest.mark.parametrize('case', CASES, ids=TITLES)
def test_each_run_is_as_long_as_said_and_its_last_epoch_is_measured(case):
    epochs, interval = ((suite.VARIANT_EPOCHS,) * 2 if case.group == 'variants'
                        else (suite.EPOCHS[case.data], suite.VAL_INTERVAL[case.data]))
    cfg = config_of(case.trial(7))
    assert cfg.randomness.seed == 7 and cfg.train_cfg.max_epochs == epochs
    assert cfg.train_cfg.val_interval == interval and epochs % interval == 0
    assert [each.type for each in cfg.param_scheduler] == ['LinearLR', 'CosineAnnealingLR']
    assert 'T_max' not in cfg.param_scheduler[0] and cfg.param_scheduler[1].T_max == epochs
    assert cfg.default_hooks.checkpoint.interval == epochs
    assert all(cfg[f'{split}_dataloader'].num_workers == 0 for split in ('train', 'val', 'test'))
    assert cfg.val_dataloader.dataset == cfg.test_dataloader.dataset and cfg.val_evaluator == cfg.test_evaluator


@pytest.mark.parametrize('data', ['bccd', 'digits'])
def test_heads_differ_in_nothing_but_the_model(data):
    ours, peer = (config_of(case.trial(0)) for case in choose(CASES, [f'heads/{data}']))
    assert ours.model.bbox_head.type == 'MultiGridHead' and peer.model.bbox_head.type == 'YOLOV3Head'
    assert ours.model.backbone.pop('frozen_stages') == -1  # nothing is frozen; the peer does not say so
    assert ours.model.backbone == peer.model.backbone and ours.model.data_preprocessor == peer.model.data_preprocessor
    others = [{key: value for key, value in cfg.to_dict().items() if key not in ('model', 'norm_cfg')}
              for cfg in (ours, peer)]
    assert others[0] == others[1] and 'train_dataloader' in others[0]


@pytest.mark.parametrize(('name', 'changed'), [
    ('conflict_reference', {'assigner.conflict': ('nearest', 'reference')}),
    ('overlap_iol', {'loss.overlap': ('iou', 'iol')}),
    ('likely_anchor', {'bbox_coder.anchor_use': ('expected', 'likely')}), ('recipe', {}),
    ('quality_focal', {'loss.objectness_gamma': (None, 1.5)}),
    ('cells_by_fit', {'loss.cell_weight_power': (None, 1.0)})])
def test_a_variant_changes_one_thing(name, changed):
    base, other = (config_of(case.trial(0)) for case in (CASES[0], VARIANTS[name]))
    assert other.train_cfg.max_epochs < base.train_cfg.max_epochs
    for cfg in (base, other):
        for key in ('train_cfg', 'param_scheduler', 'default_hooks'):
            cfg.pop(key)  # another length
    for key, (before, after) in changed.items():
        part, leaf = key.split('.')
        assert base.model.bbox_head[part].get(leaf) == before and other.model.bbox_head[part][leaf] == after
        other.model.bbox_head[part].pop(leaf) if before is None else other.model.bbox_head[part].update({leaf: before})
    assert other.to_dict() == base.to_dict()


def test_the_imported_recipe_is_that_of_the_fine_tuning_configs():
    case, ours = VARIANTS['imported_recipe'], config_of(CASES[0].trial(0)).model
    model = config_of(case.trial(0)).model
    recipe = Config.fromfile(ROOT / 'configs/_base_/models/multigrid_nano.py').model
    assert model.bbox_head.anchors == ours.bbox_head.anchors and model.bbox_head.num_classes == 3
    recipe.bbox_head.update(anchors=ours.bbox_head.anchors, num_classes=3)
    assert config_of(case.trial(0)).default_hooks.class_weights.type == 'ClassWeightsHook'  # for its balanced classes
    for key in ('score_thr', 'max_per_img'):
        assert model.test_cfg[key] == ours.test_cfg[key]
        recipe.test_cfg[key] = ours.test_cfg[key]
    assert model == recipe and model != ours


def test_an_interval_that_misses_the_last_epoch_is_refused():
    with pytest.raises(ValueError, match='heads/bccd/x: the interval 4 is no divisor of 30'):
        Case('heads', 'bccd', 'x', 'c.py', 30, 4)


@pytest.mark.parametrize(('only', 'chosen'), [
    ([], TITLES),
    (['heads'], TITLES[:4]),
    (['variants'], TITLES[4:]),
    (['digits'], ['heads/digits/multigrid', 'heads/digits/yolov3']),
    (['yolo', 'variants/bccd/over'], ['heads/bccd/yolov3', 'heads/digits/yolov3', 'variants/bccd/overlap_iol'])])
def test_names_choose_runs(only, chosen):
    assert [case.title for case in choose(CASES, only)] == chosen


@pytest.mark.parametrize('name', ['grid', '', 'heads/mnist'])  # 'grid' begins no part
def test_a_name_of_nothing_is_refused_with_those_there_are(name):
    with pytest.raises(UserError, match=f"--only '{name}' stands for no run; there are heads/bccd/multigrid, "):
        choose(CASES, ['digits', name])


def test_whole_comparisons_come_first():
    names = [each.name for each in ordered_trials(choose(CASES, ['heads/bccd', 'variants/bccd/likely']), (4, 2))]
    assert names == ['heads_bccd_multigrid_seed4', 'heads_bccd_yolov3_seed4', 'heads_bccd_multigrid_seed2',
                     'heads_bccd_yolov3_seed2', 'variants_bccd_likely_anchor_seed4',
                     'variants_bccd_likely_anchor_seed2']


def test_mixed_precision_is_of_what_is_trained_and_of_what_is_found(tmp_path, monkeypatch):
    trained, found = [], []
    monkeypatch.setattr(suite, 'check_data', lambda _: None)
    monkeypatch.setattr(suite, 'run_trials', lambda trials, *_: trained.extend(trials))
    monkeypatch.setattr(suite, 'finished_runs', lambda cases, _: found.append(cases[0].trial(3)) or [])
    (tmp_path / 'accuracy').mkdir()
    accuracy(LearningOptions(tmp_path, 1, (3, ), amp=True), CASES[:1])
    assert trained == found and trained[0].options['optim_wrapper.type'] == 'AmpOptimWrapper'


def test_missing_data_is_one_line_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, 'run_trials', lambda *_: pytest.fail('trained'))
    cfg = Config.fromfile(ROOT / CASES[0].config)
    for each in cfg.train_dataloader.dataset.datasets:
        each.data_root = str(tmp_path / 'nothing')
    cfg.dump(tmp_path / 'mini.py')
    case = Case('heads', 'bccd', OURS, str(tmp_path / 'mini.py'), 2, 1)
    with pytest.raises(UserError, match=r'train\[0\]: ann_file .*nothing/annotations/train.json is not there'):
        accuracy(LearningOptions(tmp_path / 'out', 1, (0, )), [case])


def test_all_finished_runs_are_reported_and_no_other(tmp_path):
    config = tmp_path / 'mini.py'
    config.write_text('rate = 1.0\n')
    case, other = (Case('heads', 'bccd', name, str(config), 2, 1) for name in (OURS, PEER))

    def finish(seed, config):
        folder = tmp_path / case.trial(seed).name
        folder.mkdir()
        (folder / 'finished.json').write_text(json.dumps(dict(config=config, seconds=5.0)))

    for seed in (10, 2):
        finish(seed, config_of(case.trial(seed)).pretty_text)
    finish(3, 'another')
    (tmp_path / case.trial(4).name).mkdir()  # was cut off
    found = {each.title: [run.trial.seed for run in runs] for each, runs in finished_runs([case, other], tmp_path)}
    assert found == {'heads/bccd/multigrid': [2, 10], 'heads/bccd/yolov3': []}


def test_an_epoch_without_detections_counts_as_zero(tmp_path):
    path = tmp_path / '20260101_000000/vis_data/scalars.json'
    path.parent.mkdir(parents=True)
    lines = [dict(step=2, time=0.1), {'coco/bbox_mAP': 0.3, 'coco/bbox_mAP_s': -1.0, 'step': 4}]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    found = curve(Case('heads', 'digits', OURS, 'c.py', 4, 2), tmp_path)
    assert list(found) == [2, 4] and found[2] == dict.fromkeys(METRICS, 0.0)
    assert (found[4]['AP'], found[4]['AP small'], found[4]['AP50']) == (0.3, -1.0, 0.0)


def test_the_lead_and_how_soon_it_is_there(result):
    found = report.lead(result, 'bccd')
    assert found.ap == pytest.approx(0.09) and found.target == pytest.approx(0.43)
    assert found.reached == 6  # the mean curve is 0.25, 0.45, 0.52; one seed alone is at 0.40
    assert found.beyond_spread and found.seeds == 2
    assert report.lead(Accuracy((run(OURS, 0, 0.5), )), 'bccd') is None


@pytest.mark.parametrize(('ours', 'peer', 'beyond', 'words'), [
    ((0.5, 0.6), (0.4, 0.49), True, 'beyond the spread: its worst seed 0.500, the best of yolov3 0.490'),
    ((0.5, 0.6), (0.4, 0.5), False, 'within the spread'),
    ((0.5, 0.6), (0.2, 0.55), False, 'within the spread'),
    ((0.3, 0.4), (0.41, 0.6), True, 'beyond the spread: its best seed 0.400, the worst of yolov3 0.410'),
    ((0.5, 0.6), (0.1, ), False, 'one seed, spread unknown')])
def test_beyond_the_spread_is_every_seed(ours, peer, beyond, words):
    runs = [run(name, seed, ap) for name, aps in ((OURS, ours), (PEER, peer)) for seed, ap in enumerate(aps)]
    result = Accuracy(tuple(runs))
    found = report.lead(result, 'bccd')
    assert found.beyond_spread == beyond and words in report.lead_text('bccd', result, found)


@pytest.mark.parametrize(('target', 'epoch'), [(0.2, 3), (0.21, 9), (0.5, 9), (0.51, None)])
def test_epochs_to_reach(target, epoch):
    assert report.epochs_to_reach({9: 0.5, 3: 0.2, 6: 0.1}, target) == epoch


def test_the_tables(result):
    lines = report.accuracy_text(result).splitlines()
    assert ('| multigrid | 2.75 M | 0.520 ± 0.028 | 0.720 ± 0.028 | 0.420 ± 0.028 | - | 0.520 ± 0.028 | '
            '0.520 ± 0.028 | 0, 1 |') in lines
    assert ('multigrid - yolov3: +0.090 AP (beyond the spread: its worst seed 0.500, the best of yolov3 0.460). The '
            'mean of multigrid reaches 0.430, the mean of yolov3 at the end, at epoch 6 of 9.') in lines
    assert ('multigrid - yolov3: -0.100 AP (one seed, spread unknown). The mean of multigrid does not reach 0.800, '
            'the mean of yolov3 at the end, in 3 epochs.') in lines
    # against seed 1 alone (0.48), the only one the variant has
    assert '| overlap_iol | 0.450 | 0.650 | 0.350 | - | 0.450 | 0.450 | -0.030 | 1 |' in lines
    assert 'Runs of 3 epochs; differences are over seeds that both have.' in lines
    assert '| multigrid: as configured | 0.520 ± 0.028 | 0.720 ± 0.028 | 0.420 ± 0.028 | - | 0, 1 |' in lines
    assert '| multigrid: standard | 0.500 ± 0.028 | 0.700 ± 0.028 | 0.400 ± 0.028 | -0.020 | 0, 1 |' in lines


def test_a_report_of_variants_alone():
    text = report.accuracy_text(Accuracy((run('overlap_iol', 0, 0.4, group='variants'), )))
    assert '| overlap_iol | 0.400 | 0.600 | 0.300 | - | 0.400 | 0.400 | - | 0 |' in text
    assert 'head to head' not in text and plot.accuracy_figure(Accuracy(())).axes


def test_the_files(result, tmp_path):
    paths = write_report(tmp_path, 'accuracy', report.accuracy_json(result), report.accuracy_text(result),
                         plot.accuracy_figure(result))
    assert [path.name for path in paths] == ['accuracy.json', 'accuracy.md', 'accuracy.png']
    found = json.loads(paths[0].read_text())
    assert found['runs'][0]['curve'] == {str(epoch): figures(ap) for epoch, ap in ((3, 0.2), (6, 0.4), (9, 0.5))}
    assert found['leads']['bccd']['beyond_spread'] is True and found['leads']['bccd']['reached'] == 6
    assert len(found['scores']) == 4 and paths[1].read_text() == report.accuracy_text(result)
    assert paths[2].read_bytes().startswith(b'\x89PNG')


def test_the_plot_has_a_panel_a_set_and_a_line_a_seed(result):
    bccd, digits = plot.accuracy_figure(result).axes
    assert bccd.get_title('left').startswith('bccd') and digits.get_title('left').startswith('digits')
    drawn = [list(line.get_ydata()) for line in bccd.lines]
    for wanted in ([0.2, 0.4, 0.5], [0.3, 0.5, 0.54], [0.25, 0.45, 0.52], [0.1, 0.2, 0.43]):
        assert any(len(each) == 3 and each == pytest.approx(wanted) for each in drawn)
    assert any(list(line.get_xdata()) == [6, 6] for line in bccd.lines)


@pytest.fixture(scope='module')
def raw(tmp_path_factory):
    """A random model in memory that ranks the true boxes among its detections, and its maps of eight images."""
    folder = tmp_path_factory.mktemp('raw')
    data = make_dataset(folder / 'data')
    cfg = Config.fromfile(write_config(folder / 'config.py', data, 'mgdet_model5_stage1.py'))
    init_default_scope('mmdet')
    torch.manual_seed(0)
    cfg.model.bbox_head.loss.class_weights = None
    model = MODELS.build(cfg.model)
    model.init_weights()
    loader, evaluator = build_domain(cfg.test_dataloader, cfg.test_evaluator)
    return RawMaps(model, loader, evaluator), data


def put_truth(maps, data):
    """Make the maps say where the objects are, each twice and with a likely second class in the first image."""
    head = maps.model.bbox_head
    coder = head.bbox_coder
    content = json.loads((Path(data) / 'all.json').read_text())
    for levels, samples in maps.batches:
        for index, sample in enumerate(samples):
            for level in levels:
                level[index] = -8.0
            for each in content['annotations']:
                if each['image_id'] != sample.img_id or not each['bbox'][2]:
                    continue
                box = torch.tensor(each['bbox'], dtype=torch.float32)
                box = torch.cat((box[:2], box[:2] + box[2:])) * 64 / 80
                box[[1, 3]] += 8  # 80 x 60 pixels in 64 x 64
                fine, stride = levels[2], 8
                centre = (box[:2] + box[2:]) / 2
                col, row = (centre / stride).floor().int().tolist()
                for cell, logit in ((col, 5.0), (max(col - 1, 0), 4.0)):
                    place = torch.tensor([[cell, row, stride]], dtype=torch.float32)
                    raw = coder.encode(place, box[None], coder.anchors[2][:1])[0]
                    fine[index, :4, row, cell] = raw
                    fine[index, 4, row, cell] = logit
                    fine[index, 5, row, cell] = 5.0
                    fine[index, 5 + coder.num_anchors + each['category_id'], row, cell] = 5.0


def test_scoring_anew_finds_what_the_maps_say_and_changes_nothing(raw):
    maps, data = raw
    put_truth(maps, data)
    before = [level.clone() for levels, _ in maps.batches for level in levels]
    factors = maps.model.bbox_head.bbox_coder.score_factors
    found = {name: maps.metrics(way) for name, way in
             {report.CONFIGURED: Scoring(), 'high': Scoring(dict(score_thr=0.999)), 'both': Scoring(
                 dict(nms=dict(iou_threshold=1.0))), **SCORINGS[OURS]}.items()}
    assert found[report.CONFIGURED]['AP'] > 0.8 and found['standard']['AP'] > 0.8
    assert found['high'] == dict.fromkeys(METRICS, 0.0)
    assert found['both']['AP'] < found[report.CONFIGURED]['AP']  # duplicates stay
    assert found[report.CONFIGURED] == maps.metrics(Scoring())
    assert all(torch.equal(*pair) for pair in zip(before, (level for levels, _ in maps.batches for level in levels)))
    assert maps.model.bbox_head.bbox_coder.score_factors == factors


def test_the_anchor_can_be_taken_out_of_the_score(raw):
    maps, _ = raw
    seen = []
    head = maps.model.bbox_head
    own, predict = head.bbox_coder.score_factors, head.predict_by_feat

    def spy(*args, **kwargs):
        seen.append(head.bbox_coder.score_factors)
        return predict(*args, **kwargs)

    head.predict_by_feat = spy
    try:
        maps.metrics(Scoring(score_factors=('objectness', )))
        maps.metrics(Scoring())
    finally:
        del head.predict_by_feat
    assert set(seen[:len(maps.batches)]) == {('objectness', )} and set(seen[len(maps.batches):]) == {own}


def test_ways_that_change_nothing_are_left_out(make_head):
    head = make_head(test_cfg=dict(score_thr=0.005, nms=dict(type='cluster', mode='weighted', iou_threshold=0.5)),
                     bbox_coder=dict(type='MultiGridBBoxCoder', score_factors=('objectness', 'class')))
    assert list(distinct(head, SCORINGS[OURS])) == [report.CONFIGURED, 'multi label', 'standard', 'diou',
                                                    'soft (Gaussian)', 'five votes', 'five votes, threshold 0.55',
                                                    'overlap iol', 'anchor in the score']
    whole = settings(head, SCORINGS[OURS]['diou'])
    assert whole.nms.type == 'diou' and whole.nms.iou_threshold == 0.5 and whole.score_thr == 0.005


class Counting:
    """In place of an evaluator: the boxes of each measurement."""

    def __init__(self):
        self.boxes, self.found = [], []

    def process(self, samples):
        self.boxes += [sample.pred_instances.bboxes for sample in samples]

    def evaluate(self, size):
        assert size == 1
        self.found.append(torch.cat(self.boxes))
        self.boxes = []
        return {'coco/bbox_mAP': 0.25}


def test_the_peer_is_scored_anew_on_maps_its_head_writes_into():
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(ROOT / 'configs/scratch/yolov3_nano_digits.py').model)
    ways = distinct(model.bbox_head, SCORINGS[PEER])
    assert list(ways) == [report.CONFIGURED, 'score_thr 0.005']
    assert settings(model.bbox_head, ways['score_thr 0.005']).conf_thr == 0.005
    sample = DetDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1.0, 1.0), img_id=0))
    batch = dict(inputs=[torch.randint(256, (3, 64, 64), dtype=torch.uint8)], data_samples=[sample])
    loader = torch.utils.data.DataLoader([batch], collate_fn=lambda batches: batches[0])
    maps = RawMaps(model.to(memory_format=torch.channels_last), loader, Counting())
    levels = maps.batches[0][0]
    for level in levels:
        level.normal_()
    assert all(level.is_contiguous(memory_format=torch.channels_last) for level in levels)  # sigmoid_() then sticks
    before = [level.clone() for level in levels]
    first, _, again = (maps.metrics(ways[name]) for name in (report.CONFIGURED, 'score_thr 0.005', report.CONFIGURED))
    assert first == again and first['AP'] == 0.25
    assert len(maps.evaluator.found[0]) and torch.equal(maps.evaluator.found[0], maps.evaluator.found[2])
    assert all(torch.equal(*pair) for pair in zip(before, levels))


def test_boxes_of_both_heads_are_held_inside_their_image():
    boxes = torch.tensor([[-3.0, -1, 50, 90], [10, 20, 70, 40]])
    assert rescoring.clip(boxes, (60, 40)).tolist() == [[0, 0, 40, 60], [10, 20, 40, 40]]


@pytest.mark.parametrize(('arguments', 'message'), [
    (['accuracy', 'untraining', '--only', 'heads'], '--only is for one suite of learning'),
    (['--only', 'heads', 'accuracy'], '--only is for one suite of learning'),
    (['accuracy', '--json', 'figures.json'], '--json is for suites of speed')])
def test_options_that_would_be_ignored_are_refused(arguments, message, monkeypatch):
    for name in ('untraining', 'accuracy'):
        monkeypatch.setitem(benchmark.LEARNING, name, lambda _: pytest.fail('trained'))
    with pytest.raises(UserError, match=message):
        main(arguments)
