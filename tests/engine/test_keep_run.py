"""Runs that are held to their start weights: old images in every batch, resumed and off, by maps and by boxes."""
import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.guard_record import GuardRecord
from mgdet_plugin.engine.hooks.keep_hook import KeepHook
from mgdet_plugin.models.maths.grid import flatten_maps
from mgdet_plugin.plan.keeping import Keeping
from mgdet_plugin.plan.plan import Plan
from tests.engine.loops.test_validation import DETR
from tests.engine.test_resume import BY_ITERATION, EMA, Case
from tests.support.mmdet_detectors import RETINANET, YOLOV3
from tests.support.small_run import make_dataset
from tests.support.staged_run import FULL, HEAD, MomentHook, differences, newest, run, staged_config, state_of

TEST_CFG = dict(nms_pre=100, min_bbox_size=0, score_thr=0.0, conf_thr=0.0, nms=dict(type='nms', iou_threshold=0.6),
                max_per_img=20)
STOPS = [('iter', 1), ('epoch', 2), ('val', 3)]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp('data') / 'set')


@pytest.fixture(scope='module')
def old(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp('old') / 'set', count=5, seed=1) / 'images'


class Witness(MomentHook):
    """Which images each step saw, what it lost, and whether the teacher was touched."""

    def __init__(self):
        self.batches, self.losses, self.places = [], [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.batches.append([bool(sample.get('kept')) for sample in data_batch['data_samples']])
        self.places.append([sample.kept_index for sample in data_batch['data_samples'] if sample.get('kept')])
        self.losses.append({name: float(value.detach()) for name, value in outputs.items()})


def hook_of(runner):
    return next(each for each in runner.hooks if isinstance(each, KeepHook))


@pytest.fixture(scope='module')
def held(tmp_path_factory, data, old):
    folder = tmp_path_factory.mktemp('held')
    cfg = staged_config(folder, data, [dict(HEAD, epochs=1), dict(FULL, lr=1e-3)], keep=dict(images=str(old)),
                        custom_hooks=[EMA, BY_ITERATION])
    cfg.plan.allow = ['rate', 'skipped-level']
    return Case(folder, cfg, STOPS)


@pytest.mark.parametrize('kill', STOPS)
def test_resumed_equals_uninterrupted(held, kill):
    assert held.resumed(*kill) == []


def test_old_images_come_behind_the_new_ones_and_are_held(held, tmp_path):
    seen = Witness()
    runner = run(held.cfg, tmp_path, hooks=[seen])
    assert set(map(tuple, seen.batches)) == {(False, ) * 4 + (True, ) * 4}
    assert all(each['loss'] == pytest.approx(sum(value for name, value in each.items() if name.startswith('loss_')),
                                             rel=1e-4) for each in seen.losses)
    assert seen.losses[-1]['loss_keep_obj'] > 0
    assert 'loss' not in vars(runner.model)  # what copies the model sees nothing of it
    assert not any('teacher' in name for name in runner.model.state_dict())
    teacher = hook_of(runner)._holder.teacher.model  # sleeps on, and does not move
    start = torch.load(tmp_path / 'start.pth')['state_dict']
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(value, start[name]) for name, value in teacher.state_dict().items())


def test_the_kept_share_is_measured_on_old_images_that_are_held_out(held):
    record = GuardRecord.read(held.folder / 'whole' / 'guard.json')
    assert 0 < record.pretrained['old/coco/bbox_mAP'] <= 1 and 'old/loss' in record.validations[-1].metrics
    truth = json.loads((held.folder / 'whole' / 'keep' / 'held_out.json').read_text())
    assert len(truth['images']) == 1 and truth['annotations']


@pytest.mark.parametrize('images', [True, False])
def test_copies_of_new_images_in_other_colours_take_turns_with_old_ones(held, tmp_path, images):
    def recoloured(cfg):
        cfg.keep = dict(**(dict(images=cfg.keep.images, held_out=0) if images else {}), on_new='recolour')

    seen = Witness()
    runner = run(held.cfg, tmp_path, hooks=[seen], change=recoloured)
    assert set(map(tuple, seen.batches)) == {(False, ) * 4 + (True, ) * 4}
    new, old = runner.train_dataloader.dataset.dataset, runner.train_dataloader.dataset.old
    own, copies = (len(old.datasets[0]), old.datasets[1]) if images else (0, old)
    assert {tuple(place >= own for place in places) for places in seen.places} == {
        (False, True, False, True) if images else (True, ) * 4}
    steps = [type(step).__name__ for step in copies.pipeline.transforms]
    assert steps[-2:] == ['Recolour', 'PackDetInputs']
    assert set(copies.paths) == {new.get_data_info(index)['img_path'] for index in range(len(new))}
    if images:
        assert 'Recolour' not in [type(step).__name__ for step in old.datasets[0].pipeline.transforms]
    assert seen.losses[-1]['loss_keep_obj'] > 0 and hook_of(runner).summary['copies'] == len(copies)


def test_without_keep_it_is_the_run_it_was(tmp_path, data):
    cfgs = [staged_config(tmp_path, data, [FULL], **options) for options in ({}, dict(keep=None))]
    states = [state_of(newest(Path(run(cfg, tmp_path / str(index)).work_dir))) for index, cfg in enumerate(cfgs)]
    assert differences(*states) == []


@pytest.mark.parametrize('cache', ['memory', 'file'])
def test_a_cached_teacher_says_what_it_says_when_asked(held, tmp_path, cache):
    def cached(cfg):
        cfg.keep.cache = cache

    seen = Witness()
    runner = run(held.cfg, tmp_path, hooks=[seen], change=cached)
    assert seen.losses[-1]['loss_keep_obj'] > 0
    holder = hook_of(runner)._holder
    index = next(iter(holder.known))
    sample = runner.train_dataloader.dataset[len(runner.train_dataloader.dataset) + index]
    inputs = holder.teacher.model.data_preprocessor(dict(inputs=[sample['inputs']],
                                                         data_samples=[sample['data_samples']]))['inputs']
    assert torch.equal(torch.as_tensor(holder.known[index]), flatten_maps(holder.teacher.maps(inputs))[0])


@pytest.mark.parametrize('change, line', [
    (dict(share=1.0), 'keep.share must be a number above 0 and below 1'),
    (dict(share=0.05), 'leaves no room for an old image'),
    (dict(weight=-1), 'keep.weight must be a number from 0'),
    (dict(on_new='both'), 'keep.on_new must be one of'),
    (dict(on_new='recolour', cache='memory'), "and keep.on_new='recolour' changes them each time"),
    (dict(images=None, recolour=True, on_new='recolour'), 'keep.recolour changes the pictures of keep.images'),
    (dict(image='x'), "keep has no option ['image']"),
])
def test_what_cannot_be_is_one_line(held, tmp_path, change, line):
    cfg = Config(held.cfg.to_dict() | dict(keep=dict(held.cfg.keep, **change)))
    with pytest.raises(UserError) as caught:
        run(cfg, tmp_path)
    assert line in str(caught.value)


def test_weights_that_know_nothing_hold_nothing():
    cfg = Config(dict(stages=[FULL], keep=dict(images='old/'), load_from=None))
    with pytest.raises(UserError, match='this run starts from nothing: set load_from, or take keep out'):
        Plan.from_cfg(cfg)
    cfg.load_from, cfg.resume = 'run/epoch_1.pth', True  # which tells what its run began with
    assert Plan.from_cfg(cfg).keep == Keeping(images='old/')


def test_a_share_counts_beside_the_new_images():
    assert [Keeping(images='x', share=share).beside(4) for share in (1 / 2, 1 / 3, 0.8)] == [4, 2, 16]


SIGMOID = dict(type='CrossEntropyLoss', use_sigmoid=True)  # DETRHead's own default cannot be built from twice
DETECTORS = [YOLOV3, RETINANET, dict(DETR, bbox_head=dict(DETR['bbox_head'], loss_cls=SIGMOID))]


@pytest.mark.parametrize('model', DETECTORS, ids=['YOLOV3', 'RetinaNet', 'DETR'])
def test_any_detector_is_held_by_its_boxes(tmp_path, data, old, model):
    cfg = staged_config(tmp_path, data, [dict(FULL, epochs=1, mosaic_prob=0, mixup_prob=0)],
                        keep=dict(images=str(old), sure=0.0, unsure=0.0))
    cfg.model = Config(dict(model=dict(model, test_cfg=model.get('test_cfg', TEST_CFG)))).model
    cfg.custom_hooks = []
    for split in ('train', 'val'):
        leaf = cfg[f'{split}_dataloader'].dataset
        leaf.pipeline = [dict(type='Resize', scale=(64, 64), keep_ratio=False) if step['type'] == 'Letterbox' else step
                         for step in leaf.pipeline]
    seen = Witness()
    runner = run(cfg, tmp_path / 'run', hooks=[seen])
    hook = hook_of(runner)
    assert hook.summary['form'] == 'boxes' and hook.summary['images'] == 4
    assert any(name.startswith('loss_keep') for name in seen.losses[0]) == (model['type'] != 'DETR')
