"""The loss against the reference's totals, and each option against a cell-by-cell statement in NumPy."""
import math

import numpy as np
import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models import MultiGridLoss
from mgdet_plugin.models.maths.overlaps import overlap
from mgdet_plugin.models.multigrid_bbox_coder import invert_xy
from mgdet_plugin.models.multigrid_loss import counted_weights, off_target
from tests.conftest import ANCHORS, SIZES_320, objects

REFERENCE_NAMES = dict(ignore_thresh='ignore_thr', use_overlap_weighted_localization='overlap_weighted_coord',
                       use_softmax_loss='use_softmax', loss_normalization='normalizers')
PLAIN = dict(overlap_weighted_coord=False, ignore_thr=2.0)


def total(losses):
    return sum(losses.values())


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_golden_totals(make_head, golden_losses, golden_maps, golden_objects):
    assert len(golden_losses) == 5
    for name, entry in golden_losses.items():
        options = {REFERENCE_NAMES.get(key, key): value for key, value in entry['options'].items()
                   if key != 'loss_option'}
        losses = make_head(loss=options).loss_by_feat(golden_maps, golden_objects, [{}] * 5)
        assert set(losses) == {'loss_coord', 'loss_obj', 'loss_anchor', 'loss_cls'}
        assert total(losses).item() == pytest.approx(entry['total'], rel=1e-4), name


class Cells:
    """The golden batch cell by cell, in float64: what the tests below state each option with."""

    def __init__(self, head, maps, gts):
        self.boxes = head.decode(maps)[0].double().numpy()
        self.cells = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], 1).double().numpy()
        self.targets = head.assigner.assign(gts, SIZES_320)
        self.gts = [each.bboxes.double().numpy() for each in gts]
        grid = self.targets.grid
        self.place = np.stack((grid.col, grid.row, grid.stride, grid.level), 1)
        self.anchors = head.assigner.anchors.double().numpy()
        self.positives = list(zip(self.targets.image.tolist(), self.targets.cell.tolist()))

    def fit(self, kind='iol'):
        """Overlap of each positive cell's box, with its assigned anchor, with its object."""
        boxes = []
        for (image, cell), anchor in zip(self.positives, self.targets.anchor.tolist()):
            col, row, stride, level = self.place[cell]
            raw = self.cells[image, cell]
            centre = (np.tanh(0.15 * raw[:2]) + sigmoid(0.15 * raw[:2]) + (col, row)) * stride
            half = self.anchors[level, anchor] * np.exp(raw[2:4]) / 2
            boxes.append(np.concatenate((centre - half, centre + half)))
        return overlap(torch.tensor(np.array(boxes)), self.targets.box.double(), kind).numpy()

    def best(self, kind='iol'):
        """(B, N) highest overlap with any object of the image."""
        best = np.zeros(self.boxes.shape[:2])
        for image, gts in enumerate(self.gts):
            for gt in gts:
                pairs = overlap(torch.tensor(self.boxes[image]), torch.tensor(gt), kind).numpy()
                best[image] = np.maximum(best[image], pairs)
        return best

    def bce(self, goal):
        """(B, N) objectness cross-entropy."""
        logit = self.cells[..., 4]
        return np.logaddexp(0, logit) - goal * logit


@pytest.fixture
def cells(make_head, golden_maps, golden_objects):
    return Cells(make_head(), golden_maps, golden_objects)


@pytest.fixture
def losses_of(make_head, golden_maps, golden_objects):
    return lambda **options: make_head(loss={**PLAIN, **options}).loss_by_feat(golden_maps, golden_objects, [{}] * 5)


@pytest.mark.parametrize('kind', ['iol', 'iou'])
def test_ignore_mask_and_soft_penalty(losses_of, cells, kind):
    best, bce = cells.best(kind), cells.bce(0.0)
    positive = np.zeros(best.shape, bool)
    positive[tuple(zip(*cells.positives))] = True
    ignored = (best > 0.5) & ~positive
    assert ignored.sum() > 10
    base = cells.bce(1.0)[positive].sum() + 0.5 * bce[~positive & ~ignored].sum()
    found = losses_of(ignore_thr=0.5, overlap=kind)['loss_obj'].item()
    assert found == pytest.approx(base / 5, rel=1e-5)
    penalty = (20.0 * best**2 * bce)[ignored].sum()
    found = losses_of(ignore_thr=0.5, overlap=kind, soft_ignore_weight=20.0)['loss_obj'].item()
    assert found == pytest.approx((base + penalty) / 5, rel=1e-5)
    assert penalty > 1e-3 * base


def test_overlap_weighted_coordinates(losses_of, cells):
    fit = cells.fit()
    raw = np.array([cells.cells[image, cell, :4] for image, cell in cells.positives])
    xy = np.tanh(0.15 * raw[:, :2]) + sigmoid(0.15 * raw[:, :2])
    error = ((xy - cells.targets.xy.numpy())**2).sum(1) + ((raw[:, 2:] - cells.targets.wh.numpy())**2).sum(1)
    found = losses_of(overlap_weighted_coord=True, overlap_min=0.25, overlap_power=2.0)['loss_coord'].item()
    assert found == pytest.approx((5 * error * (0.25 + 0.75 * fit**2)).sum() / 5, rel=1e-5)


def test_iou_aware_objectness(losses_of, cells):
    goal = np.zeros(cells.boxes.shape[:2])
    goal[tuple(zip(*cells.positives))] = 0.5 * cells.fit() + 0.5
    weight = np.where(goal > 0, 1.0, 0.5)
    found = losses_of(iou_aware_ratio=0.5)['loss_obj'].item()
    assert found == pytest.approx((weight * cells.bce(goal)).sum() / 5, rel=1e-5)


def test_quality_focal_objectness(losses_of, cells):
    goal = np.zeros(cells.boxes.shape[:2])
    goal[tuple(zip(*cells.positives))] = cells.fit('iou')
    weight = np.full(goal.shape, 0.5)
    weight[tuple(zip(*cells.positives))] = 1.0
    weight *= np.abs(goal - sigmoid(cells.cells[..., 4]))**1.5
    found = losses_of(iou_aware_ratio=1.0, overlap='iou', objectness_gamma=1.5)['loss_obj'].item()
    assert found == pytest.approx((weight * cells.bce(goal)).sum() / 5, rel=1e-5)


@pytest.mark.parametrize(('target', 'logit'), [(0.8, 0.0), (0.0, 1.5)])
def test_gradient_of_quality_focal_objectness(make_head, target, logit):
    # Of |t - p|^g * BCE(p, t), the factor's own gradient included (eq. 3).
    value = torch.tensor(logit, dtype=torch.float64, requires_grad=True)
    p = value.sigmoid()
    by_hand = (target - p).abs()**1.5 * -(target * p.log() + (1 - target) * (1 - p).log())
    by_hand.backward()
    loss = MultiGridLoss(iou_aware_ratio=1.0, objectness_gamma=1.5, no_object_scale=1.0)
    found = torch.full((1, 1), logit, requires_grad=True)
    loss.objectness_term(found, torch.full((1, 1), target), torch.ones(1, 1)).sum().backward()
    assert found.grad.item() == pytest.approx(value.grad.item(), rel=1e-5)


def test_cells_weighted_by_their_fit(losses_of, cells):
    fit, owner = cells.fit(), cells.targets.gt.numpy()
    best = np.array([fit[owner == each].max() for each in owner])
    share = ((fit + 1e-3) / (best + 1e-3))**2
    assert share.max() == 1 and share.min() < 0.5
    logits = np.array([cells.cells[image, cell, 5:8] for image, cell in cells.positives])
    terms = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), cells.targets.anchor.numpy()]
    plain, weighted = losses_of(), losses_of(cell_weight_power=2.0)
    assert weighted['loss_anchor'].item() == pytest.approx((terms * share).sum() / 5, rel=1e-5)
    assert weighted['loss_cls'] < plain['loss_cls'] and weighted['loss_coord'] < plain['loss_coord']
    assert weighted['loss_obj'].item() == plain['loss_obj'].item()


def test_sizes_of_the_expected_anchor_in_the_box_loss(make_head):
    # An object half way between two anchors, predicted by their mean with tw = th = 0, costs nothing.
    (a, b), (c, d) = ANCHORS[1][1:]
    size = torch.tensor([a * c, b * d]).sqrt()
    centre = torch.tensor([136.0, 136.0])
    gt = objects([torch.cat((centre - size / 2, centre + size / 2)).tolist()], [0])
    found = {}
    for use in ('likely', 'expected'):
        head = make_head(num_classes=1, loss=dict(PLAIN, iou_loss=dict(type='DIoULoss')),
                         bbox_coder=dict(type='MultiGridBBoxCoder', anchor_use=use))
        maps = [torch.zeros(1, 9, side, side) for side in (10, 20, 40)]
        targets = head.assigner.assign([gt], SIZES_320)
        assert (targets.grid.level[targets.cell] == 1).all()
        for row in range(7, 10):
            for col in range(7, 10):
                offset = (centre / 16 - torch.tensor([col, row]))[None]
                maps[1][0, :2, row, col] = invert_xy(offset, 0.15)[0]
        maps[1][:, 5] = -50.0  # the other two anchors alike
        maps[1].requires_grad_()
        found[use] = head.loss_by_feat(maps, [gt], [{}])['loss_coord']
    assert found['expected'].item() == pytest.approx(0.0, abs=0.02)
    assert found['likely'].item() > 1
    found['expected'].backward()
    assert torch.isfinite(maps[1].grad).all()


@pytest.mark.parametrize('use_softmax', [True, False])
@pytest.mark.parametrize('focal', [True, False])
def test_class_term(losses_of, cells, use_softmax, focal):
    weights = np.linspace(0.5, 2.0, 20)
    expected = 0.0
    for (image, cell), label in zip(cells.positives, cells.targets.label.tolist()):
        logits, goal = cells.cells[image, cell, 8:], np.full(20, 0.01 / 20)
        goal[label] += 0.99
        if use_softmax:
            log_probs = logits - np.log(np.exp(logits).sum())
            term = -(goal * log_probs).sum() * weights[label]
            expected += term * ((1 - np.exp(log_probs[label]))**2 if focal else 1)
        else:
            term, hard = np.logaddexp(0, logits) - goal * logits, np.eye(20)[label]
            right = np.where(hard == 1, sigmoid(logits), 1 - sigmoid(logits))
            expected += (term * ((1 - right)**2 * np.where(hard == 1, 0.25, 0.75) if focal else 1) * weights).sum()
    found = losses_of(use_softmax=use_softmax, focal=focal, label_smoothing=0.01, class_weights=weights.tolist())
    assert found['loss_cls'].item() == pytest.approx(expected / 5, rel=1e-5)


def test_normalizers_multiply(losses_of, cells):
    count = [sum(1 for _, cell in cells.positives if cells.place[cell][3] == level) for level in range(3)]
    goal = np.zeros(cells.boxes.shape[:2])
    goal[tuple(zip(*cells.positives))] = 1.0
    bce = np.where(goal > 0, 1.0, 0.5) * cells.bce(goal)
    sums = [bce[:, cells.place[:, 3] == level].sum() for level in range(3)]
    norms = [5 * n * 5 * size * size for n, size in zip(count, (10, 20, 40))]
    found = losses_of(normalizers=('batch', 'positives', 'grid'))['loss_obj'].item()
    assert found == pytest.approx(sum(s / n for s, n in zip(sums, norms)), rel=1e-5)


def test_consensus_by_hand(make_head):
    # One object, nine cells. All predict the same box but one, whose width is e times larger.
    box = [100, 100, 156, 212]
    head = make_head(num_classes=1, loss=dict(consensus_scale=2.0))
    targets = head.assigner.assign([objects([box], [0])], SIZES_320)
    cells = torch.zeros(1, targets.grid.num_cells, 9)
    col, row = targets.grid.col[targets.cell], targets.grid.row[targets.cell]
    sizes = torch.tensor([[56.0, 112.0]]).expand(9, 2)
    raw = head.bbox_coder.encode(torch.stack((col, row, torch.full_like(col, 16)), 1), targets.box, sizes)
    raw[4, 2] += 1
    cells[0, targets.cell, :4] = raw
    split = cells.split([100, 400, 1600], 1)
    maps = [level.transpose(1, 2).reshape(1, 9, size, size) for level, size in zip(split, (10, 20, 40))]
    found = head.loss_by_feat(maps, [objects([box], [0])], [{}])['loss_consensus'].item()
    variance = (1 - 1 / 9)**2 / 9 + 8 * (1 / 9)**2 / 9  # mean of squares around the mean 1/9; one centre cell
    assert found == pytest.approx(2 * variance, rel=1e-3)


@pytest.mark.parametrize('kind', ['GIoULoss', 'DIoULoss', 'CIoULoss'])
def test_box_losses_in_pixels(make_head, kind):
    # Perfect predictions cost nothing (mmdet's CIoU of them alone is NaN); one moved by 8 pixels what mmdet says.
    box = [100.0, 100, 156, 212]
    head = make_head(num_classes=1, loss=dict(PLAIN, iou_loss=dict(type=kind)))
    targets = head.assigner.assign([objects([box], [0])], SIZES_320)
    for shift in (0.0, 8.0):
        cells = torch.zeros(1, targets.grid.num_cells, 9)
        place = torch.stack((targets.grid.col[targets.cell], targets.grid.row[targets.cell],
                             torch.full_like(targets.cell, 16)), 1)
        inside = (place[:, :2] == torch.tensor([8, 9])).all(1)  # the centre cell alone is moved
        moved = targets.box + shift * torch.tensor([1.0, 0, 1, 0]) * inside[:, None]
        cells[0, targets.cell, :4] = head.bbox_coder.encode(place, moved, torch.tensor([[56.0, 112.0]]).expand(9, 2))
        split = cells.split([100, 400, 1600], 1)
        maps = [level.transpose(1, 2).reshape(1, 9, size, size) for level, size in zip(split, (10, 20, 40))]
        found = head.loss_by_feat(maps, [objects([box], [0])], [{}])['loss_coord'].item()
        one = head.loss_module.iou_loss(moved[4:5], targets.box[4:5], reduction_override='none').sum().item()
        assert found == pytest.approx(5 * one if shift else 0.0, abs=1e-2)
        assert (found > 0.3) == (shift > 0)


def test_perfect_boxes_have_a_finite_gradient():
    loss = MultiGridLoss(iou_loss=dict(type='CIoULoss')).iou_loss
    target = torch.tensor([[10.0, 10, 50, 90]])
    boxes = target.clone().requires_grad_()
    value = loss(off_target(boxes, target), target, reduction_override='none').sum()
    value.backward()
    assert 0 <= value < 1e-3
    assert torch.isfinite(boxes.grad).all()
    assert torch.equal(off_target(target + 1, target), target + 1)


def test_overlaps_carry_no_gradient(make_head, golden_maps, golden_objects):
    # Objectness sees sizes only through overlaps: no gradient may reach them.
    maps = [level.clone().requires_grad_() for level in golden_maps]
    head = make_head(loss=dict(iou_aware_ratio=0.5, soft_ignore_weight=0.1))
    head.loss_by_feat(maps, golden_objects, [{}] * 5)['loss_obj'].backward()
    for level in maps:
        assert level.grad[:, :4].abs().max() == 0 and level.grad[:, 4].abs().max() > 0


@pytest.mark.parametrize('options', [{}, dict(iou_loss=dict(type='CIoULoss')), dict(consensus_scale=1.0),
                                     dict(use_softmax=False, focal=True), dict(normalizers=('batch', 'positives')),
                                     dict(objectness_gamma=1.5, cell_weight_power=1.0)])
def test_images_without_objects(make_head, options):
    maps = [torch.randn(2, 28, size, size, requires_grad=True) for size in (2, 4, 8)]
    losses = make_head(loss=options).loss_by_feat(maps, [objects([], []), objects([], [])], [{}] * 2)
    total(losses).backward()
    assert losses['loss_obj'] > 0
    assert losses['loss_coord'] == losses['loss_anchor'] == losses['loss_cls'] == 0
    assert all(torch.isfinite(level.grad).all() for level in maps)


def test_wild_logits_give_finite_gradients(make_head, golden_objects):
    maps = [torch.full((5, 28, size, size), 60.0, requires_grad=True) for size in (10, 20, 40)]
    options = dict(iou_loss=dict(type='CIoULoss'), consensus_scale=1.0, iou_aware_ratio=0.5, soft_ignore_weight=0.1)
    losses = make_head(loss=options).loss_by_feat(maps, golden_objects, [{}] * 5)
    total(losses).backward()
    assert torch.isfinite(total(losses)) and all(torch.isfinite(level.grad).all() for level in maps)


def test_half_precision_maps(make_head, golden_maps, golden_objects):
    full = total(make_head().loss_by_feat(golden_maps, golden_objects, [{}] * 5)).item()
    half = make_head().loss_by_feat([level.bfloat16() for level in golden_maps], golden_objects, [{}] * 5)
    assert total(half).dtype == torch.float32
    assert total(half).item() == pytest.approx(full, rel=0.02)


def test_balanced_class_weights(make_head, golden_maps, golden_objects):
    head = make_head(loss=dict(class_weights='balanced'))
    plain = make_head().loss_by_feat(golden_maps, golden_objects, [{}] * 5)['loss_cls'].item()
    with pytest.warns(UserWarning, match='every class weighs 1'):
        assert head.loss_by_feat(golden_maps, golden_objects, [{}] * 5)['loss_cls'].item() == pytest.approx(plain)
    head.loss_module.set_class_counts([10, 0, 1000] + [100] * 17)
    weights = head.loss_module.class_weights
    mean = (10 + 1000 + 1700) / 20
    expected = torch.tensor([10.0, 1.0, mean / 1000, mean / 100])  # 13.55 held to 10; never seen: 1
    torch.testing.assert_close(weights[:4], expected)
    assert 'class_weights' not in ''.join(head.state_dict())


@pytest.mark.parametrize(('options', 'message'), [
    (dict(normalizers=()), 'at least one'), (dict(normalizers=('batch', 'images')), 'images'),
    (dict(coord_scale=-1), 'coord_scale'), (dict(label_smoothing=1.5), '1.5'), (dict(overlap='giou'), 'giou'),
    (dict(class_weights='auto'), 'auto'), (dict(ignore_thr=math.nan), 'nan'),
    (dict(objectness_gamma=-2), 'objectness_gamma'), (dict(cell_weight_power=math.inf), 'cell_weight_power')])
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        MultiGridLoss(**options)


def test_class_weights_of_another_length(make_head, golden_maps, golden_objects):
    with pytest.raises(UserError, match=r'one factor a class \(20\), got 3'):
        make_head(loss=dict(class_weights=[1, 1, 1])).loss_by_feat(golden_maps, golden_objects, [{}] * 5)


def test_a_moving_average_made_before_the_classes_are_counted_can_be_updated():
    """mmengine's EMAHook copies the model first and pairs buffers by their order later."""
    module = nn.Sequential(nn.BatchNorm2d(5), MultiGridLoss(class_weights='balanced'), nn.BatchNorm2d(7))
    average = ExponentialMovingAverage(module)
    module[1].set_class_counts([1, 2, 3])
    module[2].running_mean += 1
    average.update_parameters(module)
    assert torch.equal(average.module[2].running_mean, torch.ones(7))


def test_counted_weights_by_their_rules():
    counts = torch.tensor([4.0, 16.0, 0.0, 64.0])
    for method, wanted in (('balanced', [84 / 16, 84 / 64, 1, 84 / 256]),
                           ('inverse', [48 / 21, 12 / 21, 1, 3 / 21]), ('sqrt_inverse', [12 / 7, 6 / 7, 1, 3 / 7])):
        torch.testing.assert_close(counted_weights(counts, method), torch.tensor(wanted))
    held = counted_weights(torch.tensor([1.0, 1e6] + [1e6] * 30), 'inverse')  # one rare class of 32
    assert held.max() == 10 and held.min() == pytest.approx(0.1)
    for method in ('balanced', 'inverse', 'sqrt_inverse'):
        assert torch.equal(counted_weights(torch.zeros(3), method), torch.ones(3))
        assert MultiGridLoss(class_weights=method).set_class_counts([3, 3]).tolist() == [1, 1]
    with pytest.raises(UserError, match=r"one of .*'sqrt_inverse'.* or None, got 'often'"):
        MultiGridLoss(class_weights='often')
