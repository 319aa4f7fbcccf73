"""Validation with losses: equal to separate passes, image by image, and the same quantity whatever a run trains."""
import copy
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures.bbox import get_box_tensor
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch.utils.data import Subset

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.engine.loops.loss_val_loop import LossValLoop
from mgdet_plugin.engine.loops.validation import LossMeter, is_one_pass, measure, truth_is_scaled, with_recipe_loss
from mgdet_plugin.models import MultiGridHead
from mgdet_plugin.models.multigrid_loss import MultiGridLoss
from tests.support.guarded_run import guarded_config
from tests.support.mmdet_detectors import RETINANET, YOLOV3
from tests.support.small_run import make_dataset
from tests.support.staged_run import FULL, TableMetric
from tests.support.validation_loss import validation_loss

ATTENTION = dict(embed_dims=16, num_heads=2, batch_first=True)
LAYER = dict(self_attn_cfg=ATTENTION, ffn_cfg=dict(embed_dims=16, feedforward_channels=16))
DETR = dict(
    type='DETR', num_queries=5, data_preprocessor=RETINANET['data_preprocessor'],
    backbone=dict(RETINANET['backbone'], out_indices=(3, )),
    neck=dict(type='ChannelMapper', in_channels=[64], kernel_size=1, out_channels=16, act_cfg=None, num_outs=1),
    encoder=dict(num_layers=1, layer_cfg=LAYER),
    decoder=dict(num_layers=2, layer_cfg=dict(LAYER, cross_attn_cfg=ATTENTION), return_intermediate=True),
    positional_encoding=dict(num_feats=8, normalize=True),
    bbox_head=dict(type='DETRHead', num_classes=3, embed_dims=16),
    train_cfg=dict(assigner=dict(type='HungarianAssigner', match_costs=[
        dict(type='ClassificationCost'), dict(type='BBoxL1Cost', weight=5.0), dict(type='IoUCost')])),
    test_cfg=dict(max_per_img=5))
CUT = dict(nms_pre=100, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10)


@pytest.fixture(scope='module')
def cfg(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    cfg = guarded_config(folder, make_dataset(folder / 'set', 5), [FULL])
    cfg.val_dataloader.dataset.indices = 5
    return cfg


def loader_of(cfg, batch_size):
    """Batches of the validation set; the last one is not full."""
    init_default_scope('mmdet')
    return Runner.build_dataloader(dict(copy.deepcopy(cfg.val_dataloader), batch_size=batch_size), seed=0)


LOAD = [dict(type='LoadAnnotations', with_bbox=True), dict(type='DropDegenerateBoxes')]
FIT = [dict(type='Resize', scale=(64, 64), keep_ratio=True), dict(type='Pad', size_divisor=32)]


def resized(cfg, before=True):
    """The set for mmdet's heads: fitted as mmdet does, boxes loaded before that or after."""
    cfg = copy.deepcopy(cfg)
    first, *_, pack = cfg.val_dataloader.dataset.pipeline
    cfg.val_dataloader.dataset.pipeline = [first, *(LOAD + FIT if before else FIT + LOAD), pack]
    return cfg


def built(cfg, model=None):
    """A detector of random weights."""
    init_default_scope('mmdet')
    torch.manual_seed(3)
    made = MODELS.build(Config(dict(model=copy.deepcopy(dict(model or cfg.model)))).model)
    made.init_weights()
    return made.eval()


def bare_runner(model):
    """What a validation loop needs of a runner."""
    return SimpleNamespace(model=model, visualizer=SimpleNamespace(dataset_meta=None), logger=Mock(), call_hook=Mock())


class KeepingEvaluator(Evaluator):
    """Keeps the predictions."""

    def __init__(self):
        super().__init__(TableMetric([0.25]))
        self.kept = []

    def process(self, data_samples, data_batch=None):
        self.kept += data_samples
        super().process(data_samples, data_batch)


def loop_of(model, loader, **options):
    runner = bare_runner(model)
    return LossValLoop(runner, loader, KeepingEvaluator(), **options), runner


@torch.no_grad()
def check_against_separate_passes(model, loader):
    """Losses and predictions of the loop and of mmdet's own modes; returns how often the backbone ran per batch."""
    loop, runner = loop_of(model, loader)
    passes = []
    handle = model.backbone.register_forward_hook(lambda *_: passes.append(1))
    metrics = loop.run()
    handle.remove()
    separate = validation_loss(model, loader)
    assert {name.removeprefix('val/'): value for name, value in metrics.items() if name.startswith('val/')} == (
        pytest.approx(separate, rel=1e-5))
    assert metrics['table/value'] == 0.25
    expected = [sample for batch in loader for sample in model.val_step(batch)]
    assert len(loop.evaluator.kept) == len(expected) == 5
    assert sum(len(each.pred_instances) for each in expected)
    for one, other in zip(loop.evaluator.kept, expected):
        assert one.img_id == other.img_id
        for key in ('bboxes', 'scores', 'labels'):
            assert torch.equal(one.pred_instances[key], other.pred_instances[key]), key
    assert [call.args[0] for call in runner.call_hook.call_args_list if 'iter' not in call.args[0]] == [
        'before_val', 'before_val_epoch', 'after_val_epoch', 'after_val']
    return len(passes) / len(loader), runner


def test_of_our_own_detector(cfg):
    """Five images in batches of three and two: means over images, not over batches.

    Boxes are loaded after the letterbox, and mmdet's own modes are right, too.
    """
    loader = loader_of(cfg, 3)
    model = built(cfg)
    passes, runner = check_against_separate_passes(model, loader)
    assert passes == 1 and not runner.logger.warning.called
    by_image = validation_loss(model, loader_of(cfg, 1))
    assert measure(model, loader) == pytest.approx(by_image, rel=1e-5)


@pytest.mark.parametrize('model', [YOLOV3, RETINANET], ids=['YOLOv3', 'RetinaNet'])
def test_of_mmdets_detectors_with_one_head(cfg, model):
    built_model = built(cfg, dict(model, test_cfg=CUT))
    passes, runner = check_against_separate_passes(built_model, loader_of(resized(cfg), 3))
    assert passes == 1 and not runner.logger.warning.called
    check_both_orders(cfg, built_model)


def check_both_orders(cfg, model):
    """The same losses and truth, that of the annotation file, whichever step comes first."""
    seen = []
    for before in (True, False):
        loader = loader_of(resized(cfg, before), 3)
        assert truth_is_scaled(loader.dataset) == before
        loop, _ = loop_of(model, loader)
        metrics = loop.run()
        seen.append({name: value for name, value in metrics.items() if 'loss' in name})
        for index, sample in enumerate(loop.evaluator.kept):
            expected = [each['bbox'] for each in loader.dataset.get_data_info(index)['instances']]
            torch.testing.assert_close(get_box_tensor(sample.gt_instances.bboxes), torch.tensor(expected).float())
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)


def test_of_our_own_detector_without_a_letterbox(cfg):
    check_both_orders(cfg, built(cfg))


def test_joined_sets_of_two_orders(cfg):
    parts = [resized(cfg, before).val_dataloader.dataset for before in (True, False)]
    both = copy.deepcopy(cfg)
    both.val_dataloader.dataset = dict(type='ConcatDataset', datasets=parts)
    with pytest.raises(UserError, match='put LoadAnnotations on the same side of the Letterbox or Resize'):
        measure(built(cfg), loader_of(both, 3))
    both.val_dataloader.dataset.datasets = parts[:1] * 2
    repeated = Subset(loader_of(both, 3).dataset, [0, 7])
    assert truth_is_scaled(repeated) and truth_is_scaled(loader_of(cfg, 3).dataset)  # which says it itself


def test_heads_that_leave_the_letterbox_in(cfg):
    """mmdet's heads divide by the scale alone: refused where there is a border, one line."""
    model, loader = built(cfg, dict(YOLOV3, test_cfg=CUT)), loader_of(cfg, 3)
    with pytest.raises(UserError, match=r"YOLOV3 cannot take boxes out of a letterbox.*type='Resize'") as caught:
        loop_of(model, loader)[0].run()
    assert '\n' not in str(caught.value)
    assert measure(model, loader)['loss'] > 0  # it is no matter to losses


def test_of_another_detector(cfg):
    """Losses of DETR need a pass of their own, which is said once. (Two stages need compiled operations.)"""
    model = built(cfg, DETR)
    assert not is_one_pass(model)
    passes, runner = check_against_separate_passes(model, loader_of(resized(cfg), 3))
    assert passes == 2
    [call] = runner.logger.warning.call_args_list
    assert call.args[0].startswith('DETR: losses and predictions') and '\n' not in call.args[0]


@pytest.mark.parametrize('changes', [
    dict(object_scale=3.0, no_object_scale=2.0, coord_scale=1.0), dict(class_scale=7.0, anchor_scale=0.1),
    dict(normalizers=('positives', )), dict(class_weights=[1.0, 5.0, 9.0])],
    ids=lambda changes: next(iter(changes)))
def test_the_loss_of_the_recipe_is_measured_whatever_is_trained(cfg, changes):
    loader, plain = loader_of(cfg, 3), built(cfg)
    expected = measure(plain, loader)
    other = copy.deepcopy(cfg.model)
    other.bbox_head.loss.update(changes)
    model = built(cfg, other)
    [loss] = [each for each in model.modules() if isinstance(each, MultiGridLoss)]
    before = {key: value for key, value in vars(loss).items() if not key.startswith('_')}
    assert measure(model, loader) == expected
    assert {key: value for key, value in vars(loss).items() if not key.startswith('_')} == before
    assert validation_loss(model, loader)['loss'] != pytest.approx(expected['loss'], rel=1e-3)  # it would be another


def test_the_runs_own_loss_is_never_touched(cfg):
    """The recipe's loss is in a twin that shares all else: an error in it leaves nothing to put back."""
    other = copy.deepcopy(cfg.model)
    other.bbox_head.loss.object_scale = 3.0
    model = built(cfg, other)
    twin = with_recipe_loss(model)
    assert twin.bbox_head.loss_module.object_scale == 1.0 and model.bbox_head.loss_module.object_scale == 3.0
    assert twin.backbone is model.backbone and twin.bbox_head.predict_convs is model.bbox_head.predict_convs
    assert with_recipe_loss(model.backbone) is model.backbone


def test_a_head_with_a_prediction_of_its_own_is_measured_by_the_recipe_too(cfg):
    """It takes two passes, and the second must not be at the run's own scales."""

    class OwnPredict(MultiGridHead):

        def predict(self, *args, **kwargs):
            return super().predict(*args, **kwargs)

    loader, expected = loader_of(cfg, 3), measure(built(cfg), loader_of(cfg, 3))
    other = copy.deepcopy(cfg.model)
    other.bbox_head.loss.object_scale = 30.0
    model = built(cfg, other)
    model.bbox_head.__class__ = OwnPredict
    assert not is_one_pass(model) and measure(model, loader) == pytest.approx(expected)


def test_other_domains(cfg):
    """A second validation set: its losses and metrics under its name; the visualizer keeps the first one's classes."""
    model = built(cfg)
    few = copy.deepcopy(cfg.val_dataloader)
    few.dataset.indices = 2
    other = Runner.build_dataloader(few, seed=0)
    other.dataset._metainfo['classes'] = ('a', 'b', 'c')
    loop, runner = loop_of(model, loader_of(cfg, 3), others=dict(old=dict(dataloader=other,
                                                                         evaluator=KeepingEvaluator())))
    assert runner.visualizer.dataset_meta['classes'] == ('red', 'green', 'blue')
    metrics = loop.run()
    own = measure(model, other)
    assert {name: metrics[f'old/{name}'] for name in own} == own and metrics['old/table/value'] == 0.25
    assert metrics['val/loss'] != metrics['old/loss']
    assert runner.call_hook.call_args_list[-2].kwargs['metrics'] == metrics
    calls = runner.call_hook.call_count
    assert loop.measure() == pytest.approx(metrics, rel=1e-12) and runner.call_hook.call_count == calls


@pytest.mark.parametrize(('others', 'message'), [
    (dict(old=dict(dataloader=1)), r"val_cfg.others\['old'\] must be dict\(dataloader=..., evaluator=...\), got \["),
    (dict(old=3), 'got 3'), (dict(val=dict(dataloader=1, evaluator=1)), "'val' cannot name a validation set"),
    ({'a/b': dict(dataloader=1, evaluator=1)}, "'a/b' cannot name")])
def test_other_domains_that_are_not_fully_given(cfg, others, message):
    with pytest.raises(UserError, match=message):
        loop_of(built(cfg), loader_of(cfg, 3), others=others)


def test_without_boxes_there_is_no_loss(cfg):
    bare = copy.deepcopy(cfg)
    bare.val_dataloader.dataset.pipeline = [
        step for step in bare.val_dataloader.dataset.pipeline
        if step.type not in ('LoadAnnotations', 'DropDegenerateBoxes')]
    with pytest.raises(UserError, match=r"the validation set's pipeline loads no boxes.*LoadAnnotations") as caught:
        loop_of(built(cfg), loader_of(bare, 3))[0].run()
    assert '\n' not in str(caught.value)


def test_a_meter():
    meter = LossMeter()
    assert meter.means(torch.device('cpu')) == {}
    meter.update(dict(loss_a=torch.tensor(1.0), loss_b=torch.tensor(10.0)), 3)
    meter.update(dict(loss_a=torch.tensor(5.0), loss_b=torch.tensor(20.0)), 1)
    meter.update(dict(loss_a=torch.tensor(float('nan')), loss_b=torch.tensor(0.0)), 0)  # a repetition
    assert meter.means(torch.device('cpu')) == dict(loss=14.5, loss_a=2.0, loss_b=12.5)
