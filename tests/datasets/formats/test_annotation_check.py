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
from mgdet_plugin.datasets import Inspector, check_datasets, iter_dataset_cfgs
from mgdet_plugin.datasets.formats import coco_files

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
        sound = content['annotations'][3]
        content['annotations'] += [dict(sound, id=4 + i, bbox=[9, 9, 20, 20], area=400) for i in range(sound_boxes)]

    sound_boxes = 4
    line = check_datasets(make_coco(edit), splits=['val'])[0].lines()[0]
    assert line.startswith('val: 4 of 8 boxes skipped: 1 outside of its image, 1 zero or negative size, 1 not a number')
    assert '1 area not above zero (first: image 1.jpg, [70, 5, 5, 5])' in line
    sound_boxes = 3
    with pytest.raises(UserError, match=r'val: 4 of 7 boxes skipped: .*too many to be meant'):
        check_datasets(make_coco(edit), splits=['val'])


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


def test_classes_without_a_box_are_told(make_coco: MakeSet) -> None:
    reports = check_datasets(make_coco(lambda content: content['annotations'].pop(3)))
    assert reports[0].lines() == ['train: no box of 1 of 3 classes: cow']


@pytest.mark.parametrize(('edit', 'message'), [
    (lambda c: c.pop('images'), "no list 'images' .*it has: annotations, categories"),
    (lambda c: c['annotations'][2].pop('area'), r'annotations\[2\] has no area'),
    (lambda c: c['images'][1].pop('width'), r'images\[1\] has no width'),
    (set_annotation(1, category_id=7), 'annotation 1 names category_id 7'),
    (set_annotation(1, image_id=9), 'annotation 1 names image_id 9'),
    (set_annotation(1, category_id=True), 'annotation 1 names category_id True'),
    (set_annotation(1, bbox=[1, 2, 3]), r'annotation 1 has bbox \[1, 2, 3\]; four numbers'),
    (set_annotation(1, bbox=[1, 2, 3, 'x']), 'annotation 1 has bbox'),
    (set_annotation(1, area=None), 'annotation 1 has area None'),
    (set_annotation(1, id=0), "ids in 'annotations' are not unique"),
    (set_annotation(1, id=[0]), r'id \[.*; a number or a text is needed'),
    (set_annotation(1, category_id=[1]), r'annotation 1 names category_id \[1\]'),
    (lambda c: c['images'][1].update(width='64'), r"images\[1\] has width '64' and height 48"),
    (lambda c: c['images'][1].update(width=10 ** 400), r'images\[1\] has width 10{39} and height 48'),
    (lambda c: c['images'][1].update(file_name=None), r'images\[1\] has file_name None'),
    (lambda c: c['images'][1].update(file_name='\ud800.jpg'), r"has file_name '\\ud800.jpg'"),
    (lambda c: c['images'][1].update(file_name='a' * 5000), r"has file_name 'a+\.\.\.a+';"),
    (set_annotation(1, bbox=[1, 2, 3, 10 ** 400]), r'annotation 1 has bbox \[1, 2, 3, 10*;'),
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
    ('cat', r"train: metainfo.classes is the text 'cat', .*write \('cat',\) for one class"),
    ((), 'train: 0 names, from 1'),
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
    for text in ('1\n2\n', '{}'):
        (tmp_path / 'elsewhere.json').write_text(text)
        with pytest.raises(UserError, match=r"CocoMetric needs a COCO file, and .*elsewhere.json is not .*'instances'"):
            check_datasets(cfg)
    content = json.loads((tmp_path / 'ann.json').read_text())
    (tmp_path / 'elsewhere.json').write_text(json.dumps(content))
    check_datasets(cfg)  # another file of the same images
    content['images'][0]['file_name'] = '7.jpg'
    (tmp_path / 'elsewhere.json').write_text(json.dumps(content))
    with pytest.raises(UserError, match=r'with 2 images, the dataset shows 2 \(.*ann.json\), 1 of them the same by id'):
        check_datasets(cfg)


def test_a_metric_that_measures_on_more_than_is_shown_is_said(make_coco: MakeSet) -> None:
    cfg = make_coco()
    cfg.val_dataloader.dataset.indices = 1
    said = [line for report in check_datasets(cfg) for line in report.lines()]
    assert sum('val_evaluator measures on all 2 images' in line for line in said) == 1
    cfg.val_evaluator.pop('ann_file')
    cfg.val_dataloader.dataset.pipeline.append(dict(type='PackDetInputs', meta_keys=('img_id', 'instances')))
    assert not any('measures on all' in line for report in check_datasets(cfg) for line in report.lines())


def test_metric_without_a_file_needs_the_datasets_truth(make_coco: MakeSet) -> None:
    cfg = make_coco()
    cfg.val_evaluator.pop('ann_file')
    with pytest.raises(UserError, match=r"val_evaluator: CocoMetric has no ann_file, .*'instances' in meta_keys"):
        check_datasets(cfg)
    cfg.val_dataloader.dataset.pipeline.append(dict(type='PackDetInputs', meta_keys=('img_id', 'instances')))
    check_datasets(cfg)


def test_voc_metric_needs_loaded_boxes_in_any_format(make_coco: MakeSet) -> None:
    cfg = make_coco()
    cfg.val_evaluator = [dict(type='VOCMetric')]
    check_datasets(cfg)
    cfg.val_dataloader.dataset.pipeline.pop(1)
    with pytest.raises(UserError, match=r'VOCMetric takes the truth from the pipeline, .*has no LoadAnnotations'):
        check_datasets(cfg)


def test_joined_validation_sets_need_ids_of_their_own(make_coco: MakeSet) -> None:
    cfg = make_coco()
    leaf = cfg.val_dataloader.dataset
    cfg.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[leaf, leaf])
    with pytest.raises(UserError, match='2 image ids are in several of the 2 datasets'):
        check_datasets(cfg)
    cfg.val_evaluator = dict(type='VOCMetric')  # which does not ask for ids
    check_datasets(cfg)


def test_a_further_set_of_other_classes_names_the_way_out(make_coco: MakeSet) -> None:
    cfg = make_coco()
    further = Config(dict(model=dict(bbox_head=dict(num_classes=1)), old_dataloader=cfg.val_dataloader))
    with pytest.raises(UserError, match=r"others holds 'old', .*3 classes .*set val_cfg=dict\(others=None\)"):
        check_datasets(further, ['old'])


def test_an_epoch_of_one_step_is_said(make_coco: MakeSet) -> None:
    cfg = make_coco()
    leaf = cfg.train_dataloader.dataset
    cfg.train_dataloader.batch_size = 2
    assert check_datasets(cfg)[0].lines()[0].startswith('train: 2 images make 1 step an epoch at batch 2')
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=leaf)
    assert check_datasets(cfg)[0].lines() == []
    cfg.train_dataloader.dataset = dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=leaf)
    assert check_datasets(cfg)[0].lines() == []


@pytest.mark.parametrize(('split', 'batch', 'message'), [
    ('train', 8, '2 images make no step at batch 8 with train_dataloader.drop_last=True'),
    ('val', 8, 'val_dataloader.drop_last leaves the images of the last batch unmeasured; it must be False, got True')])
def test_images_that_no_batch_takes_are_refused(make_coco: MakeSet, split: str, batch: int, message: str) -> None:
    cfg = make_coco()
    cfg[f'{split}_dataloader'].update(batch_size=batch, drop_last=True)
    with pytest.raises(UserError, match=message):
        check_datasets(cfg, [split])


def test_images_of_none_are_refused(make_coco: MakeSet) -> None:
    cfg = make_coco(lambda content: (content['images'].clear(), content['annotations'].clear()))
    with pytest.raises(UserError, match=r'val: .*ann.json names no image'):
        check_datasets(cfg, ['val'])


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
    monkeypatch.setattr(coco_files.json, 'loads', lambda data, **_: read.append('x') or json.JSONDecoder().decode(
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


@pytest.mark.parametrize('leaf', [dict(type='YoloDataset', data_root='x'), dict(type=dict, ann_file='x'), {}])
def test_other_datasets_are_left_to_mmdet(leaf: dict[str, Any]) -> None:
    cfg = Config(dict(train_dataloader=dict(batch_size=64, dataset=dict(type='RepeatDataset', times=2, dataset=leaf))))
    line, = check_datasets(cfg, inspector=Inspector())[0].lines()
    assert line.startswith('train: annotations not checked (type ')


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


@pytest.mark.parametrize(('fields', 'message'), [
    (dict(data_prefix=dict(img='JPEGImages/')), r"ann_subdir Annotations .*set data_prefix=dict\(sub_data_root=''\)"),
    (dict(ann_subdir='annots'), "ann_subdir .*/annots is not there .*set ann_subdir to your folder's name"),
    (dict(img_subdir='images'), "img_subdir .*/images is not there .*set img_subdir to your folder's name"),
    (dict(data_prefix=dict(sub_data_root='VOC2007')), 'ann_subdir .*VOC2007/Annotations is not there'),
    (dict(img_subdirs='images'), "train: dataset .*cannot be built: .*unexpected keyword argument 'img_subdirs'"),
])
def test_voc_folders_by_the_rules_of_the_dataset(make_voc: MakeSet, fields: dict[str, Any], message: str) -> None:
    cfg = make_voc(('cat', (1, 1, 9, 9)))
    for key, value in fields.items():
        cfg.train_dataloader.dataset[key] = value
    with pytest.raises(UserError, match=message):
        check_datasets(cfg)


def test_the_set_itself_must_be_given_as_mmdet_takes_it(make_coco: MakeSet) -> None:
    for key, value, message in (
            ('data_prefix', 'img', "data_prefix is 'img'; a dict"), ('ann_file', None, 'ann_file None is'),
            ('filter_cfg', 'x', "filter_cfg is 'x'; a dict"), ('metainfo', ['x'], 'cannot be built')):
        cfg = make_coco()
        cfg.train_dataloader.dataset[key] = value
        with pytest.raises(UserError, match=f'train: .*{message}'):
            check_datasets(cfg)
    cfg = make_coco()
    cfg.val_evaluator = 'CocoMetric'
    with pytest.raises(UserError, match='val_evaluator holds'):
        check_datasets(cfg)


def test_voc_in_any_folders(make_voc: MakeSet, tmp_path: Path) -> None:
    cfg = make_voc(('cat', (1, 1, 9, 9)))
    (tmp_path / 'Annotations').rename(tmp_path / 'annots')
    (tmp_path / 'JPEGImages').rename(tmp_path / 'pictures')
    cfg.train_dataloader.dataset.update(ann_subdir='annots', img_subdir='pictures')
    assert check_datasets(cfg)[0].boxes == 1


@pytest.mark.parametrize(('text', 'message'), [
    ('a 1\n', r"line 1 of .*list.txt is 'a 1', and mmdet takes a whole line as .*awk"),
    ('a\n\n', r"line 2 of .*is '', and mmdet"),
    ('a \n', r"line 1 of .*is 'a ', and mmdet"),
    ('b\n', r"b.xml is missing or no file; line 1 of .*list.txt is 'b'$"),
    ('', 'list.txt names no image'),
])
def test_voc_lists(make_voc: MakeSet, tmp_path: Path, text: str, message: str) -> None:
    cfg = make_voc(('cat', (1, 1, 9, 9)))
    (tmp_path / 'list.txt').write_text(text)
    with pytest.raises(UserError, match=message):
        check_datasets(cfg)


@pytest.mark.parametrize(('change', 'message'), [
    (lambda root: (root / 'Annotations/a.xml').write_text('<annotation><object>'), 'a.xml is not valid XML'),
    (lambda root: (root / 'Annotations/a.xml').unlink(), 'VOC annotation .*a.xml is missing'),
    (lambda root: (root / 'JPEGImages/a.jpg').unlink(), r'1 of 1 images named in .*\(first: a.jpg\)'),
    (lambda root: (root / 'JPEGImages').rename(root / 'images'), 'img_subdir .*JPEGImages is not there'),
    (lambda root: (root / 'JPEGImages/a.jpg').rename(root / 'JPEGImages/a.png'), r'\(first: a.jpg; a.png is there\)'),
    (lambda root: (root / 'list.txt').write_bytes(b'\xff\xfe'), 'list.txt is no list of image names'),
    (lambda root: (root / 'Annotations/a.xml').write_text('<?xml version="1.0" encoding="x"?><a/>'), 'not valid XML'),
    (lambda root: (root / 'list.txt').unlink(), 'ann_file .*list.txt is not there'),
    (lambda root: (root / 'Annotations/a.xml').write_text('<a><object/></a>'), 'object 0 has no name'),
])
def test_damaged_voc(make_voc: MakeSet, tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    cfg = make_voc(('cat', (1, 1, 9, 9)))
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        check_datasets(cfg)
