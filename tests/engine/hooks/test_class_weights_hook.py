"""Class counts of training sets as mmdet builds them."""
from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import DATASETS
from mmengine.logging import MMLogger

from mgdet_plugin.engine import ClassWeightsHook
from mgdet_plugin.models import MultiGridLoss
from tests.support.small_run import CLASSES, make_dataset


@pytest.mark.parametrize('parts', [0, 1, 2])
def test_counts_of_a_set_and_of_a_concatenation(tmp_path, parts):
    folder = make_dataset(tmp_path / 'data')
    leaf = dict(type='CocoDataset', data_root=f'{folder}/', ann_file='all.json', data_prefix=dict(img='images/'),
                metainfo=dict(classes=CLASSES), pipeline=[], _scope_='mmdet')
    whole = DATASETS.build(dict(type='ConcatDataset', datasets=[leaf] * parts, _scope_='mmdet') if parts else leaf)
    loss = MultiGridLoss(class_weights='balanced')
    runner = SimpleNamespace(model=torch.nn.Sequential(loss), train_dataloader=SimpleNamespace(dataset=whole),
                             logger=MMLogger.get_instance('test'))
    ClassWeightsHook().before_train(runner)
    counts = [0, 0, 0]
    for info in DATASETS.build(leaf):
        for each in info['instances']:
            counts[each['bbox_label']] += max(1, parts)
    expected = MultiGridLoss(class_weights='balanced').set_class_counts(counts)
    assert sum(counts) == 16 * max(1, parts) and torch.equal(loss.class_weights, expected)
