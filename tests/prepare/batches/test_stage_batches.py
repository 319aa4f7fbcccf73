"""Samples are those a run trains on, bit for bit, and mixed as often as the plan says."""
import math

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.plan.plan import Plan
from mgdet_plugin.plan.report import planned_augmentation
from mgdet_plugin.prepare.batches.stage_batches import StageBatches
from tests.support.drawn import draw_set, load_steps, mixup, mosaic
from tests.support.small_run import make_dataset
from tests.support.staged_run import FULL, HEAD, MomentHook, run, staged_config

MIXED = dict(FULL, epochs=1, mosaic_prob=0.5, mixup_prob=0.5)


class Witness(MomentHook):
    """Every batch as the loop hands it to the step."""

    def __init__(self):
        self.batches = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.batches.append([(inputs.clone(), sample.clone()) for inputs, sample in zip(
            data_batch['inputs'], data_batch['data_samples'])])


@pytest.fixture(scope='module', autouse=True)
def scope():
    init_default_scope('mmdet')


@pytest.fixture(scope='module')
def held(tmp_path_factory):
    """A run of two stages, 4 new images beside 4 of 3 old ones that the weights choose, and what it trained on."""
    folder = tmp_path_factory.mktemp('look')
    old = make_dataset(folder / 'old', count=6, seed=1) / 'images'
    cfg = staged_config(folder, make_dataset(folder / 'new'), [dict(HEAD, epochs=1), MIXED],
                        keep=dict(images=str(old), images_used=3))
    cfg.plan.allow = ['skipped-level']
    torch.manual_seed(3)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), folder / 'start.pth')
    cfg.load_from = str(folder / 'start.pth')
    seen = Witness()
    run(cfg, folder / 'run', hooks=[seen])
    return cfg, seen.batches


@pytest.mark.parametrize('stage', [0, 1])
def test_samples_are_those_the_loop_gets(held, stage):
    cfg, trained = held
    per_epoch = len(trained) // 2
    batches = StageBatches(cfg, Plan.from_cfg(cfg), stage, stage, seed=1)
    seen = list(batches.samples(100))
    assert len(seen) == 16 and [each.old for each in seen] == [False] * 8 + [True] * 8
    places = {}
    for each in seen:
        inputs, sample = trained[stage * per_epoch + each.batch][
            places.setdefault((each.batch, each.old), 4 * each.old)]
        places[each.batch, each.old] += 1
        assert torch.equal(inputs, each.inputs) and inputs.dtype == each.inputs.dtype
        assert torch.equal(sample.gt_instances.bboxes.tensor, each.sample.gt_instances.bboxes.tensor)
        assert torch.equal(sample.gt_instances.labels, each.sample.gt_instances.labels)
        assert bool(sample.get('kept')) == each.old and sample.get('kept_index') == each.sample.get('kept_index')
    mixes = {name for each in seen for name in each.augmented} & {'mosaic', 'mixup'}
    assert mixes == (set() if stage == 0 else {'mosaic', 'mixup'})
    assert len({each.sample.kept_index for each in seen if each.old}) == 3
    other = StageBatches(cfg, Plan.from_cfg(cfg), stage, stage, seed=2).samples(1)
    assert not torch.equal(next(other).inputs, seen[0].inputs)


def test_a_choice_by_weights_that_are_not_there_is_refused(held):
    cfg = Config(dict(held[0].to_dict(), load_from='nowhere/start.pth'))
    with pytest.raises(UserError, match=r'keep\.images_used.*nowhere/start\.pth\) is not there; import them'):
        StageBatches(cfg, Plan.from_cfg(cfg), 0, 0, seed=1)
    cfg.keep.images_used = None
    batches = StageBatches(cfg, Plan.from_cfg(cfg), 0, 0, seed=1)
    assert len(batches.sampler.memory[0]) == 5  # a fifth of six is held out


def test_mixes_are_as_frequent_as_planned(tmp_path):
    """400 samples of 20 epochs; four times the standard error of a share."""
    leaf = dict(draw_set(tmp_path / 'set', 20), pipeline=[
        *load_steps(), mosaic(), mixup(), dict(type='PackDetInputs', meta_keys=())])
    cfg = Config(dict(
        stages=[dict(FULL, epochs=20)], model=dict(type='MultiGridDet', bbox_head=dict(type='MultiGridHead')),
        train_dataloader=dict(batch_size=5, num_workers=0, dataset=leaf, sampler=dict(type='DefaultSampler'))))
    plan = Plan.from_cfg(cfg)
    batches = StageBatches(cfg, plan, 0, 0, seed=0)
    seen = list(batches.samples(1000))
    assert len(seen) == 400 and batches.mixes == ['mosaic', 'mixup']
    assert [each.drawn.epoch for each in seen] == [index // 20 for index in range(400)]
    planned = planned_augmentation(cfg, plan)[0]
    for name in batches.mixes:
        share = sum(name in each.augmented for each in seen) / 400
        assert abs(share - planned[name]) < 4 * math.sqrt(planned[name] * (1 - planned[name]) / 400)
    assert planned == dict(mosaic=0.3, mixup=0.1)
