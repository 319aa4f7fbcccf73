"""Suppression by its papers: worked examples, and greedy suppression against the one-by-one rule."""
import math

import pytest
import torch

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models.maths.suppression import (
    NMSOptions,
    cluster_nms,
    greedy_keep,
    pair_measure,
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


def greedy_one_by_one(measure, threshold):
    keep = []
    for index in range(len(measure)):
        if all(measure[better, index] <= threshold for better in keep):
            keep.append(index)
    return keep


@pytest.mark.parametrize('kind', ['iou', 'iol'])
@pytest.mark.parametrize('distance', [False, True])
def test_greedy_equals_the_rule_taken_one_by_one(kind, distance):
    for seed in range(20):
        measure = pair_measure(random_boxes(60, seed), None, kind, distance)
        kept = greedy_keep(measure, 0.3).nonzero().squeeze(1).tolist()
        assert kept == greedy_one_by_one(measure, 0.3)
        assert 0 < len(kept) < 60


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
    measure = pair_measure(CHAIN, None, 'iou', True)
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


def test_soft_of_nothing():
    left = soft_nms(CHAIN[:0], SCORES[:0], torch.zeros(0, 0), 0.5, 0.1)
    assert len(left.indices) == len(left.boxes) == len(left.scores) == 0


def test_cluster_weighted_merges_duplicates():
    # Box 0 survives and takes box 1 in, with weight 0.8 * 60/140 against its own 0.9; box 2 survives alone.
    measure = pair_measure(CHAIN, None, 'iou', False)
    left = cluster_nms(CHAIN, SCORES, measure, 0.4, 'weighted')
    weight = 0.8 * 60 / 140
    merged = (0.9 * CHAIN[0] + weight * CHAIN[1]) / (0.9 + weight)
    torch.testing.assert_close(left.boxes, torch.stack((merged, CHAIN[2])))
    torch.testing.assert_close(left.scores, SCORES[[0, 2]])


def test_cluster_votes_are_the_mean_of_the_best_scores():
    # Box 0 has box 1 behind it and box 2 nothing: with two votes (0.9 + 0.8) / 2 and 0.7 / 2, the boxes as before.
    measure = pair_measure(CHAIN, None, 'iou', False)
    best = cluster_nms(CHAIN, SCORES, measure, 0.4, 'weighted')
    for votes, expected in ((2, [0.85, 0.35]), (3, [1.7 / 3, 0.7 / 3]), (9, [1.7 / 9, 0.7 / 9])):
        left = cluster_nms(CHAIN, SCORES, measure, 0.4, 'weighted', votes)
        torch.testing.assert_close(left.scores, torch.tensor(expected))
        torch.testing.assert_close(left.boxes, best.boxes)


def test_votes_sort_again():
    # The lonely box 0 falls behind the confirmed box 1.
    boxes = torch.tensor([[50., 50., 60., 60.], [0., 0., 10., 10.], [1., 0., 11., 10.]])
    left = suppress(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.long),
                    NMSOptions('cluster', 0.5, class_agnostic=False, mode='weighted', votes=2))
    assert left.indices.tolist() == [1, 0]
    torch.testing.assert_close(left.scores, torch.tensor([0.75, 0.45]))


def test_votes_of_nothing():
    left = cluster_nms(CHAIN[:0], SCORES[:0], torch.zeros(0, 0), 0.5, 'weighted', 3)
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
def test_weighted_boxes_fusion_equals_the_paper_taken_step_by_step(models, classes):
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
    apart = weighted_boxes_fusion(CHAIN, SCORES, None, 0.3)
    torch.testing.assert_close(apart.boxes[0], (0.9 * CHAIN[0] + 0.8 * CHAIN[1]) / 1.7)
    assert apart.indices.tolist() == [0, 2]
    one = weighted_boxes_fusion(CHAIN, SCORES, None, 0.2, models=5)  # box 2 alone would not reach box 0
    torch.testing.assert_close(one.boxes, (SCORES @ CHAIN / SCORES.sum())[None])
    torch.testing.assert_close(one.scores, torch.tensor([2.4 / 5]))
    assert suppress(CHAIN, SCORES, LABELS, NMSOptions('wbf', 0.3, class_agnostic=False)).indices.tolist() == [0, 1, 2]
    assert suppress(CHAIN, SCORES, LABELS, NMSOptions('wbf', 0.3)).indices.tolist() == [0, 2]


def test_fusion_of_nothing():
    left = suppress(CHAIN[:0], SCORES[:0], LABELS[:0], NMSOptions('wbf'))
    assert len(left.indices) == len(left.boxes) == len(left.scores) == 0


def test_cluster_score_penalty_keeps_all_and_decays():
    # Box 1 is penalised by box 0; box 2 only by box 0, since box 1 does not survive.
    measure = pair_measure(CHAIN, None, 'iou', False)
    left = cluster_nms(CHAIN, SCORES, measure, 0.4, 'score_penalty')
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
