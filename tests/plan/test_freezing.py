"""Frozen is frozen: levels, patterns, and mmdet's own detectors."""
import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.plan.freezing import digests, freeze, frozen_of, hold, is_frozen, predict_layers, trained_parts
from mgdet_plugin.plan.plan import Stage
from tests.conftest import ROOT
from tests.support.mmdet_detectors import RETINANET, YOLOV3


def stage(level=None, **fields):
    return Stage.build(dict(name='s', epochs=1, lr=1e-4, freeze_level=level, **fields))


@pytest.fixture
def nano():
    init_default_scope('mmdet')
    return MODELS.build(Config.fromfile(ROOT / 'configs/mgdet_nano_stage1.py').model)


def build(name):
    init_default_scope('mmdet')
    return MODELS.build(copy.deepcopy(YOLOV3 if name == 'yolov3' else RETINANET))


def train_step(model, optimizer):
    """One step on a drawn object, as a loop does it."""
    sample = DetDataSample(
        gt_instances=InstanceData(bboxes=torch.tensor([[5.0, 5.0, 45.0, 45.0], [20.0, 20.0, 40.0, 40.0]]),
                                  labels=torch.tensor([0, 2])),
        metainfo=dict(img_shape=(64, 64), batch_input_shape=(64, 64), pad_shape=(64, 64), scale_factor=(1, 1)))
    optimizer.zero_grad()
    losses = model.loss(torch.rand(2, 3, 64, 64), [sample, copy.deepcopy(sample)])
    model.parse_losses(losses)[0].backward()
    optimizer.step()


@pytest.mark.parametrize(('level', 'trained'), [
    (0, {'backbone', 'neck', 'bbox_head'}), (1, {'neck', 'bbox_head'}), (2, {'bbox_head'})])
def test_levels(nano, level, trained):
    frozen = freeze(nano, stage(level))
    names = [name for name, parameter in nano.named_parameters() if parameter.requires_grad]
    assert {name.split('.')[0] for name in names} == trained == set(trained_parts(nano, frozen))
    if level == 2:
        assert len(names) == 6 and all('predict_convs' in name for name in names)
    assert len(frozen.norms) == {0: 0, 1: 52, 2: 66}[level]
    assert len(frozen.tensors(nano)) == {0: 0, 1: 312, 2: 396}[level]


@pytest.mark.parametrize(('level', 'kept'), [(0, 3), (1, 0), (2, 0)])
def test_nothing_of_a_frozen_backbone_is_kept_for_gradients(nano, level, kept):
    images, gradients = torch.rand(2, 3, 64, 64), []
    for context in (torch.enable_grad, torch.no_grad if level else torch.enable_grad):  # the same, bit for bit
        model = copy.deepcopy(nano)
        frozen = freeze(model.train(), stage(level))
        hold(frozen.norms.values())
        with context():
            maps = model.backbone(images)
        assert sum(each.requires_grad for each in maps) == kept
        sum(each.square().mean() for each in model.bbox_head(model.neck(maps))).backward()
        gradients.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
    assert len(gradients[0]) == len(list(nano.parameters())) - len(frozen.parameters)
    assert all(torch.equal(each, gradients[1][name]) for name, each in gradients[0].items())


def test_resolving_changes_nothing(nano):
    frozen_of(stage(2), nano)
    assert all(parameter.requires_grad for parameter in nano.parameters())


def test_thaws_again(nano):
    freeze(nano, stage(2))
    freeze(nano, stage(0))
    assert all(parameter.requires_grad for parameter in nano.parameters())


@pytest.mark.parametrize('name', ['mgdet', 'yolov3', 'retinanet'])
@pytest.mark.parametrize('level', [2, 1, 0])
def test_frozen_is_bit_equal_and_all_else_changes(name, level, nano):
    """Two steps of Adam in train mode, with weight decay: the hash of every frozen tensor and statistic stays."""
    torch.manual_seed(0)
    model = nano if name == 'mgdet' else build(name)
    model.init_weights()
    if name == 'mgdet':
        model.bbox_head.loss_module.counted = None
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=0.1)
    frozen = freeze(model, stage(level))
    before = digests(model)
    for _ in range(2):
        model.train()
        for norm in frozen.norms.values():
            norm.eval()
        train_step(model, optimizer)
    after = digests(model)
    changed = {key for key in after if after[key] != before[key]}
    assert changed.isdisjoint(frozen.tensors(model))
    trained = {key for key, _ in model.named_parameters()} - frozen.parameters
    assert trained and trained <= changed
    if level == 2:
        assert {key.rsplit('.', 2)[0] for key in trained} <= set(predict_layers(model)) | {'bbox_head'}
    if level < 2:
        assert any(key.endswith('running_mean') for key in changed) == any(
            norm not in frozen.norms.values() for norm in model.modules() if isinstance(norm, torch.nn.BatchNorm2d))


def test_what_a_backbone_freezes_by_itself_stays_frozen():
    """mmdet's ResNet freezes its stem in every train(); the plan cannot thaw it, and says what is frozen."""
    model = build('retinanet')
    frozen = freeze(model, stage(0))
    model.train()
    assert 'backbone.conv1.weight' in frozen.parameters and not model.backbone.conv1.weight.requires_grad
    assert {key for key, each in model.named_parameters() if not each.requires_grad} == set(frozen.parameters)


@pytest.mark.parametrize(('fields', 'frozen_count', 'norms'), [
    (dict(freeze=['backbone', 'neck.blocks.0']), 156 + 9, 52 + 3),
    (dict(freeze='backbone.conv_res_block[1-3]'), 3 * (2 + 6 + 1), None),
    (dict(freeze=['*.bn']), None, 66), (dict(train=['bbox_head.predict_convs.0']), None, 66), (dict(freeze=[]), 0, 0)])
def test_patterns(nano, fields, frozen_count, norms):
    frozen = freeze(nano, stage(**fields))
    if fields.get('freeze') == 'backbone.conv_res_block[1-3]':
        assert {name.split('.')[1] for name in frozen.parameters} == {f'conv_res_block{i}' for i in (1, 2, 3)}
        return
    if fields.get('freeze') == ['*.bn']:
        assert all('.bn.' in name for name in frozen.parameters)
    elif 'train' in fields:
        trained = [name for name, each in nano.named_parameters() if each.requires_grad]
        assert trained == ['bbox_head.predict_convs.0.weight', 'bbox_head.predict_convs.0.bias']
    else:
        assert len(frozen.parameters) == frozen_count
    assert len(frozen.norms) == norms


def test_names_match_whole_parts():
    assert is_frozen('bbox_head.bridges.0.conv.weight', ('bbox_head.bridges', ))
    assert not is_frozen('backbone_extra.weight', ('backbone', ))


@pytest.mark.parametrize(('fields', 'message'), [
    (dict(freeze=['backbone', 'nek']), r"freeze names 'nek', but the MultiGridDet has no such part; there is .*neck"),
    (dict(train=['bbox_head.convs_pred']), "train names 'bbox_head.convs_pred'"),
    (dict(freeze=['*']), 'freezes every parameter'),
    (dict(freeze=[], lr_mult=dict(bakbone=0.1)), "lr_mult names 'bakbone'")])
def test_a_pattern_that_matches_nothing_is_an_error(nano, fields, message):
    with pytest.raises(UserError, match=message):
        freeze(nano, stage(**fields))


def test_models_without_the_parts():
    with pytest.raises(UserError, match="freeze names 'backbone', but the Linear"):
        freeze(torch.nn.Linear(2, 2), stage(1))
    with pytest.raises(UserError, match=r'which those of a Linear with a NoneType are is not known; name them: train='):
        freeze(torch.nn.Linear(2, 2), stage(2))
