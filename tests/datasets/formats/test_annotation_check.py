"""The preflight: each fault is one line naming the value and the way out; degenerate boxes are counted."""
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmdet.registry import DATASETS
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import check_datasets, iter_dataset_cfgs
from mgdet_plugin.datasets.formats import annotation_files

COCO_CONFIG = Path(__file__).parents[3] / 'configs/_base_/datasets/coco_letterbox.py'
MakeSet = Callable[..., Config]


def set_annotation(index: int, **values: object) -> Callable[[dict[str, Any]], object]:
    """An edit that changes one annotation."""
    return lambda content: content['annotations'][index].update(values)


def test_sound_coco(make_coco: MakeSet) -> None:
    reports = check_datasets(make_coco())
    assert [(report.name, report.images, report.boxes) for report in reports] == [('train', 2, 4), ('val', 2, 4)]
    assert [report.lines() for report in reports] == [[], []]


def test_degenerate_coco_boxes_are_counted_in_one_line(make_coco: MakeSet) -> None:
    reports = check_datasets(make_coco(set_annotation(1, bbox=[40, 5, 0, 10])))
    assert reports[0].lines() == [
        'train: 1 of 4 boxes skipped: zero or negative size (first: image 1.jpg, [40, 5, 0, 10])']


def test_several_reasons_are_told_apart(make_coco: MakeSet) -> None:
    def edit(content: dict[str, Any]) -> None:
        boxes = ([70, 5, 5, 5], [40, 5, -3, 10], [5, 5, math.nan, 5])
        for annotation, box in zip(content['annotations'], boxes):
            annotation['bbox'] = box
        content['annotations'][3]['area'] = 0

    line = check_datasets(make_coco(edit), splits=['val'])[0].lines()[0]
    assert line.startswith('val: 4 of 4 boxes skipped: 1 outside of its image, 1 zero or negative size, 1 not a number')
    assert '1 area not above zero (first: image 1.jpg, [70, 5, 5, 5])' in line


def test_count_equals_what_mmdet_skips(make_coco: MakeSet) -> None:
    cfg = make_coco(set_annotation(3, bbox=[5, 5, 0.5, 9]))
    report = check_datasets(cfg)[0]
    dataset = DATASETS.build(dict(cfg.train_dataloader.dataset, pipeline=[]))
    kept = sum(len(dataset.get_data_info(i)['instances']) for i in range(len(dataset)))
    assert (report.boxes, report.skipped.total(), kept) == (4, 1, 3)


def test_boxes_of_other_classes_are_told(make_coco: MakeSet) -> None:
    report = check_datasets(make_coco(classes=('cat', 'cow')))[0]
    assert (report.boxes, report.lines()) == (
        2, ['train: 2 boxes left out, their classes are not in metainfo: dog'])


@pytest.mark.parametrize(('edit', 'message'), [
    (lambda c: c.pop('images'), "no list 'images' .*it has: annotations, categories"),
    (lambda c: c['annotations'][2].pop('area'), r'annotations\[2\] has no area'),
    (lambda c: c['images'][1].pop('width'), r'images\[1\] has no width'),
    (set_annotation(1, category_id=7), 'annotation 1 names category_id 7'),
    (set_annotation(1, image_id=9), 'annotation 1 names image_id 9'),
    (set_annotation(1, bbox=[1, 2, 3]), r'annotation 1 has bbox \[1, 2, 3\]; four numbers'),
    (set_annotation(1, bbox=[1, 2, 3, 'x']), 'annotation 1 has bbox'),
    (set_annotation(1, area=None), 'annotation 1 has area None'),
    (set_annotation(1, id=0), "ids in 'annotations' are not unique"),
    (set_annotation(1, id=[0]), 'ids must be numbers or texts'),
    (lambda c: c['images'][1].update(id=1), "ids in 'images' are not unique"),
    (lambda c: c['images'][1].update(file_name='3.jpg'), r'1 of 2 images named in .*\(first: 3.jpg\)'),
    (lambda c: c['categories'].append({'id': 4, 'name': 'dog'}), 'each name once'),
    (lambda c: c['annotations'].clear(), 'no usable box'),
])
def test_wrong_coco(make_coco: MakeSet, edit: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_datasets(make_coco(edit))


def test_evaluation_needs_iscrowd_training_does_not(make_coco: MakeSet) -> None:
    cfg = make_coco(lambda content: content['annotations'][1].pop('iscrowd'))
    assert check_datasets(cfg, splits=['train'])[0].boxes == 4
    with pytest.raises(UserError, match=r'annotations\[1\] has no iscrowd'):
        check_datasets(cfg, splits=['val'])


@pytest.mark.parametrize(('classes', 'message'), [
    (('cat', 'Dog'), r'no category Dog \(it has: cat, dog, cow\)'),
    (('dog', 'cat'), r'in the order of the file \(cat, dog\)'),
    ('cat', r"the text 'cat' .*with a comma: \('cat',\)"),
    ((), 'no classes'),
])
def test_wrong_classes(make_coco: MakeSet, classes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_datasets(make_coco(classes=classes))


def test_head_with_another_class_count(make_coco: MakeSet) -> None:
    cfg = make_coco()
    cfg.model = dict(bbox_head=dict(num_classes=80))
    with pytest.raises(UserError, match=r'3 classes \(cat, dog, cow\), model.bbox_head.num_classes is 80'):
        check_datasets(cfg)


@pytest.mark.parametrize('text', ['{"images": [', '[1]', ''])
def test_not_a_coco_file(make_coco: MakeSet, tmp_path: Path, text: str) -> None:
    cfg = make_coco()
    (tmp_path / 'ann.json').write_text(text)
    with pytest.raises(UserError, match=r'ann.json is not (valid JSON|a COCO file)'):
        check_datasets(cfg)


def test_default_config_without_coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        check_datasets(Config.fromfile(COCO_CONFIG))
    for part in ('data/coco/annotations/instances_train2017.json', 'data/coco/{annotations,train2017,val2017}',
                 'configs/mgdet_model5_stage1.py --demo'):
        assert part in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(('key', 'value', 'message'), [
    ('ann_file', 'other.json', r'train: ann_file .*other.json is not there \(a file'),
    ('data_root', '/nowhere', 'ann_file /nowhere/ann.json is not there'),
    ('data_prefix', dict(img='pictures'), r'data_prefix .*pictures is not there \(a folder'),
    ('data_prefix', dict(img_path='img'), r'needs data_prefix=dict\(img=FOLDER\)'),
])
def test_missing_coco_parts(make_coco: MakeSet, key: str, value: object, message: str) -> None:
    cfg = make_coco()
    cfg.train_dataloader.dataset[key] = value
    with pytest.raises(UserError, match=message):
        check_datasets(cfg)


def test_evaluator_must_read_the_datasets_file(make_coco: MakeSet, tmp_path: Path) -> None:
    cfg = make_coco()
    cfg.val_evaluator.ann_file = str(tmp_path / 'elsewhere.json')
    with pytest.raises(UserError, match=r'val_evaluator: ann_file .*elsewhere.json is not there'):
        check_datasets(cfg)
    (tmp_path / 'elsewhere.json').write_text('{}')
    with pytest.raises(UserError, match=r'elsewhere.json, the val dataset shows .*ann.json'):
        check_datasets(cfg)


def test_wrappers_are_opened(make_coco: MakeSet) -> None:
    cfg = make_coco()
    leaf = cfg.train_dataloader.dataset
    wrapped = dict(type='MultiImageMixDataset', pipeline=[], dataset=dict(
        type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[leaf, leaf])))
    assert [each['ann_file'] for each in iter_dataset_cfgs(wrapped)] == ['ann.json', 'ann.json']
    cfg.train_dataloader.dataset = wrapped
    assert [report.name for report in check_datasets(cfg)] == ['train[0]', 'train[1]', 'val']


def test_a_file_named_by_val_and_test_is_read_once(make_coco: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = make_coco()
    cfg.test_dataloader = cfg.val_dataloader
    read: list[str] = []
    monkeypatch.setattr(annotation_files.json, 'loads', lambda data: read.append('x') or json.JSONDecoder().decode(
        data.decode()))
    assert len(check_datasets(cfg, splits=['val', 'test'])) == 2
    assert len(read) == 1


def test_unknown_datasets_are_named_not_read(make_coco: MakeSet) -> None:
    cfg = make_coco()
    cfg.train_dataloader.dataset = dict(type='LVISV1Dataset', ann_file='x.json')
    cfg.val_dataloader.dataset.data_root = 's3://bucket/'
    cfg.pop('val_evaluator')
    assert [report.lines() for report in check_datasets(cfg, splits=['val'])] == [
        ['val: annotations not checked (not on the local disk)']]
    with pytest.raises(UserError, match=r'train: ann_file x.json is not there'):
        check_datasets(cfg, splits=['train'])


def test_voc_counts_boxes(make_voc: MakeSet) -> None:
    cfg = make_voc(('cat', (11, 11, 31, 31)), ('dog', (20, 5, 20, 25)), ('cow', (1, 1, 9, 9)))
    assert check_datasets(cfg)[0].lines() == [
        'train: 1 of 2 boxes skipped: zero or negative size (first: image a.jpg, [20, 5, 20, 25])',
        'train: 1 boxes left out, their classes are not in metainfo: cow']


def test_voc_without_the_transform_is_refused(make_voc: MakeSet) -> None:
    cfg = make_voc(('cat', (11, 11, 31, 31)), ('dog', (20, 5, 20, 25)), drops=False)
    with pytest.raises(UserError, match=r"keeps 1 degenerate boxes .*dict\(type='DropDegenerateBoxes'\)"):
        check_datasets(cfg)


@pytest.mark.parametrize(('objects', 'size', 'message'), [
    ([('cat', ('nan', 1, 9, 9))], '64 48', "object 0 has xmin 'nan'"),
    ([('cat', ('', 1, 9, 9))], '64 48', "object 0 has xmin ''"),
    ([('cow', (1, 1, 9, 9))], '64 48', r'no object is one of the classes cat, dog \(the files name: cow\)'),
    ([('cat', (1, 1, 9, 9))], '0 48', "size must be whole pixels above zero, got '0' x '48'"),
])
def test_wrong_voc(make_voc: MakeSet, objects: list[Any], size: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_datasets(make_voc(*objects, size=size))


@pytest.mark.parametrize(('change', 'message'), [
    (lambda root: (root / 'Annotations/a.xml').write_text('<annotation><object>'), 'a.xml is not valid XML'),
    (lambda root: (root / 'Annotations/a.xml').unlink(), 'VOC annotation .*a.xml is missing'),
    (lambda root: (root / 'JPEGImages/a.jpg').unlink(), r'1 of 1 images named in .*\(first: a.jpg\)'),
    (lambda root: (root / 'JPEGImages').rename(root / 'images'), 'img_subdir .*JPEGImages is not there'),
    (lambda root: (root / 'list.txt').unlink(), 'ann_file .*list.txt is not there'),
    (lambda root: (root / 'Annotations/a.xml').write_text('<a><object/></a>'), 'object 0 has no name'),
])
def test_damaged_voc(make_voc: MakeSet, tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    cfg = make_voc(('cat', (1, 1, 9, 9)))
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        check_datasets(cfg)
