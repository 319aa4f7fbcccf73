"""Defects of guarded runs that a review found, one test each."""
import json
import logging

import pytest
import torch
from mmdet.evaluation.metrics import VOCMetric
from mmdet.registry import METRICS
from mmdet.structures.bbox import get_box_tensor
from mmengine.hooks import Hook
from mmengine.structures import InstanceData

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.records import ratio
from mgdet_plugin.engine.loops.validation import LossMeter, as_annotated, measured_step
from mgdet_plugin.guard.baselines import fingerprint
from mgdet_plugin.keep.start_weights import START
from mgdet_plugin.models.maths.letterbox import unletterbox_boxes
from mgdet_plugin.plan.plan import Plan
from mgdet_plugin.plan.wiring import check_figures
from mgdet_plugin.runs.run import read_run
from mgdet_plugin.runs.run_checks import check_run, kept
from tests.support.guarded_run import events, guard_json, guarded_config
from tests.support.small_run import make_dataset
from tests.support.staged_run import FULL, STEPS, differences, newest, run

PLAIN = dict(FULL, mosaic_prob=0, mixup_prob=0)
RUINED = 30.0  # a factor on the last layers that brings objectness and class loss far above their limit
BACK = dict(drift='rollback', random_start=False, window=100)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp('data') / 'set')


def config(folder, data, guard=None, ruin=None, stage=None, **options):
    """A guarded run of plain full training, ruined after epochs or before iterations."""
    cfg = guarded_config(folder, data, [dict(PLAIN, **(stage or {}))], dict(guard or dict(random_start=False)),
                         **options)
    cfg.custom_hooks = [dict(type='RuinHook', **ruin)] if ruin else []
    return cfg


def loaded(path):
    return torch.load(path, weights_only=True)


def changed_annotations(data, name, change):
    """Another annotation file of the same images."""
    content = json.loads((data / 'all.json').read_text())
    change(content)
    (data / name).write_text(json.dumps(content))
    return name


class Rates(Hook):
    """The rates of all iterations."""
    priority = 100

    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen.append(runner.optim_wrapper.param_groups[0]['lr'])


class AfterVal(Hook):
    """What a function says of the runner after each validation, after every other hook."""
    priority = 100

    def __init__(self, look):
        self.look, self.seen = look, []

    def after_val(self, runner):
        self.seen.append(self.look(runner))


class Warnings(logging.Handler, Hook):
    """The warnings of a run."""
    priority = 0

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())

    def before_train(self, runner):
        runner.logger.addHandler(self)

    def after_train(self, runner):
        runner.logger.removeHandler(self)


# ---- 1: holding

HOLD = dict(window=1, interval=1, images=2, drift='hold', divergence='warn', mismatch='warn', limit=0.01,
            random_start=False)


@pytest.mark.parametrize('warmup', [0, 1.0])
def test_two_holds_in_the_first_epoch(data, tmp_path, warmup):
    """One in it and one at its end: the schedule stands still for whole epochs that were done, and goes on to its end.
    """
    cfg = config(tmp_path, data, HOLD, dict(iterations={'1': 4.0}), dict(lr=1e-4, warmup_epochs=warmup))
    cfg.default_hooks.checkpoint.interval = 99
    rates = Rates()
    runner = run(cfg, tmp_path / 'run', hooks=[rates])
    seen = [(where, iteration) for _, where, iteration, actions in events(tmp_path / 'run') if 'hold' in actions]
    assert seen == [('training', STEPS), ('validation', STEPS)] and min(rates.seen) > 0
    [scheduler] = runner.param_schedulers
    planned = [1e-4 * scheduler.planned.plan.stages[0].factor(iteration / STEPS) for iteration in range(2 * STEPS)]
    assert rates.seen == pytest.approx(planned[:STEPS] * 3 + planned[STEPS:])


def test_resuming_in_mid_epoch_after_a_hold(data, tmp_path):
    """Within the epoch that was held in, and within the next one; four iterations an epoch."""
    cfg = config(tmp_path, data, dict(HOLD, max_hold=1), dict(iterations={'1': 4.0}), dict(lr=1e-4, warmup_epochs=1),
                 **{'train_dataloader.batch_size': 2})
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=3)
    whole = Rates()
    run(cfg, tmp_path / 'run', hooks=[whole])
    [hold] = [(where, iteration) for _, where, iteration, actions in events(tmp_path / 'run') if 'hold' in actions]
    assert hold[0] == 'training' and hold[1] <= 3 and len(whole.seen) == 12 and min(whole.seen) > 0
    for iteration in (6, 3):
        after = Rates()
        run(cfg, tmp_path / 'run', resume=True, hooks=[after],
            change=lambda cfg: cfg.update(load_from=str(tmp_path / 'run' / f'iter_{iteration}.pth')))  # noqa: B023
        assert after.seen == whole.seen[iteration:]


# ---- 2: the best by a loss

@pytest.fixture(scope='module')
def best_by_loss(data, tmp_path_factory):
    """The folder of a run whose last epoch has the highest loss and the highest metric."""
    folder = tmp_path_factory.mktemp('best')
    cfg = config(folder, data, ruin=dict(epochs={'2': RUINED}))
    cfg.val_evaluator = dict(type='TableMetric', values=(0.1, 0.2))
    cfg.default_hooks.checkpoint.save_best = 'val/loss'
    cfg.default_hooks.checkpoint.pop('rule')
    run(cfg, folder / 'run')
    return folder / 'run'


def lowest(folder):
    losses = {each['epoch']: each['metrics']['val/loss'] for each in guard_json(folder)['validations']}
    assert max(losses, key=losses.get) == 2
    return min(losses, key=losses.get)


def test_the_lowest_loss_is_the_best(best_by_loss, data, tmp_path):
    assert [path.name for path in best_by_loss.glob('best_*')] == [f'best_val_loss_epoch_{lowest(best_by_loss)}.pth']
    cfg = config(tmp_path, data)
    cfg.default_hooks.checkpoint.update(save_best='val/loss', rule='greater')
    with pytest.raises(UserError, match="rule='less'") as caught:
        check_figures(cfg, Plan.from_cfg(cfg))
    assert '\n' not in str(caught.value)
    cfg.default_hooks.checkpoint.rule = 'less'
    check_figures(cfg, Plan.from_cfg(cfg))


# ---- 3: what metrics see

@METRICS.register_module(force=True)
class TruthMetric(VOCMetric):
    """mmdet's metric of predictions that are the annotation file's boxes."""

    def __init__(self, ann_file, **options):
        super().__init__(**options)
        with open(ann_file, encoding='utf-8') as stream:
            self.annotations = [each for each in json.load(stream)['annotations'] if each['area']]

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            own = [each for each in self.annotations if each['image_id'] == sample['img_id']]
            boxes = [[x, y, x + w, y + h] for x, y, w, h in (each['bbox'] for each in own)]
            labels = torch.tensor([each['category_id'] for each in own])
            sample['pred_instances'] = InstanceData(bboxes=torch.tensor(boxes).float(), scores=torch.ones(len(own)),
                                                    labels=labels)
        super().process(data_batch, data_samples)


def boxes_of(sample):
    return get_box_tensor(sample.gt_instances.bboxes)


def test_metrics_see_true_boxes_in_the_original_image(data, tmp_path):
    cfg = config(tmp_path, data, stage=dict(epochs=1))
    cfg.val_evaluator = dict(type='TruthMetric', ann_file=str(data / 'all.json'), metric='mAP', iou_thrs=[0.95])
    runner = run(cfg, tmp_path / 'run')
    record = guard_json(tmp_path / 'run')
    for figures in (record['validations'][0]['metrics'], record['baseline']['pretrained'],
                    runner.val_loop.measure()):
        assert [value for name, value in figures.items() if name.endswith('mAP')] == [1.0]
    batch = next(iter(runner.val_loop.dataloader))
    sample = batch['data_samples'][0]
    assert tuple(sample.ori_shape) != tuple(sample.img_shape)
    before = boxes_of(sample).clone()
    with torch.no_grad():
        [out, *_] = measured_step(runner.model.eval(), batch, LossMeter())
    assert torch.equal(boxes_of(sample), before)
    true = unletterbox_boxes(before, sample.scale_factor, sample.pad_param)
    assert torch.allclose(boxes_of(out), true) and not torch.allclose(true, before)
    assert torch.equal(boxes_of(as_annotated(sample)), true)
    assert torch.equal(boxes_of(sample), before)


# ---- 4, 5: baselines

def test_a_guarded_loss_that_is_nothing_in_the_baseline(data, tmp_path):
    """Of validation images without boxes there is no class loss, so none is guarded."""
    assert ratio(0.0, 0.0) == 1.0 and ratio(1.0, 0.0) == float('inf') and ratio(3.0, 2.0) == 1.5
    cfg = config(tmp_path, data, dict(HOLD, images=1, drift='warn'), dict(iterations={'1': -6.0}))
    cfg.val_dataloader.dataset.ann_file = changed_annotations(data, 'empty.json', lambda content: content.update(
        annotations=[each for each in content['annotations'] if each['image_id'] > 1]))
    run(cfg, tmp_path / 'run')
    record = guard_json(tmp_path / 'run')
    assert record['baseline']['pretrained']['val/loss_cls'] == 0 and record['guarded'] == ['loss_obj']
    [drift, *_] = [each for each in record['events'] if (each['kind'], each['where']) == ('drift', 'training')]
    assert drift['values']['loss_obj'] > 1.0 and list(drift['values']) == ['loss_obj'] and record['ended'] == 'plan'
    assert all('loss_cls' not in each['ratios'] for each in record['validations'])


def test_what_makes_a_baseline_another_one(data, tmp_path):
    """Permuted labels and other loss options do; what validation replaces in the loss does not."""
    def permute(content):
        for each in content['annotations']:
            each['category_id'] = (each['category_id'] + 1) % 3

    run(config(tmp_path, data, ruin=dict(epochs={'1': 1.1}), stage=dict(epochs=1)), tmp_path / 'first')
    changes = dict(labels={'val_dataloader.dataset.ann_file': changed_annotations(data, 'permuted.json', permute)},
                   smoothing={'model.bbox_head.loss.label_smoothing': 0.3},
                   scales={'model.bbox_head.loss.object_scale': 2.0})
    found = {}
    for name, change in changes.items():
        cfg = config(tmp_path, data, stage=dict(epochs=1))
        cfg.merge_from_dict(change)
        cfg.load_from, cfg.plan.allow = str(tmp_path / 'first' / 'epoch_1.pth'), ['loss-scales']
        runner = run(cfg, tmp_path / name, kill=('iter', 1))
        found[name] = guard_json(tmp_path / name)['baseline']['pretrained']
    first = guard_json(tmp_path / 'first')['baseline']['pretrained']
    assert found['scales'] == first
    assert len({each['val/loss_cls'] for each in (first, found['labels'], found['smoothing'])}) == 3

    def mark(**loss):
        return fingerprint(runner.val_loop, dict(type='MultiGridLoss', **loss))

    assert mark() == mark(normalizers=('objects', ), class_weights=[1.0, 2.0, 3.0], class_scale=0.5)
    assert len({mark(), mark(label_smoothing=0.3), mark(iou_aware_ratio=0.9)}) == 3


# ---- 6, 7, 8: going back

def test_going_back_is_never_forward(data, tmp_path):
    """Resumed within epoch 2 of a folder whose last good epoch is the third: epoch 2 goes back to the start."""
    cfg = config(tmp_path, data, BACK, stage=dict(epochs=3))
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=STEPS + 1)
    run(cfg, tmp_path / 'run')
    assert loaded(tmp_path / 'run' / 'last_good.pth')['meta']['epoch'] == 3
    start = loaded(tmp_path / 'run' / START)['state_dict']
    cfg.custom_hooks = [dict(type='RuinHook', epochs={'2': RUINED})]
    at_start = AfterVal(lambda runner: (runner.epoch, differences(dict(runner.model.state_dict()), start) == []))
    heard = Warnings()
    run(cfg, tmp_path / 'run', resume=True, hooks=[heard, at_start],
        change=lambda cfg: cfg.update(load_from=str(tmp_path / 'run' / f'iter_{STEPS + 1}.pth')))
    assert at_start.seen == [(2, True), (3, False)]
    assert any('epoch 3, which this run has not come to' in line for line in heard.lines)
    [event] = [each for each in guard_json(tmp_path / 'run')['events'] if 'rollback' in each['actions']]
    assert event['epoch'] == 2 and 'went back to the weights of the start' in event['text']


def test_the_last_checkpoint_holds_what_the_run_went_back_to(data, tmp_path):
    runner = run(config(tmp_path, data, BACK, dict(epochs={'2': RUINED})), tmp_path / 'run')
    assert events(tmp_path / 'run') == [('drift', 'validation', 2 * STEPS, ['rollback'])]
    last = newest(tmp_path / 'run')['state_dict']
    assert differences(last, dict(runner.model.state_dict())) == []
    assert differences(last, loaded(tmp_path / 'run' / 'epoch_1.pth')['state_dict']) == []


def test_checkpoints_without_the_optimizer(data, tmp_path):
    cfg = config(tmp_path, data, BACK, dict(epochs={'2': RUINED}), dict(epochs=3))
    cfg.default_hooks.checkpoint.save_optimizer = False
    steps = AfterVal(lambda runner: int(next(iter(runner.optim_wrapper.optimizer.state.values()))['step']))
    run(cfg, tmp_path / 'run', hooks=[steps])
    assert [actions for *_, actions in events(tmp_path / 'run')] == [['rollback']]
    assert steps.seen == [STEPS, STEPS, 2 * STEPS]
    assert 'optimizer' not in loaded(tmp_path / 'run' / 'epoch_1.pth')
    assert loaded(tmp_path / 'run' / 'last_good.pth')['optimizer']['state']


# ---- 9, 10: bad steps

def test_the_invalid_loss_hook_of_mmdet_beside_a_skipped_step(data, tmp_path):
    cfg = config(tmp_path, data, stage=dict(epochs=1))
    cfg.custom_hooks = [dict(type='CheckInvalidLossHook', interval=1), dict(type='FaultHook', faults={'1': 'loss'})]
    run(cfg, tmp_path / 'run')
    record = guard_json(tmp_path / 'run')
    assert record['bad_steps'] == 1 and record['ended'] == 'plan'


def test_bad_batches_of_an_earlier_run(data, tmp_path):
    cfg = config(tmp_path, data, stage=dict(epochs=1))
    run(cfg, tmp_path / 'run', hooks=[], change=lambda cfg: cfg.custom_hooks.append(
        dict(type='FaultHook', faults={'1': 'loss'})))
    assert len((tmp_path / 'run' / 'bad_batches.jsonl').read_text().splitlines()) == 1
    run(cfg, tmp_path / 'run')
    assert not (tmp_path / 'run' / 'bad_batches.jsonl').exists() and guard_json(tmp_path / 'run')['bad_steps'] == 0


# ---- 11: which checkpoint is judged

def test_a_validation_gone_back_from_is_not_the_best(data, tmp_path):
    cfg = config(tmp_path, data, BACK, dict(epochs={'2': RUINED}), dict(epochs=3))
    cfg.default_hooks.checkpoint.update(save_best='table/value', rule='greater')
    cfg.val_evaluator = dict(type='TableMetric', values=(0.1, 0.9, 0.3))
    run(cfg, tmp_path / 'run')
    record = read_run(tmp_path / 'run')
    assert [each.rolled_back for each in record.validations] == [False, True, False]
    highest = max(record.validations, key=lambda each: each.metrics['table/value'])
    assert highest.epoch == 2 and kept(record).epoch == 3
    assert [path.name for path in (tmp_path / 'run').glob('best_*')] == ['best_table_value_epoch_3.pth']
    [check] = [each for each in check_run(record) if each.name == 'performance-kept']
    assert check.figures['epoch'] == 3


def test_the_best_by_the_record_s_own_rule(best_by_loss):
    record = read_run(best_by_loss)
    assert tuple(record.best) == ('val/loss', 'less')
    assert kept(record).epoch == lowest(best_by_loss)
