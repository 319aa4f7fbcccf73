"""What a plan says of itself: whole lines, and figures worked out by hand."""
import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.plan.keeping import Keeping
from mgdet_plugin.plan.plan import Plan, Stage
from mgdet_plugin.plan.report import (
    _kept,
    plan_report,
    plan_text,
    planned_augmentation,
    report_without_stages,
    schedule_in_words,
    span_in_words,
    until_in_words,
)
from mgdet_plugin.plan.until import Until
from tests.conftest import ROOT

BODY = dict(name='s', epochs=10, lr=1e-4, freeze_level=1)
PART = dict(trained=0, frozen=1200, norms_learning=0, norms_held=2)
STAGE = dict(name='one', first_epoch=1, last_epoch=3, frozen='freeze level 1', batch_size=4, old_images=0,
             keep_weight=0.5, trained_parameters=1500, frozen_parameters=1200, schedule='0.0001', parts=dict(
                 backbone=PART, neck=dict(trained=1000, frozen=0, norms_learning=0, norms_held=0),
                 bbox_head=dict(trained=500, frozen=100, norms_learning=1, norms_held=3)),
             groups=[dict(name='backbone', parameters=1200, trains=False, first=1., peak=2., last=3.),
                     dict(name='neck', parameters=1500, trains=True, first=1e-6, peak=1.2345e-4, last=1e-7)],
             augmentation=dict(mosaic=0.3, mixup=0.0), trunk='', until='')
LINES = [
    "stage 1 'one': epochs 1 to 3, freeze level 1, batch 4 a process",
    '  trains 1,500 of 2,700 parameters',
    '  backbone     frozen              0 trained        1,200 frozen   normalisation: 2 held',
    '  neck         trains          1,000 trained            0 frozen   normalisation: none',
    '  bbox_head    in part           500 trained          100 frozen   normalisation: 1 learn their statistics, '
    '3 held',
    '  rate: 0.0001',
    '    backbone                        1,200 parameters   frozen',
    '    neck                            1,500 parameters   1e-06 -> 0.000123 -> 1e-07',
    '  augmentation: mosaic 0.3, mixup 0']
KEPT = dict(form='maps', images='old/', pictures=1200, images_used=None, share=0.5, at_least=0.95, held_out=0.2,
            followed=False, on_new=None, recolour=False, cache=None)
HELD = 'maps held on old/ (1,200 pictures), 50% of each batch'
MEASURED = '; at least 95% of the old AP must be left, measured on '


def text(stages=(STAGE, ), **changes):
    return plan_text(dict(dict(config='c.py', start='backbone', load_from=None, epochs=3, rate_limit=None, rate_scale=1,
                               stages=list(stages), keep=None), **changes)).splitlines()


def test_every_line_of_a_stage():
    assert text() == ['c.py: 3 epochs in 1 stage, start: backbone', '', *LINES]
    both = text([STAGE, dict(STAGE, name='two', old_images=2, augmentation={}, trunk='neck', until='loss')])
    assert both[:11] == ['c.py: 3 epochs in 2 stages, start: backbone', '', *LINES]
    assert both[11:] == [
        '', "stage 2 'two': epochs 1 to 3, freeze level 1, batch 4 a process and 2 old images, weight 0.5",
        *LINES[1:-1],
        '  augmentation: as in the pipeline', '  trunk cache: each image once as far as neck, unless a step is random',
        '  ends earlier by: loss']


@pytest.mark.parametrize(('changes', 'lines'), [
    (dict(start='full', load_from='a.pth', rate_limit=1e-4, rate_scale=2.0), [
        'c.py: 3 epochs in 1 stage, start: full (a.pth), no rate above 0.0001, rates scaled by 2',
        "keeps: nothing of what the weights know is held (keep=dict(images='FOLDER') does)"]),
    (dict(keep=KEPT), [f'keeps: {HELD}{MEASURED}20% of them, never trained on'])])
def test_what_stands_above_the_stages(changes, lines):
    assert text(**changes)[-len(LINES) - 1 - len(lines):-len(LINES) - 1] == lines


@pytest.mark.parametrize(('changes', 'line'), [
    (dict(followed=True), f"{HELD}{MEASURED}the labelled set val_cfg.others['old']"),
    (dict(held_out='other/'), f'{HELD}{MEASURED}others, never trained on'),
    (dict(held_out=0), f'{HELD}{MEASURED}nothing'),
    (dict(images=dict(type='CocoDataset'), pictures=None), 'maps held on a dataset (not there yet), 50% of each batch'),
    (dict(images_used=1050), '(1,200 pictures, 1,050 of them trained on), 50% of each batch;'),
    (dict(recolour=True, on_new='spare', cache='file'), f"{HELD}, in other colours, on new images: the weights' sure "
     f'boxes spared, the teacher cached (file), old images not augmented{MEASURED}'),
    (dict(images=None, on_new='recolour'), 'maps held on the new images alone, copies in other colours'),
    (dict(images=None, on_new='distil'), 'maps held on the new images alone, the cells away from labels')])
def test_what_is_kept_in_words(changes, line):
    found = text(keep=dict(KEPT, **changes))[1]
    assert line in found and ('maps' not in line or found.startswith(f'keeps: {line}'))


def test_a_plan_in_figures(monkeypatch):
    """The small model's three stages; the batch of one is its own."""
    monkeypatch.chdir(ROOT)
    cfg = Config.fromfile('configs/mgdet_nano_staged.py')
    cfg.stages[1].update(batch_size=8, lr_mult=dict(neck=0.5), restart_ema=True)
    report, findings = plan_report(cfg)
    stages = report.pop('stages')
    assert report == dict(config=cfg.filename, start='full', load_from='weights/digits_source.pth', epochs=20,
                          rate_limit=1e-4, rate_scale=1.0, allow=[], keep=None)
    assert [each.rule for each in findings] == ['many-knobs', 'many-knobs']
    assert [(each['first_epoch'], each['last_epoch'], each['epochs'], each['batch_size'], each['lr'], each['lr_mult'],
             each['restart_ema'], each['restore_best'], each['old_images'], each['keep_weight'], each['trunk'])
            for each in stages] == [(1, 5, 5, 4, 1e-4, {}, False, False, 0, 0.0, ''),
                                    (6, 10, 5, 8, 5e-5, dict(neck=0.5), True, False, 0, 0.0, ''),
                                    (11, 20, 10, 4, 3e-5, {}, False, False, 0, 0.0, '')]
    assert [each['frozen'] for each in stages] == [f'freeze level {level}' for level in (2, 1, 0)]
    assert stages[0]['until'] == stages[1]['until'] == ''
    assert stages[2]['until'] == 'val/loss, 10 validations without improvement, after at least 1 epoch'
    for stage, factors in zip(stages, ((1.0, ) * 3, (1.0, 0.5, 1.0), (1.0, ) * 3)):
        for group, factor, name in zip(stage['groups'], factors, ('backbone', 'neck', 'bbox_head')):
            lowest = 1e-7 / stage['lr']
            assert (group['name'], group['trains']) == (name, stage['parts'][name]['trained'] > 0)
            assert group['parameters'] == sum(stage['parts'][name][key] for key in ('trained', 'frozen'))
            assert [group[key] / (stage['lr'] * factor) for key in ('first', 'peak', 'last')] == pytest.approx(
                [0.01, 1, lowest])
    assert stages[1]['parts']['backbone'] == dict(trained=0, frozen=stages[0]['groups'][0]['parameters'],
                                                  norms_learning=0, norms_held=52)
    assert stages[1]['trained_parameters'] == sum(stages[1]['parts'][each]['trained'] for each in ('neck', 'bbox_head'))
    assert stages[2]['frozen_parameters'] == 0 < stages[1]['frozen_parameters']


@pytest.mark.parametrize('name', ['mgdet_nano_staged', 'mgdet_nano_backbone_stage2', 'mgdet_nano_source'])
def test_the_page_of_plans_shows_it(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / 'docs' / 'plans.md').read_text()
    shown = page.split(f'## {name}\n\n```\n')[1].split('\n```')[0]
    assert plan_text(plan_report(Config.fromfile(f'configs/{name}.py'))[0]) == shown


def test_rates_scaled_by_the_batch():
    cfg = Config.fromfile(ROOT / 'configs/mgdet_nano_backbone_stage2.py')
    cfg.merge_from_dict({'auto_scale_lr': dict(enable=True, base_batch_size=16), 'train_dataloader.batch_size': 4,
                         'optim_wrapper.accumulative_counts': 2})
    report, _ = plan_report(cfg, processes=3)
    assert report['rate_scale'] == 1.5  # 3 processes x 4 images x 2
    assert report['stages'][0]['groups'][0]['peak'] == pytest.approx(1e-4 * 2 * 1.5)  # boost 2
    assert report['rate_limit'] is None and report['start'] == 'backbone'
    cfg.optim_wrapper.constructor = 'Another'
    with pytest.raises(UserError, match=r"^optim_wrapper.constructor is 'Another'; a plan needs "
                                        r"'StagedOptimWrapperConstructor'$"):
        plan_report(cfg)


def test_what_is_frozen_by_name_in_words():
    cfg = Config.fromfile(ROOT / 'configs/mgdet_nano_backbone_stage2.py')
    for fields, words in ((dict(train=['neck', 'bbox_head']), 'only neck, bbox_head trains'),
                          (dict(freeze=['backbone', 'neck']), 'frozen: backbone, neck'), (dict(freeze=[]),
                                                                                          'frozen: nothing')):
        cfg.stages = [dict(name='s', epochs=3, lr=1e-4, **fields)]
        assert plan_report(cfg)[0]['stages'][0]['frozen'] == words


def test_old_images_beside_the_new_ones(tmp_path, monkeypatch):
    """Their number follows each stage's own batch; the folder is not there yet."""
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(ROOT / 'configs/mgdet_nano_staged.py')
    cfg.keep = dict(images='old/', share=0.2, weight=2.0)
    cfg.trunk_cache = dict(at_most='1GB')
    cfg.stages[1].update(batch_size=8, keep_weight=0.5)
    report, _ = plan_report(cfg)
    assert [(each['old_images'], each['keep_weight'], each['trunk']) for each in report['stages']] == [
        (1, 2.0, 'bbox_head.bridges'), (2, 0.5, 'backbone'), (1, 2.0, '')]
    assert report['keep'] == dict(form='maps', images='old/', pictures=None, images_used=None, share=0.2, at_least=0.95,
                                  held_out=0.0, followed=True, on_new=None, recolour=False, cache=None)


def test_pictures_are_counted(tmp_path):
    for index in range(3):
        Image.new('RGB', (8, 8)).save(tmp_path / f'{index}.png')
    init_default_scope('mmdet')
    model = MODELS.build(Config.fromfile(ROOT / 'configs/mgdet_nano_stage1.py').model)
    for keep, start, kept in (
            (Keeping(str(tmp_path), images_used=2, cache='file'), 'full', dict(
                form='maps', pictures=3, images_used=2, cache='file', held_out=0.2, followed=False, on_new=None)),
            (Keeping(on_new='recolour', held_out=0.0, form='boxes'), 'full', dict(
                form='boxes', images=None, pictures=0, on_new='recolour', held_out=0.0)),
            (Keeping(str(tmp_path), recolour=True, held_out='other/'), 'backbone', dict(
                form='features', recolour=True, held_out='other/', share=0.5, at_least=0.95))):
        found = _kept(Config(dict(model={})), keep, model, start)
        assert {key: found[key] for key in kept} == kept


@pytest.mark.parametrize(('fields', 'words'), [
    ({}, '0.0001, 3 epochs of warmup from 0.01 of it, cosine to 0.001 of it'),
    (dict(warmup_epochs=1, boost=2, boost_epochs=0.5), '0.0001, 1 epoch of warmup from 0.01 of it, 0.5 epochs at 2 '
     'times it, cosine to 0.001 of it'),
    (dict(warmup_epochs=0, schedule='constant'), '0.0001'),
    (dict(warmup_epochs=0, schedule='plateau'),
     '0.0001, times 0.1 wherever val/loss has not improved for 10 validations'),
    (dict(warmup_epochs=0, schedule='plateau', plateau=dict(min_lr=1e-6, patience=3, factor=0.5, metric='x/mAP')),
     '0.0001, times 0.5 wherever x/mAP has not improved for 3 validations, not below 1e-06')])
def test_schedules_in_words(fields, words):
    assert schedule_in_words(Stage.build(dict(BODY, **fields))) == words


def test_spans_and_ends_in_words():
    assert until_in_words(None) == '' and until_in_words(Until('x/mAP', 3, min_epochs=2)) == (
        'x/mAP, 3 validations without improvement, after at least 2 epochs')
    assert (span_in_words(2, 5), span_in_words(3, 3)) == ('epochs 2 to 5', 'epoch 3')


def test_a_step_has_the_probability_of_the_plan_or_its_own():
    steps = [dict(type='LoadImageFromFile'), dict(type='PhotoMetricDistortion'), dict(type='RandomAffine', prob=0.25),
             dict(type='RandomFlip', prob=0.5), dict(type='Recolour', prob=1)]
    cfg = Config(dict(stages=[dict(BODY, probs=dict(RandomFlip=0.1))], plan=dict(start='full'), model={},
                      train_dataloader=dict(dataset=dict(type='ConcatDataset', datasets=[dict(pipeline=steps)]))))
    assert planned_augmentation(cfg, Plan.from_cfg(cfg)) == [
        dict(PhotoMetricDistortion=1.0, RandomAffine=0.25, RandomFlip=0.1, Recolour=1.0)]
    cfg.train_dataloader = None
    assert planned_augmentation(cfg, Plan.from_cfg(cfg)) == [dict(RandomFlip=0.1)]


def test_a_config_without_stages(monkeypatch):
    monkeypatch.chdir(ROOT)
    cfg = Config.fromfile('configs/scratch/multigrid_nano_bccd.py')
    report = report_without_stages(cfg)
    assert report == dict(
        config=cfg.filename, start='nothing', load_from=None, stages=[], loop='EpochBasedTrainLoop', epochs=40,
        iterations=None, optimizer='AdamW', lr=0.008, schedulers=['LinearLR', 'CosineAnnealingLR'],
        parameters=3_426_777, trained_parameters=3_426_777)
    cfg.param_scheduler = dict(type='StepLR')
    cfg.train_cfg = dict(by_epoch=True, max_epochs=2)
    cfg.optim_wrapper.optimizer = None
    cfg.model.neck.norm_cfg = dict(type='BN', requires_grad=False)
    found = report_without_stages(cfg)
    assert (found['loop'], found['schedulers'], found['optimizer'], found['lr']) == (
        'EpochBasedTrainLoop', ['StepLR'], None, None)
    assert found['parameters'] == 3_426_777 > found['trained_parameters']
    cfg.train_cfg, cfg.param_scheduler = dict(max_iters=9), None
    found = report_without_stages(cfg)
    assert [found[key] for key in ('loop', 'epochs', 'iterations', 'schedulers')] == ['IterBasedTrainLoop', None, 9, []]
    assert plan_text(found).endswith('for 9 iterations, start: nothing, None at None, no schedule')
    cfg.train_cfg = dict(type='StagedTrainLoop')
    with pytest.raises(UserError) as caught:
        report_without_stages(cfg)
    assert str(caught.value) == (f'{cfg.filename} has no stages, and its StagedTrainLoop needs some; set '
                                 'stages=[dict(name=..., epochs=..., lr=..., freeze_level=...)]')
    cfg.train_cfg = cfg.optim_wrapper = None
    with pytest.raises(UserError) as caught:
        report_without_stages(cfg)
    assert str(caught.value) == (f'{cfg.filename} has neither stages nor train_cfg and optim_wrapper, so it trains '
                                 'nothing')
