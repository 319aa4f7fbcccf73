"""Data come in as plain records, whatever folder or config they are named by."""
from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from PIL import Image

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.name_lists import text_names
from mgdet_plugin.datasets.formats.coco_files import load_coco
from mgdet_plugin.datasets.sources.annotated import Box, Hints, Picture
from mgdet_plugin.datasets.sources.find import read_annotated
from mgdet_plugin.prepare.coco_writing import coco_content
from mgdet_plugin.prepare.faults.box_faults import box_findings
from mgdet_plugin.prepare.faults.data_source import config_of, data_of, gather, is_data
from mgdet_plugin.prepare.faults.findings import NOTE
from mgdet_plugin.prepare.faults.picture_records import PictureBox, PictureSet
from tests.conftest import ROOT
from tests.support.annotated_sets import (
    CLASSES,
    picture,
    write_csv,
    write_lines,
    write_names,
    write_voc,
    write_yolo,
)
from tests.support.faulty_set import FaultySet, make_clean_set

LIKE = 'mgdet_nano_stage1'
XML = ('<annotation><size><width>40</width><height>30</height><depth>3</depth></size><object><name>{}</name>'
       '<difficult>{}</difficult>'
       '<bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>21</xmax><ymax>12</ymax></bndbox></object></annotation>')


@pytest.fixture
def clean(tmp_path: Path) -> FaultySet:
    """A small set of COCO files."""
    return make_clean_set(tmp_path / 'data', 2)


def read(source: Path, **options: Any) -> PictureSet:
    """Data, held against the small config."""
    return data_of(source, config_of(LIKE), **options)


def as_written(clean: FaultySet) -> Path:
    """train.json and val.json beside the folders of pictures."""
    return clean.write()


def in_annotations(clean: FaultySet) -> Path:
    """annotations/train.json, pictures in images/."""
    folder = clean.write()
    for name in ('annotations', 'images'):
        (folder / name).mkdir()
    for split in clean.splits:
        (folder / f'{split}.json').rename(folder / 'annotations' / f'instances_{split}2017.json')
        (folder / split).rename(folder / 'images' / split)
    return folder


def by_a_service(clean: FaultySet) -> Path:
    """A folder a split with the pictures and a file that is called alike in all, val being 'valid'."""
    for content in clean.splits.values():
        for image in content['images']:
            image['file_name'] = Path(image['file_name']).name
    folder = clean.write()
    (folder / 'val').rename(folder / 'valid')
    for split, name in (('train', 'train'), ('val', 'valid')):
        (folder / f'{split}.json').rename(folder / name / '_annotations.coco.json')
    return folder


def one_file(clean: FaultySet) -> Path:
    """The training file alone."""
    return clean.write() / 'train.json'


@pytest.mark.parametrize('lay_out', [as_written, in_annotations, by_a_service, one_file])
def test_layouts_of_coco_files(clean: FaultySet, lay_out: Callable[[FaultySet], Path]) -> None:
    source = lay_out(clean)
    data = read(source)
    assert data.classes == ('disc', 'square') and not data.refused and data.form.startswith('COCO (')
    assert data.splits == (('train', ) if lay_out is one_file else ('train', 'val'))
    assert len(data.of('train')) == 2 and all(Path(each.path).is_file() for each in data.records)
    assert data.records[0].boxes == (PictureBox((8, 30, 22, 52), 0), PictureBox((60, 30, 74, 52), 1))


@pytest.mark.parametrize('form', ['voc', 'yolo', 'lines', 'csv'])
def test_every_format_that_init_reads(tmp_path: Path, form: str) -> None:
    """All boxes are there, one without a size, too; sizes are those of the files where the annotations tell none."""
    pictures = [Picture(picture(tmp_path / 'set' / f'{name}.png', shade=shade), boxes, split)
                for shade, (name, boxes, split) in enumerate((
                    ('a', (Box('ant', (4, 6, 20, 10)), Box('sea cow', (30, 8, 0, 9))), None), ('b', (), None)))]
    write = dict(voc=write_voc, yolo=write_yolo, lines=lambda folder, each: write_lines(folder / 'all.txt', each),
                 csv=lambda folder, each: write_csv(folder / 'all.csv', each))
    write[form](tmp_path / 'set', pictures)
    names = write_names(tmp_path / 'names.txt')
    data = read(tmp_path / 'set', hints=Hints(text_names(names, 'names')))
    assert data.classes == CLASSES and data.splits == ('train', ) and not data.refused and not data.missing
    assert data.notes[0] == 'no split is given: all of it is looked at as train'
    assert [record.size for record in data.records] == [(64, 48), (64, 48)]
    assert [box.corners for box in data.records[0].boxes] == [pytest.approx((4, 6, 24, 16)),
                                                              pytest.approx((30, 8, 30, 17))]
    assert [box.label for box in data.records[0].boxes] == [0, 2]
    assert [len(record.sound) for record in data.records] == [1, 0]


def test_a_folder_without_annotations_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'notes.json').write_text('[1]')
    with pytest.raises(UserError, match='holds no annotations that are known'):
        read(tmp_path)


def test_data_and_configs_are_told_apart(clean: FaultySet, tmp_path: Path) -> None:
    folder = clean.write()
    (tmp_path / 'cfg.json').write_text('{"model": {"type": "x"}}')
    (tmp_path / 'table.csv').write_text('no table')
    assert [is_data(each) for each in (folder, folder / 'train.json', tmp_path / 'table.csv')] == [True] * 3
    assert not any(map(is_data, (tmp_path / 'cfg.json', ROOT / 'configs/mgdet_nano_stage1.py', 'mgdet_nano_stage1')))


def test_pictures_that_are_not_there_are_named(clean: FaultySet) -> None:
    clean.path('train', 1).unlink()
    data = read(clean.write())
    assert data.missing == ('train/1.png', ) and len(data.records) == 3


def test_boxes_that_mmdet_drops_are_there(clean: FaultySet) -> None:
    """No size, a crowd; but not what COCO says is to be ignored, or is of a class that is not listed."""
    clean.box([5, 5, 0, 0])
    clean.box([5, 5, 9, 9])
    clean.splits['train']['annotations'][-1]['iscrowd'] = 1
    clean.box([5, 5, 9, 9])
    clean.splits['train']['annotations'][-1]['ignore'] = 1
    boxes = read(clean.write()).records[0].boxes
    assert boxes[2:] == (PictureBox((5, 5, 5, 5), 0), PictureBox((5, 5, 14, 14), 0, True))


def test_what_cannot_be_read_at_all_is_refused(clean: FaultySet) -> None:
    clean.splits['train']['annotations'][0]['category_id'] = 77
    with pytest.raises(UserError, match='names category_id 77'):
        read(clean.write())


def test_a_voc_set_of_a_config(tmp_path: Path) -> None:
    """By mmdet's own reader; val and test are one set, and ``difficult`` is to be ignored."""
    for number, (name, difficult, left) in enumerate((('cat', 0, 1), ('cat', 1, 1), ('cat', 0, 21))):
        Image.new('RGB', (40, 30), (number, 0, 0)).save(tmp_path / f'{number}.jpg')
        (tmp_path / f'{number}.xml').write_text(XML.format(name, difficult, left))
    (tmp_path / 'train.txt').write_text('0\n2\n')
    (tmp_path / 'val.txt').write_text('1\n')
    cfg = Config.fromfile(ROOT / 'configs/mgdet_nano_stage1.py')
    voc = dict(type='VOCDataset', data_root=f'{tmp_path}/', data_prefix=dict(sub_data_root=''), ann_subdir='',
               img_subdir='', metainfo=dict(classes=('cat', )))
    cfg.train_dataloader.dataset = dict(voc, ann_file='train.txt', pipeline=cfg.train_dataloader.dataset.pipeline)
    for split in ('val', 'test'):
        cfg[f'{split}_dataloader'].dataset = dict(voc, ann_file='val.txt', pipeline=[], test_mode=True)
        cfg[f'{split}_evaluator'] = None
    cfg.model.bbox_head.num_classes = 1
    data = gather(cfg)
    assert data.splits == ('train', 'val and test') and len(data.records) == 3
    assert [record.boxes for record in data.records] == [
        (PictureBox((0, 1, 20, 11), 0), ), (PictureBox((20, 1, 20, 11), 0), ), (PictureBox((0, 1, 20, 11), 0, True), )]
    assert [len(record.sound) for record in data.records] == [1, 0, 0] and data.records[0].size == (40, 30)


def of_config(clean: FaultySet) -> Config:
    """A config of its sets, without test set and evaluators."""
    cfg, folder = config_of(LIKE), clean.write()
    for split in ('train', 'val'):
        names = [each['name'] for each in clean.splits[split]['categories']]
        cfg[f'{split}_dataloader'].dataset = dict(
            type='CocoDataset', ann_file=str(folder / f'{split}.json'), data_prefix=dict(img=str(folder)),
            metainfo=dict(classes=names), pipeline=[])
    cfg.test_dataloader, cfg.model.bbox_head.num_classes = None, 2
    for split in ('val', 'test'):
        cfg[f'{split}_evaluator'] = None
    return cfg


def test_a_set_with_other_classes_is_told(clean: FaultySet) -> None:
    clean.splits['val']['categories'].append(dict(id=2, name='ghost'))
    data = gather(of_config(clean))
    assert list(data.refused) == ['val'] and data.classes == ('disc', 'square', 'ghost')
    assert json.dumps(data.refused)


def test_a_number_too_large_for_a_float_is_a_line(clean: FaultySet) -> None:
    clean.splits['train']['annotations'][0]['bbox'][2] = 10**399
    with pytest.raises(UserError, match=r'train\.json: annotation 0 has bbox .*four numbers'):
        gather(of_config(clean))


def test_a_named_pipe_in_the_place_of_annotations_is_not_waited_for(clean: FaultySet,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = of_config(clean)
    (clean.folder / 'train.json').unlink()
    os.mkfifo(clean.folder / 'train.json')

    def waits(path: Path) -> bytes:
        raise AssertionError(f'{path} is opened')

    monkeypatch.setattr(Path, 'read_bytes', waits)
    with pytest.raises(UserError, match=r'train: ann_file .*train\.json is not there'):
        gather(cfg)
    with pytest.raises(UserError, match=r'train\.json is no file'):
        load_coco(clean.folder / 'train.json')


def test_an_object_that_pycocotools_never_counts_is_told(clean: FaultySet) -> None:
    """The one with the id 0, of what is measured on; data by themselves are numbered anew by init."""
    assert clean.splits['train']['annotations'][0]['id'] == clean.splits['val']['annotations'][0]['id'] == 0
    [finding] = [each for each in box_findings(gather(of_config(clean))) if each.kind == 'id_zero']
    assert finding.severity == NOTE and finding.what.startswith('1 of 8 boxes has the annotation id 0')
    assert [(each.split, Path(each.path).name) for each in finding.examples] == [('val', '0.png')]
    clean.splits['val']['annotations'][0]['id'] = 77
    for data in (gather(of_config(clean)), read(clean.folder)):
        assert 'id_zero' not in {each.kind for each in box_findings(data)}


def test_init_numbers_annotations_from_one(clean: FaultySet) -> None:
    annotated = read_annotated(clean.write())
    content = coco_content(annotated.pictures, annotated.classes, clean.folder)
    assert [each['id'] for each in content['annotations']] == list(range(1, 9))
