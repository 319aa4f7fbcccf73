"""Every config is built, and the rules of fine-tuning hold in those they are for."""
import pytest
from mmdet.registry import HOOKS, MODELS, TRANSFORMS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mgdet_plugin.engine.plan import build_plan
from tests.conftest import ROOT

CONFIGS = sorted(path.name for path in (ROOT / 'configs').glob('*.py'))


@pytest.fixture
def load():
    def load(name):
        init_default_scope('mmdet')
        return Config.fromfile(ROOT / 'configs' / name)

    return load


def test_there_are_configs():
    assert {'mgdet_model5_stage1.py', 'mgdet_nano_source.py', 'mgdet_nano_stage1.py'} <= set(CONFIGS)


@pytest.mark.parametrize('name', CONFIGS)
def test_model_pipelines_and_hooks_are_built(load, name):
    cfg = load(name)
    model = MODELS.build(cfg.model)
    assert model.bbox_head.num_classes == cfg.model.bbox_head.num_classes
    for split in ('train', 'val', 'test'):
        pipeline = cfg[f'{split}_dataloader'].dataset.pipeline
        types = [step.type for step in pipeline]
        assert types.index('LoadAnnotations') < types.index('DropDegenerateBoxes') < types.index('Letterbox')
        for step in pipeline:
            TRANSFORMS.build(step)
    for hook in cfg.get('custom_hooks', []):
        HOOKS.build(hook)
    for part in ('anchors', 'assigner', 'loss'):
        assert part in cfg.model.bbox_head


@pytest.mark.parametrize('name', [name for name in CONFIGS if name != 'mgdet_nano_source.py'])
def test_schedule_follows_the_plan(load, name):
    cfg = load(name)
    plan = build_plan(cfg.stages)
    assert cfg.train_cfg.max_epochs == sum(stage.epochs for stage in plan)
    assert cfg.optim_wrapper.optimizer.lr == plan[0].lr
    assert max(scheduler.end for scheduler in cfg.param_scheduler) == cfg.train_cfg.max_epochs
    assert cfg.optim_wrapper.optimizer.weight_decay == 0 and cfg.optim_wrapper.optimizer.eps == 1e-7


@pytest.mark.parametrize('name', [name for name in CONFIGS if name != 'mgdet_nano_source.py'])
def test_loss_scales_of_fine_tuning(load, name):
    loss = load(name).model.bbox_head.loss
    assert (loss.coord_scale, loss.object_scale, loss.no_object_scale, loss.class_scale,
            loss.anchor_scale) == (5.0, 1.0, 0.5, 1.0, 1.0)
    assert tuple(loss.normalizers) == ('batch', )


def test_stage_1_of_the_full_weights(load):
    cfg = load('mgdet_model5_stage1.py')
    stage, = build_plan(cfg.stages)
    assert (stage.epochs, stage.freeze_level, stage.lr, stage.mosaic_prob, stage.mixup_prob) == (5, 2, 1e-4, 0, 0)
    assert cfg.load_from == 'weights/model5.pth'
    assert cfg.train_dataloader.batch_size == 48
    types = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert not {'Mosaic', 'MixUp'} & set(types)
    assert [tuple(step.scale) for step in cfg.train_dataloader.dataset.pipeline if step.type == 'Letterbox'] == [
        (608, 608)]
    assert cfg.model.bbox_head.bridge_channels == (704, 352, 176)
    assert cfg.model.bbox_head.assigner.conflict == 'reference'
