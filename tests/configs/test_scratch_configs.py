"""Configs that train from nothing: built, alike in all but the head, and apart from the imported recipe."""
import pytest
from mmdet.registry import HOOKS, MODELS, TRANSFORMS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mgdet_plugin.datasets import iter_dataset_cfgs
from tests.conftest import ROOT

FOLDER = ROOT / 'configs' / 'scratch'
CONFIGS = sorted(path.name for path in FOLDER.glob('*.py'))


def load(name, folder=FOLDER):
    init_default_scope('mmdet')
    return Config.fromfile(folder / name)


def test_there_are_pairs():
    for data in ('bccd', 'digits'):
        assert {f'multigrid_nano_{data}.py', f'yolov3_nano_{data}.py'} <= set(CONFIGS)


@pytest.mark.parametrize('name', CONFIGS)
def test_model_pipelines_and_hooks_are_built(name):
    cfg = load(name)
    model = MODELS.build(cfg.model)
    for split in ('train', 'val', 'test'):
        for leaf in iter_dataset_cfgs(cfg[f'{split}_dataloader'].dataset):
            for step in leaf.pipeline:
                TRANSFORMS.build(step)
            classes = len(leaf.metainfo['classes'])
            assert model.bbox_head.num_classes == classes
    for hook in cfg.custom_hooks:
        HOOKS.build(hook)


@pytest.mark.parametrize('data', ['bccd', 'digits'])
def test_heads_are_compared_on_equal_terms(data):
    ours, peer = load(f'multigrid_nano_{data}.py'), load(f'yolov3_nano_{data}.py')
    built = [dict(cfg.model.backbone, frozen_stages=-1) for cfg in (ours, peer)]  # -1 is the default
    assert built[0] == built[1] and ours.model.data_preprocessor == peer.model.data_preprocessor
    theirs = {key: value for key, value in peer.to_dict().items() if key not in ('model', 'norm_cfg')}
    assert {key: value for key, value in ours.to_dict().items() if key not in ('model', 'norm_cfg')} == theirs
    pipeline = next(iter(iter_dataset_cfgs(peer.test_dataloader.dataset))).pipeline
    steps = [step.type for step in pipeline]
    # mmdet's heads know nothing of a letterbox's border, so there must be none
    assert 'Letterbox' not in steps or (data == 'digits' and peer.img_scale == (192, 192))


def test_clipped_objects_are_judged_before_they_are_clipped():
    for leaf in iter_dataset_cfgs(load('multigrid_nano_bccd_long.py').train_dataloader.dataset):
        types = [step.type for step in leaf.pipeline]
        place = types.index('ClipBoxes')
        assert types[place - 1] == 'RandomAffine' and leaf.pipeline[place - 1].bbox_clip_border is False


def test_what_imported_weights_need_is_untouched():
    head = load('multigrid_darknet53.py', ROOT / 'configs' / '_base_' / 'models').model.bbox_head
    built = MODELS.build(dict(head, train_cfg=None, test_cfg=None))
    assert built.xy_scale == 0.15 and built.bbox_coder.anchor_use == 'likely'
    assert built.bbox_coder.score_factors == ('objectness', 'anchor', 'class')
    loss = built.loss_module
    assert loss.iou_loss is None and loss.overlap == 'iol' and built.assigner.conflict == 'reference'
    assert (loss.objectness_gamma, loss.cell_weight_power) == (0, 0) and not built.test_cfg['multi_label']
    assert (loss.coord_scale, loss.object_scale, loss.no_object_scale, loss.anchor_scale, loss.class_scale) == (
        5.0, 1.0, 0.5, 1.0, 1.0)
