"""Every config is built, and the rules of fine-tuning hold in those they are for."""
import pytest
from mmdet.registry import HOOKS, MODELS, TRANSFORMS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mgdet_plugin.plan.plan import build_plan
from mgdet_plugin.plan.report import plan_report
from tests.conftest import ROOT

CONFIGS = sorted(path.name for path in (ROOT / 'configs').glob('*.py'))
ALL = sorted(str(path.relative_to(ROOT / 'configs')) for path in (ROOT / 'configs').rglob('*.py'))


@pytest.fixture
def load():
    def load(name):
        init_default_scope('mmdet')
        return Config.fromfile(ROOT / 'configs' / name)

    return load


def test_there_are_configs():
    assert {'mgdet_model5_stage1.py', 'mgdet_nano_source.py', 'mgdet_nano_stage1.py'} <= set(CONFIGS)


def depth(path):
    """How many files stand above one another, the config itself included."""
    bases = Config._get_base_files(str(path))
    return 1 + max((depth((path.parent / base).resolve()) for base in bases), default=0)


@pytest.mark.parametrize('name', ALL)
def test_inheritance_is_at_most_three_deep(name):
    assert depth(ROOT / 'configs' / name) <= 3


def test_primitives_that_say_they_are_alike_are(load):
    """They share no base, which would make the configs upon them four deep."""
    source, target = (load(f'_base_/datasets/digits_{name}.py').to_dict() for name in ('source', 'target'))
    old = target.pop('old_domain')
    assert old == dict(dataloader=source['val_dataloader'], evaluator=source['val_evaluator'])
    assert repr(target).replace('/target/', '/source/') == repr(source)
    full, small = (load(f'_base_/models/multigrid_{name}.py').model for name in ('darknet53', 'nano'))
    for part, own in dict(backbone=('type', 'widen_factor'), neck=('in_channels', 'out_channels'),
                          bbox_head=('num_classes', 'in_channels', 'anchors', 'bridge_channels')).items():
        for key in own:
            full[part].pop(key, None), small[part].pop(key)
    assert full.to_dict() == small.to_dict()


@pytest.mark.parametrize('name', CONFIGS)
def test_model_pipelines_and_hooks_are_built(load, name):
    cfg = load(name)
    model = MODELS.build(cfg.model)
    assert model.bbox_head.num_classes == cfg.model.bbox_head.num_classes
    for split in ('train', 'val', 'test'):
        pipeline = cfg[f'{split}_dataloader'].dataset.pipeline
        types = [step.type for step in pipeline]
        loaded, fitted = types.index('LoadAnnotations'), types.index('Letterbox')
        assert types[loaded + 1] == 'DropDegenerateBoxes' and (loaded < fitted) == (split == 'train')  # as in mmdet
        for step in [*pipeline, *cfg.get('tta_pipeline', [])]:
            TRANSFORMS.build(step)
    for hook in cfg.get('custom_hooks', []):
        HOOKS.build(hook)
    for part in ('anchors', 'assigner', 'loss'):
        assert part in cfg.model.bbox_head


FROM_NOTHING = ('mgdet_nano_source.py', 'mgdet_nano_pretrain.py')
STAGED = [name for name in CONFIGS if name not in FROM_NOTHING]
# What the training guide says: freeze level, epochs (None: the rest), rate, mosaic, mixup.
FULL_WEIGHTS = [(2, 5, 1e-4, 0.0, 0.0), (1, 5, 5e-5, 0.3, 0.1), (0, None, 3e-5, 0.3, 0.1)]
BACKBONE_WEIGHTS = [(1, 10, 1e-4, 0.3, 0.1), (0, None, 1e-4, 0.3, 0.1)]


def fields(stage):
    return stage.freeze_level, stage.epochs, stage.lr, stage.mosaic_prob, stage.mixup_prob


@pytest.mark.parametrize('name', CONFIGS)
def test_all_of_time_follows_from_the_plan(load, name):
    """A length, rate or schedule of its own would be forgotten by whoever changes the stages."""
    cfg = load(name)
    assert build_plan(cfg.stages)
    assert cfg.train_cfg.type == 'StagedTrainLoop' and 'max_epochs' not in cfg.train_cfg
    assert 'lr' not in cfg.optim_wrapper.optimizer and [each.type for each in cfg.param_scheduler] == ['StagedLR']
    assert cfg.optim_wrapper.optimizer.weight_decay == 0 and cfg.optim_wrapper.optimizer.eps == 1e-7
    assert {'staged_unfreeze', 'random_state'} <= set(cfg.default_hooks)
    assert cfg.auto_scale_lr.base_batch_size == 48 and cfg.find_unused_parameters


@pytest.mark.parametrize('name', CONFIGS)
def test_no_config_breaks_a_rule(load, name):
    cfg = load(name)
    report, findings = plan_report(cfg)
    assert findings == [] and report['allow'] == (['rate'] if name == 'mgdet_nano_keep.py' else [])
    assert report['start'] == ('nothing' if name in FROM_NOTHING else 'backbone' if 'backbone' in name else 'full')


@pytest.mark.parametrize(('family', 'guide'), [
    ('mgdet_model5', FULL_WEIGHTS), ('mgdet_nano', FULL_WEIGHTS), ('mgdet_backbone', BACKBONE_WEIGHTS),
    ('mgdet_nano_backbone', BACKBONE_WEIGHTS)])
def test_plans_are_the_guide_s_as_one_run_and_as_stages(load, family, guide):
    whole = build_plan(load(f'{family}_staged.py').stages)
    singles = [load(f'{family}_stage{index}.py') for index in range(1, len(guide) + 1)]
    assert [build_plan(cfg.stages) for cfg in singles] == [(stage, ) for stage in whole]
    for stage, (level, epochs, *rest) in zip(whole, guide, strict=True):
        assert fields(stage) == (level, epochs or stage.epochs, *rest)
        assert stage.warmup_ratio == 0.01 and stage.eta_ratio == pytest.approx(1e-7 / stage.lr)
    assert singles[0].get('load_from') == load(f'{family}_staged.py').get('load_from')
    for index, cfg in enumerate(singles[1:], 1):
        assert cfg.load_from == f'work_dirs/{family}_stage{index}/best.pth'


def test_configs_that_keep_differ_in_that_alone(load):
    """model5's in nothing else from the guide's stages; nano's is one stage at twenty times their rate."""
    guide, kept = (load(f'mgdet_model5_{name}.py') for name in ('staged', 'keep'))
    assert kept.pop('keep') == dict(images='data/old/', weight=3.0) and kept.to_dict() == guide.to_dict()
    nano = load('mgdet_nano_keep.py')
    stage, = build_plan(nano.stages)
    assert (stage.epochs, stage.freeze_level, stage.lr) == (20, 0, 2e-3)
    assert nano.keep == dict(images=nano.val_cfg.others.old.dataloader.dataset.data_root + 'train/', images_used=50)


def test_rate_boost_of_the_backbone_scenario(load):
    for name in ('mgdet_backbone_stage2.py', 'mgdet_nano_backbone_stage2.py'):
        stage, = build_plan(load(name).stages)
        assert stage.lr * stage.boost == 2e-4 and 1 <= stage.boost_epochs <= 2 and stage.schedule == 'cosine'


@pytest.mark.parametrize('name', STAGED)
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
    mixes = {step.name: step.prob for step in cfg.train_dataloader.dataset.pipeline if step.type == 'StagedMix'}
    assert mixes == dict(mosaic=0.0, mixup=0.0)
    assert [tuple(step.scale) for step in cfg.train_dataloader.dataset.pipeline if step.type == 'Letterbox'] == [
        (608, 608)]
    assert cfg.model.bbox_head.bridge_channels == (704, 352, 176)
    assert cfg.model.bbox_head.assigner.conflict == 'reference'
