"""Suppression by its papers: worked examples, and every method against its rule taken one box at a time."""
import math

import pytest
import torch

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.compat import mmcv_ops
from mgdet_plugin.models.maths import suppression
from mgdet_plugin.models.maths.overlaps import centre_distance_penalty, overlap
from mgdet_plugin.models.maths.suppression import (
    BoxPairs,
    NMSOptions,
    cluster_nms,
    soft_nms,
    suppress,
    weighted_boxes_fusion,
)

# A chain: 0 overlaps 1 and 1 overlaps 2 by 60/140 = 0.43 of IoU, 0 and 2 by 20/180 = 0.11.
CHAIN = torch.tensor([[0.0, 0, 10, 10], [4.0, 0, 14, 10], [8.0, 0, 18, 10]])
SCORES = torch.tensor([0.9, 0.8, 0.7])
LABELS = torch.tensor([0, 1, 0])


def random_boxes(count, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 60
    return torch.cat((corner, corner + 5 + torch.rand(count, 2, generator=generator) * 40), 1)


def in_short_blocks(monkeypatch):
    """Blocks of a few boxes, as thousands of boxes are taken in blocks of hundreds."""
    monkeypatch.setattr(mmcv_ops, 'BLOCK', 7)
    monkeypatch.setattr(suppression, 'PAIRS_AT_ONCE', 130)
    monkeypatch.setattr(suppression, 'FUSED_AT_ONCE', 7)
    monkeypatch.setattr(suppression, 'LABELLED_AT_ONCE', 20)
    monkeypatch.setattr(suppression, 'SOFT_AT_ONCE', 30)


def measured(boxes, labels, kind, distance):
    """The measure of every pair, a box at a time."""
    rows = [overlap(box, boxes, kind) - distance * centre_distance_penalty(box, boxes) for box in boxes]
    return torch.stack(rows).where(labels[:, None] == labels, -1.0).tolist()


def greedy_one_by_one(measure, threshold):
    keep = []
    for index in range(len(measure)):
        if all(measure[better][index] <= torch.tensor(threshold).item() for better in keep):  # in single precision
            keep.append(index)
    return keep


@pytest.mark.parametrize('kind', ['iou', 'iol'])
@pytest.mark.parametrize('distance', [False, True])
@pytest.mark.parametrize('classes', [1, 3, 12])
def test_greedy_equals_the_rule_taken_one_by_one(kind, distance, classes, monkeypatch):
    """Tied scores, boxes that are the same and boxes without area among them."""
    in_short_blocks(monkeypatch)
    for seed in range(4):
        boxes = random_boxes(50, seed).div(4).round()
        boxes[7] = boxes[30]
        boxes[9, 2:] = boxes[9, :2]
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(50, generator=generator).mul(20).ceil().div(20)
        labels = torch.randint(classes, (50, ), generator=generator)
        order = sorted(range(50), key=lambda index: -scores[index])  # stable: of two alike the first
        measure = measured(boxes[order], labels[order], kind, distance)
        options = NMSOptions('diou' if distance else 'standard', 0.3, kind, classes == 1)
        wanted = [order[index] for index in greedy_one_by_one(measure, 0.3)]
        assert suppress(boxes, scores, labels, options).indices.tolist() == wanted
        assert suppress(boxes, scores, labels, options, limit=9).indices.tolist() == wanted[:9]
        assert 9 < len(wanted) < 50 + (classes == 12)


def test_limit_of_one_is_the_best():
    assert suppress(CHAIN, SCORES, LABELS, NMSOptions('standard', 0.4), limit=1).indices.tolist() == [0]


def test_chain_frees_the_third_box():
    left = suppress(CHAIN, SCORES, LABELS, NMSOptions('standard', 0.4))
    assert left.indices.tolist() == [0, 2]


def test_iol_is_obeyed():
    # IoL of neighbours is 60/100 = 0.6: above a threshold that IoU (0.43) stays under.
    assert suppress(CHAIN, SCORES, LABELS, NMSOptions('standard', 0.5)).indices.tolist() == [0, 1, 2]
    assert suppress(CHAIN, SCORES, LABELS, NMSOptions('standard', 0.5, overlap='iol')).indices.tolist() == [0, 2]


def test_per_class_spares_other_classes():
    left = suppress(CHAIN, SCORES, LABELS, NMSOptions('standard', 0.4, class_agnostic=False))
    assert left.indices.tolist() == [0, 1, 2]


def test_diou_spares_distant_centres():
    # Penalty of neighbours: 16 / (14^2 + 10^2) = 0.054, so DIoU = 0.429 - 0.054 = 0.375.
    everything = torch.arange(3)
    measure = BoxPairs(CHAIN, distance=True)(everything, everything)
    assert measure[0, 1].item() == pytest.approx(60 / 140 - 16 / 296)
    assert suppress(CHAIN, SCORES, LABELS, NMSOptions('diou', 0.4)).indices.tolist() == [0, 1, 2]
    assert suppress(CHAIN, SCORES, LABELS, NMSOptions('diou', 0.37)).indices.tolist() == [0, 2]


def test_soft_linear_sorts_again():
    # Box 1 decays to 0.8 * (1 - 0.4286) = 0.457 and falls behind box 2, which then decays box 1 again.
    left = suppress(CHAIN, SCORES, LABELS, NMSOptions('soft', 0.3), score_thr=0.0)
    near = 60 / 140
    assert left.indices.tolist() == [0, 2, 1]
    expected = torch.tensor([0.9, 0.7, 0.8 * (1 - near)**2])
    torch.testing.assert_close(left.scores, expected)


def test_soft_gaussian():
    near, far = 60 / 140, 20 / 180
    left = suppress(CHAIN, SCORES, LABELS, NMSOptions('soft', decay='gaussian', sigma=0.5))
    second, third = 0.8 * math.exp(-near**2 / 0.5), 0.7 * math.exp(-far**2 / 0.5)
    assert left.indices.tolist() == [0, 2, 1]
    torch.testing.assert_close(left.scores, torch.tensor([0.9, third, second * math.exp(-near**2 / 0.5)]))


def test_soft_drops_what_falls_to_the_score_threshold():
    left = suppress(CHAIN, SCORES, LABELS, NMSOptions('soft', 0.3), score_thr=0.3)
    assert left.indices.tolist() == [0, 2]


def soft_one_by_one(measure, scores, decay):
    left, taken = dict(enumerate(scores)), []
    while left:
        best = max(left, key=left.get)
        taken.append((best, left.pop(best)))
        left = {index: score * decay(max(measure[best][index], 0.0)) for index, score in left.items()}
    return taken


@pytest.mark.parametrize('short', [False, True])
@pytest.mark.parametrize('decay', ['linear', 'gaussian'])
def test_soft_equals_the_rule_taken_one_by_one(decay, short, monkeypatch):
    """With all pairs beforehand and with a row a box taken."""
    if short:
        in_short_blocks(monkeypatch)
    boxes, scores = random_boxes(40, 5), torch.rand(40, generator=torch.Generator().manual_seed(5))
    by = {'linear': lambda value: 1 - value if value >= 0.3 else 1.0,
          'gaussian': lambda value: math.exp(-value**2 / 0.5)}[decay]
    wanted = soft_one_by_one(measured(boxes, torch.zeros(40), 'iou', False), scores.tolist(), by)
    options = NMSOptions('soft', 0.3, decay=decay)
    left = suppress(boxes, scores, torch.zeros(40), options)
    assert left.indices.tolist() == [index for index, score in wanted if score > 0]
    torch.testing.assert_close(left.scores.tolist(), [score for _, score in wanted if score > 0], rtol=1e-5, atol=1e-7)
    assert torch.equal(suppress(boxes, scores, torch.zeros(40), options, limit=11).indices, left.indices[:11])


def test_soft_of_nothing():
    left = soft_nms(BoxPairs(CHAIN[:0]), SCORES[:0], 0.5, 0.1)
    assert len(left.indices) == len(left.boxes) == len(left.scores) == 0


def test_cluster_weighted_merges_duplicates():
    # Box 0 survives and takes box 1 in, with weight 0.8 * 60/140 against its own 0.9; box 2 survives alone.
    left = cluster_nms(BoxPairs(CHAIN), SCORES, 0.4, 'weighted')
    weight = 0.8 * 60 / 140
    merged = (0.9 * CHAIN[0] + weight * CHAIN[1]) / (0.9 + weight)
    torch.testing.assert_close(left.boxes, torch.stack((merged, CHAIN[2])))
    torch.testing.assert_close(left.scores, SCORES[[0, 2]])


def test_cluster_votes_are_the_mean_of_the_best_scores():
    # Box 0 has box 1 behind it and box 2 nothing: with two votes (0.9 + 0.8) / 2 and 0.7 / 2, the boxes as before.
    best = cluster_nms(BoxPairs(CHAIN), SCORES, 0.4, 'weighted')
    for votes, expected in ((2, [0.85, 0.35]), (3, [1.7 / 3, 0.7 / 3]), (9, [1.7 / 9, 0.7 / 9])):
        left = cluster_nms(BoxPairs(CHAIN), SCORES, 0.4, 'weighted', votes)
        torch.testing.assert_close(left.scores, torch.tensor(expected))
        torch.testing.assert_close(left.boxes, best.boxes)


@pytest.mark.parametrize('mode', ['weighted', 'score_penalty'])
def test_cluster_equals_its_formulas_taken_one_by_one(mode, monkeypatch):
    in_short_blocks(monkeypatch)
    boxes = random_boxes(30, 2).double()
    scores = torch.rand(30, generator=torch.Generator().manual_seed(2)).double().sort(descending=True).values
    measure = measured(boxes, torch.zeros(30), 'iou', False)
    kept, wanted = greedy_one_by_one(measure, 0.3), []
    for index in range(30):
        if mode == 'score_penalty':
            wanted.append((scores[index] * math.prod(math.exp(-measure[row][index]**2 / 0.2) for row in kept
                                                     if row < index), boxes[index]))
        elif index in kept:
            share = {other: 1.0 if other == index else measure[index][other] for other in range(index, 30)
                     if other == index or measure[index][other] > 0.3}
            weights = {other: scores[other] * value for other, value in share.items()}
            best = sorted((scores[other] for other in share), reverse=True)[:2]
            wanted.append((sum(best) / 2, sum(weight * boxes[other] for other, weight in weights.items())
                           / sum(weights.values())))
    wanted.sort(key=lambda each: -each[0])
    left = suppress(boxes, scores, torch.zeros(30), NMSOptions(
        'cluster', 0.3, class_agnostic=False, mode=mode, votes=2 if mode == 'weighted' else 1))
    torch.testing.assert_close(left.scores, torch.stack([score for score, _ in wanted]))
    torch.testing.assert_close(left.boxes, torch.stack([box for _, box in wanted]))
    assert 1 < len(kept) < 30


def test_votes_sort_again():
    # The lonely box 0 falls behind the confirmed box 1.
    boxes = torch.tensor([[50., 50., 60., 60.], [0., 0., 10., 10.], [1., 0., 11., 10.]])
    left = suppress(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.long),
                    NMSOptions('cluster', 0.5, class_agnostic=False, mode='weighted', votes=2))
    assert left.indices.tolist() == [1, 0]
    torch.testing.assert_close(left.scores, torch.tensor([0.75, 0.45]))


def test_votes_of_nothing():
    left = cluster_nms(BoxPairs(CHAIN[:0]), SCORES[:0], 0.5, 'weighted', 3)
    assert len(left.indices) == len(left.boxes) == len(left.scores) == 0


def fused_one_by_one(boxes, scores, labels, threshold, models):
    """The six steps of the paper's section 3, in plain numbers."""
    def area(box):
        return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])

    def iou(one, other):
        inner = area([max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])])
        return inner / (area(one) + area(other) - inner)

    clusters, fused = [], []
    for score, box, label in sorted(zip(scores, boxes, labels), key=lambda each: -each[0]):
        overlaps = [iou(mean, box) if of == label else -1.0 for _, mean, of in fused]
        place = overlaps.index(max(overlaps)) if overlaps and max(overlaps) > threshold else len(fused)
        if place == len(fused):
            clusters.append([])
            fused.append(None)
        clusters[place].append((score, box))
        weight = sum(each for each, _ in clusters[place])
        fused[place] = (weight / len(clusters[place]),
                        [sum(each * one[side] for each, one in clusters[place]) / weight for side in range(4)], label)
    found = [(mean * min(len(cluster), models) / models, box) for cluster, (mean, box, _) in zip(clusters, fused)]
    return sorted(found, key=lambda each: -each[0])


@pytest.mark.parametrize('models', [1, 3])
@pytest.mark.parametrize('classes', [1, 3])
def test_weighted_boxes_fusion_equals_the_paper_taken_step_by_step(models, classes, monkeypatch):
    in_short_blocks(monkeypatch)
    merged = 0
    for seed in range(12):
        boxes = random_boxes(40, seed).double()
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(40, generator=generator).double()
        labels = torch.randint(classes, (40, ), generator=generator)
        options = NMSOptions('wbf', 0.4, class_agnostic=False, votes=models)
        left = suppress(boxes, scores, labels, options)
        wanted = fused_one_by_one(boxes.tolist(), scores.tolist(), labels.tolist(), 0.4, models)
        torch.testing.assert_close(left.scores.tolist(), [score for score, _ in wanted])
        torch.testing.assert_close(left.boxes.tolist(), [box for _, box in wanted])
        merged += len(boxes) - len(wanted)
    assert merged > 50


def test_fusion_moves_along_a_chain():
    # After box 1 the mean of the first two reaches from 1.88 to 11.88; box 2 overlaps it by 38.8/161.2 = 0.24.
    apart = weighted_boxes_fusion(BoxPairs(CHAIN), SCORES, 0.3)
    torch.testing.assert_close(apart.boxes[0], (0.9 * CHAIN[0] + 0.8 * CHAIN[1]) / 1.7)
    assert apart.indices.tolist() == [0, 2]
    one = weighted_boxes_fusion(BoxPairs(CHAIN), SCORES, 0.2, models=5)  # box 2 alone would not reach box 0
    torch.testing.assert_close(one.boxes, (SCORES @ CHAIN / SCORES.sum())[None])
    torch.testing.assert_close(one.scores, torch.tensor([2.4 / 5]))
    assert suppress(CHAIN, SCORES, LABELS, NMSOptions('wbf', 0.3, class_agnostic=False)).indices.tolist() == [0, 1, 2]
    assert suppress(CHAIN, SCORES, LABELS, NMSOptions('wbf', 0.3)).indices.tolist() == [0, 2]


def test_fusion_of_nothing():
    left = suppress(CHAIN[:0], SCORES[:0], LABELS[:0], NMSOptions('wbf'))
    assert len(left.indices) == len(left.boxes) == len(left.scores) == 0


def test_cluster_score_penalty_keeps_all_and_decays():
    # Box 1 is penalised by box 0; box 2 only by box 0, since box 1 does not survive.
    left = cluster_nms(BoxPairs(CHAIN), SCORES, 0.4, 'score_penalty')
    second, third = 0.8 * math.exp(-(60 / 140)**2 / 0.2), 0.7 * math.exp(-(20 / 180)**2 / 0.2)
    assert left.indices.tolist() == [0, 2, 1]
    torch.testing.assert_close(left.scores, torch.tensor([0.9, third, second]))


def test_plain_cluster_is_greedy():
    boxes, scores = random_boxes(40, 3), torch.linspace(1, 0.1, 40)
    labels = torch.zeros(40, dtype=torch.long)
    plain = suppress(boxes, scores, labels, NMSOptions('cluster', 0.3))
    assert torch.equal(plain.indices, suppress(boxes, scores, labels, NMSOptions('standard', 0.3)).indices)


def test_index_points_into_unsorted_input():
    order = torch.tensor([2, 0, 1])
    left = suppress(CHAIN[order], SCORES[order], LABELS[order], NMSOptions('standard', 0.4))
    assert order[left.indices].tolist() == [0, 2]


@pytest.mark.parametrize('options', [
    NMSOptions('matrix'), NMSOptions(overlap='giou'), NMSOptions(iou_threshold=1.5), NMSOptions(sigma=0.0),
    NMSOptions(mode='best'), NMSOptions(decay='cubic'), NMSOptions(mode='weighted', votes=0),
    NMSOptions(mode='weighted', votes=1.5), NMSOptions('cluster', class_agnostic=False, votes=3),
    NMSOptions(votes=True), NMSOptions(mode='weighted', class_agnostic=False, votes=3),
    NMSOptions('cluster', mode='weighted', votes=3)])
def test_options_out_of_range(options):
    with pytest.raises(UserError, match='got'):
        options.checked()


def test_a_limit_is_of_plain_suppression_alone():
    assert cluster_nms(BoxPairs(CHAIN), SCORES, 0.4, limit=1).indices.tolist() == [0]
    assert cluster_nms(BoxPairs(CHAIN), SCORES, 0.4, 'weighted', limit=1).indices.tolist() == [0, 2]


@pytest.mark.parametrize('options', [NMSOptions('cluster', class_agnostic=False, mode='weighted', votes=3),
                                     NMSOptions('wbf', class_agnostic=False, votes=3), NMSOptions(iou_threshold=1),
                                     NMSOptions(iou_threshold=0), NMSOptions('soft', decay='gaussian', sigma=0.1)])
def test_options_within_range(options):
    assert options.checked() is options
