"""Annotation lines as a dataset of mmdet."""
import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import SampleIndex
from mgdet_plugin.datasets.sources.annotated import Box, Picture
from tests.support.annotated_sets import CLASSES, picture, write_lines

PIPELINE = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True), dict(type='DropDegenerateBoxes'),
    dict(type='Letterbox', scale=(64, 64)), dict(type='PackDetInputs')]


@pytest.fixture
def lines(tmp_path):
    boxes = ((Box('sea cow', (4, 6, 10, 12)), Box('ant', (20, 8, 30, 16)), Box('ant', (5, 5, 0, 9))), (),
             (Box('bee', (1.5, 2, 9, 8)),))
    pictures = [Picture(picture(tmp_path / f'my pictures/{index}.png', shade=index), each)
                for index, each in enumerate(boxes)]
    return write_lines(tmp_path / 'set.txt', pictures)


def built(lines, **fields):
    fields = dict(ann_file=str(lines), metainfo=dict(classes=CLASSES), pipeline=[]) | fields
    return DATASETS.build(dict(type='LinesDataset', _scope_='mmdet', **fields))


def test_boxes_and_labels_as_written_and_degenerate_ones_left_out(lines):
    dataset = built(lines)
    first, empty, third = map(dataset.get_data_info, range(3))
    assert [each['bbox'] for each in first['instances']] == [[4, 6, 14, 18], [20, 8, 50, 24]]
    assert dataset.get_cat_ids(0) == [2, 0] and (first['width'], first['height'], first['img_id']) == (64, 48, 0)
    assert empty['instances'] == [] and third['instances'][0]['bbox'] == [1.5, 2, 10.5, 10]
    assert len(built(lines, filter_cfg=dict(filter_empty_gt=True))) == 2
    assert len(built(lines, filter_cfg=dict(filter_empty_gt=True), test_mode=True)) == 3


def test_a_sample_goes_through_the_pipeline(lines):
    sample = built(lines, pipeline=PIPELINE)[0]['data_samples']
    np.testing.assert_allclose(sample.gt_instances.bboxes.numpy(), [[4, 14, 14, 26], [20, 16, 50, 32]])
    assert sample.gt_instances.labels.tolist() == [2, 0]


def test_the_folder_of_the_pictures_can_be_named(lines, tmp_path, monkeypatch):
    lines.write_text(lines.read_text().replace(f'{tmp_path}/my pictures/', ''))
    (tmp_path / 'elsewhere').mkdir()
    moved = lines.rename(tmp_path / 'elsewhere/set.txt')
    with pytest.raises(UserError, match=r'names 3 pictures that are not there .*data_prefix=dict\(img='):
        built(moved)
    dataset = built(moved, data_root=str(tmp_path), data_prefix=dict(img='my pictures'))
    assert dataset.get_data_info(2)['img_path'] == f'{tmp_path}/my pictures/2.png'


@pytest.mark.parametrize(('fields', 'cause'), [
    (dict(metainfo=dict()), 'metainfo names none'),
    (dict(ann_file='gone.txt'), r'ann_file gone\.txt is not there'),
    (dict(metainfo=dict(classes=('ant', ))), "the class '2' is none of the 1 classes"),
])
def test_a_refusal_is_one_line(lines, fields, cause):
    with pytest.raises(UserError, match=cause) as raised:
        built(lines, **fields)
    assert '\n' not in str(raised.value)


def test_grey_aspect_and_grid_mask_of_mmcv_and_ours_go_before_and_after_the_letterbox(lines):
    """As docs/from_tensorflow.md has them."""
    aspect = dict(type='RandomChoice', transforms=[[dict(type='Resize', scale_factor=(2.0, 1.0), keep_ratio=False)]])
    steps = [*PIPELINE[:3], dict(type='RandomGrayscale', prob=1.0, keep_channels=True), aspect, PIPELINE[3],
             dict(type='GridMask', prob=1.0), PIPELINE[4]]
    staged = DATASETS.build(dict(type='StagedDataset', _scope_='mmdet', dataset=dict(
        type='LinesDataset', ann_file=str(lines), metainfo=dict(classes=CLASSES), pipeline=steps),
        stage_probs=[dict(GridMask=0.0), dict(GridMask=1.0)]))
    plain, masked = (staged[SampleIndex(0, 0, stage, 7)] for stage in (0, 1))
    boxes = plain['data_samples'].gt_instances.bboxes
    np.testing.assert_allclose(boxes.numpy(), [[4, 23, 14, 29], [20, 24, 50, 32]])  # 128 x 48 in 64 x 64
    assert (plain['inputs'] != masked['inputs']).any() and torch.equal(
        boxes.tensor, masked['data_samples'].gt_instances.bboxes.tensor)
