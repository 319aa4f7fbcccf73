"""Figures of a validation in a person's words."""
import pytest

from mgdet_plugin.common.metric_names import figures_in_words

NEW = {'coco/bbox_mAP': 0.4012, 'coco/bbox_mAP_50': 0.8, 'coco/bbox_mAP_s': 0.2, 'val/loss': 71.46, 'val/loss_obj': 9.1}
OLD = {'old/loss': 65.1, 'old/loss_obj': 3.0, 'old/coco/bbox_mAP': 0.6, 'old/coco/bbox_mAP_50': 0.9}


@pytest.mark.parametrize(('metrics', 'words'), [
    ({**NEW, **OLD}, 'AP 0.401 (AP50 0.800), loss 71.46; old AP 0.600 (AP50 0.900), loss 65.1'),
    ({'pascal_voc/mAP': 0.5, 'pascal_voc/AP50': 0.5}, 'AP 0.500 (AP50 0.500)'),
    ({'coco/bbox_mAP': 0.4, 'lvis/bbox_AP': 0.3}, 'coco AP 0.400, lvis AP 0.300'),
    ({'val/loss': 7.0, 'old/loss': 8.0, 'old/coco/bbox_mAP': 0.6}, 'loss 7; old AP 0.600, loss 8'),
    ({'table/value': 0.1}, 'table/value 0.1'), ({}, ''), ({'coco/bbox_mAP': float('nan')}, 'AP nan')])
def test_mean_ap_at_a_half_and_loss_of_each_domain(metrics, words):
    assert figures_in_words(metrics) == words
