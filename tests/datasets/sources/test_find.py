"""Layouts as people and services have them: what is found in each, and what is said where it cannot be told."""
from __future__ import annotations

from pathlib import Path

import pytest

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.sources.annotated import Annotated, Box, Hints, Picture, split_of
from mgdet_plugin.datasets.sources.find import FORMATS, read_annotated
from tests.support.annotated_sets import (
    CLASSES,
    picture,
    write_coco,
    write_csv,
    write_lines,
    write_names,
    write_voc,
    write_yolo,
)

BOXES = (Box('ant', (4, 6, 10, 12)), Box('sea cow', (20, 8, 30, 16)))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / 'set'


def shown(path: Path, boxes: tuple[Box, ...] = BOXES) -> Picture:
    return Picture(picture(path), boxes)


def by_split(found: Annotated) -> dict[str | None, int]:
    splits = [each.split for each in found.pictures]
    return {split: splits.count(split) for split in dict.fromkeys(splits)}


def boxes_of(found: Annotated) -> list[tuple[str, tuple[float, ...]]]:
    return [(box.name, box.bbox) for each in found.pictures for box in each.boxes]


WANTED = [(box.name, box.bbox) for box in BOXES]


def test_coco_one_file_a_split_folder_as_services_export_it(place):
    for split in ('train', 'valid', 'test'):
        write_coco(place / split, [shown(place / split / 'a.png')], '_annotations.coco.json', ('animals', *CLASSES))
    found = read_annotated(place)
    assert by_split(found) == dict(train=1, val=1, test=1)
    assert {each.path.parent.name for each in found.pictures} == {'train', 'valid', 'test'}
    assert found.classes == ('animals', *CLASSES)  # none says that it is their group
    for split in ('train', 'valid', 'test'):
        file = place / split / '_annotations.coco.json'
        file.write_text(file.read_text().replace('"supercategory": "none"', '"supercategory": "animals"'))
    found = read_annotated(place)
    assert found.classes == CLASSES and 'animals is the group of other classes' in found.notes[0]


def test_coco_annotations_beside_images_and_other_files_of_coco(place):
    for split in ('train', 'val'):
        image = shown(place / 'images' / f'{split}2017' / 'a.png')
        write_coco(place / 'annotations', [image], f'instances_{split}2017.json')
        write_coco(place / 'annotations', [image], f'person_keypoints_{split}2017.json')
    found = read_annotated(place)
    assert by_split(found) == dict(train=1, val=1) and boxes_of(found) == WANTED * 2
    assert [each.path.parent.name for each in found.pictures] == ['train2017', 'val2017']


def test_voc_lists_of_splits_count_and_so_do_folders_and_difficult(place):
    images = [shown(place / 'JPEGImages' / f'{name}.png') for name in 'abcd']
    write_voc(place / 'Annotations', [*images[:3], Picture(images[3].path, (Box('bee', (1, 1, 5, 5), ignore=True), ))])
    main = place / 'ImageSets' / 'Main'
    main.mkdir(parents=True)
    (main / 'trainval.txt').write_text('a\nb\n')
    (main / 'test.txt').write_text('d  1\n')
    (main / 'ant_train.txt').write_text('c -1\n')
    found = read_annotated(place)
    assert by_split(found) == dict(train=2, test=1) and '1 annotation files left out' in found.notes[0]
    assert found.pictures[-1].boxes == (Box('bee', (1, 1, 5, 5), ignore=True), )
    for path in (main / 'trainval.txt', main / 'test.txt', main / 'ant_train.txt'):
        path.unlink()
    assert by_split(read_annotated(place)) == {None: 4}


def test_voc_counts_from_0_as_soon_as_a_coordinate_is_0(place):
    image = Picture(picture(place / 'a.png'), (Box('ant', (0, 6, 10, 12)), ))
    write_voc(place, [image], first=1)
    assert boxes_of(read_annotated(place)) == [('ant', (0, 6, 10, 12))]
    write_voc(place, [image], first=0)
    found = read_annotated(place)
    assert boxes_of(found) == [('ant', (0, 6, 10, 12))] and 'count from 0' in found.notes[0]


@pytest.mark.parametrize('names', ['[ant, bee, sea cow]', '{0: ant, 1: bee, 2: sea cow}'])
@pytest.mark.parametrize('train', ['images/train', '../images/train', '[images/train]', 'train.txt'])
def test_yolo_by_its_yaml(place, names, train):
    for split in ('train', 'val'):
        write_yolo(place / 'labels' / split, [shown(place / 'images' / split / 'a.png')])
    picture(place / 'images' / 'train' / 'b.png')
    (place / 'train.txt').write_text('./images/train/a.png\n./images/train/b.png\n')
    (place / 'data.yaml').write_text(f'path: .\ntrain: {train}\nval: images/val\ntest: images/test\nnames: {names}\n')
    found = read_annotated(place)
    assert by_split(found) == dict(train=2, val=1) and found.classes == CLASSES
    assert [(name, pytest.approx(bbox)) for name, bbox in WANTED * 2] == boxes_of(found)
    assert len(found.notes) == 2 and "test is 'images/test', which is not there" in found.notes[0]
    assert '1 pictures have no label file' in found.notes[1]


def test_yolo_val_that_is_train_is_none_and_outlines_become_boxes(place):
    image = picture(place / 'images' / 'a.png')
    (place / 'labels').mkdir()
    (place / 'labels' / 'a.txt').write_text('1 0.25 0.25 0.75 0.5 0.5 1.0\n')
    (place / 'data.yaml').write_text('train: images\nval: images\nnames: [ant, bee]\n')
    found = read_annotated(place)
    assert found.pictures == (Picture(image, (Box('bee', (16, 12, 32, 36)), ), 'train'), )
    assert ['taken as no val' in found.notes[0], '1 outlines' in found.notes[1]] == [True, True]


def test_yolo_by_lists_of_pictures(place):
    write_yolo(place / 'labels', [shown(place / 'images' / 'a.png'), shown(place / 'images' / 'b.png')])
    (place / 'train.txt').write_text('images/a.png\n')
    (place / 'valid.txt').write_text('images/b.png\n')
    write_names(place / 'obj.names')
    assert by_split(read_annotated(place)) == dict(train=1, val=1)


def test_lines_with_spaces_relative_to_the_file_or_the_working_folder(place, tmp_path):
    inside, outside = shown(place / 'my pictures' / 'a 1.png'), shown(tmp_path / 'b.png')
    place.joinpath('train.txt').write_text('my pictures/a 1.png 4,6,14,18,0 20,8,50,24,2\n'
                                           'b.png 4,6,14,18,0 20,8,50,24,2\nmy pictures/gone.png 1,1,2,2,0\n')
    found = read_annotated(place / 'train.txt', hints=Hints(classes=CLASSES))
    assert [each.path.resolve() for each in found.pictures] == [inside.path, outside.path]
    assert boxes_of(found) == WANTED * 2 and found.missing == ('my pictures/gone.png', )


@pytest.mark.parametrize('header', [
    ('filename', 'width', 'height', 'class', 'xmin', 'ymin', 'xmax', 'ymax'),
    ('Image_Name', 'a', 'b', 'Label', 'x1', 'y1', 'x2', 'y2'),
    ('image', 'a', 'b', 'category', 'left', 'top', 'right', 'bottom')])
def test_a_table_by_its_header(place, header):
    write_csv(place / 'boxes.csv', [shown(place / 'a.png'), shown(place / 'b.png', ())], header)
    found = read_annotated(place)
    assert boxes_of(found) == WANTED and found.classes == ('ant', 'sea cow') and len(found.pictures) == 2


def test_a_table_of_sizes_with_a_column_of_splits(place):
    picture(place / 'a.png')
    (place / 'boxes.csv').write_text('image_id;x;y;w;h;label;split\na;4;6;10;12;ant;train\n')
    found = read_annotated(place)
    assert boxes_of(found) == WANTED[:1] and by_split(found) == dict(train=1)


@pytest.mark.parametrize(('files', 'cause'), [
    ({}, r'holds no annotations that are known\. Looked for coco: .* Seen: no file but pictures'),
    ({'notes.txt': 'nothing', 'x.json': '{}'}, r'Seen: notes\.txt, x\.json'),
    ({'all.txt': 'a.png 1,1,5,5,0\n'}, r'annotation lines number the classes and no file names them .* --classes'),
    ({'all.txt': 'a.png 1,1,5,5,3\n', 'classes.txt': 'ant\n'}, r"all\.txt, line 1: the class '3' is none of the 1"),
    ({'all.txt': 'a.png 1,1,5,5,0\na.png 1,1,5,x,0\n', 'classes.txt': 'ant\n'}, r'line 2: .* ends in no box'),
    ({'p.txt': 'a.png 1,1,5,5,0\n', 'q.txt': 'a.png 1,1,5,5,0\n'}, r'2 files of annotation lines \(p\.txt, q\.txt\)'),
    ({'all.txt': 'b.png 1,1,5,5,0\n', 'classes.txt': 'ant\n'}, r'none of 1 picture .* \(first: b\.png\)'),
    ({'all.txt': 'a.png 1,1,5,5,0\n', 'b.csv': 'file,class,x1,y1,x2,y2\n'},
     r'several kinds of annotations: lines \(all\.txt\); csv \(b\.csv\); choose one by --format'),
    ({'a.txt': '0 .5 .5 .1 .1\n0 9 9 1 1\n', 'classes.txt': 'ant\n'}, r'a\.txt, line 2: .* is no label'),
    ({'a.txt': '0 .5 .5 .1 .1 .9\n', 'classes.txt': 'ant\n'}, r'a\.txt, line 1: .* is no label'),
    ({'data.yaml': 'train: gone\nnames: [ant]\n'}, r"train is 'gone', which is not there"),
    ({'data.yaml': 'train: .\nnames: {0: ant, 2: bee}\n'}, r'number the classes from 0 without a gap, got 0, 2'),
    ({'b.csv': 'file,class,x1,y1,x2,y2\na.png,ant,1,1,5,?\n'}, r'b\.csv, line 2: the box is .*four numbers'),
    ({'a.xml': '<annotation></annotation>'}, r'none of 1 VOC annotation files has an object'),
    ({'a.xml': '<annotation><object>'}, r'a\.xml is not valid XML'),
    ({'a.json': '{"images": [], "annotations": [], "categories": 3}'}, r"no list 'categories'"),
])
def test_what_cannot_be_told_is_one_line(files, cause, place):
    picture(place / 'a.png')
    for name, text in files.items():
        (place / name).write_text(text)
    with pytest.raises(UserError, match=cause) as raised:
        read_annotated(place)
    assert '\n' not in str(raised.value)


def test_a_picture_that_may_be_either_of_two_is_refused(place):
    for folder in 'xy':
        picture(place / folder / 'a.png')
    write_lines(place / 'all.txt', [Picture(Path('a.png'), BOXES)])
    with pytest.raises(UserError, match=r'both .*x/a\.png and .*y/a\.png may be meant; give the folder .* --images'):
        read_annotated(place, hints=Hints(classes=CLASSES))
    found = read_annotated(place, hints=Hints(classes=CLASSES, images=place / 'y'))
    assert found.pictures[0].path == place / 'y' / 'a.png'


@pytest.mark.parametrize(('path', 'split'), [
    ('train/a', 'train'), ('instances_train2017', 'train'), ('annotations/val', 'val'), ('valid/_annotations', 'val'),
    ('x/testing/y', 'test'), ('train/val', 'val'), ('constrained', None), ('latest/a', None)])
def test_a_split_by_a_word_of_a_path(path, split):
    assert split_of(Path(path)) == split


def test_the_command_offers_every_format():
    from mgdet_plugin.cli.parser import FORMATS as offered
    assert tuple(FORMATS) == offered


def test_a_picture_of_another_split_is_not_taken_for_one_that_is_missing(place):
    """``train/a.png`` is not there, and ``val/a.png`` is another picture."""
    write_coco(place, [shown(place / 'val' / 'a.png')], 'train.json')
    text = (place / 'train.json').read_text()
    (place / 'train.json').write_text(text.replace('"a.png"', '"train/a.png"'))
    with pytest.raises(UserError, match=r'none of 1 picture .*first: train/a\.png'):
        read_annotated(place)
    (place / 'train.json').write_text(text)  # a name that tells no split may lie in any folder
    assert by_split(read_annotated(place)) == dict(train=1)


@pytest.mark.parametrize('first', ['0 nan 0.5 0.2 0.2', '0 0.5 0.5', '0 0.5 0.5 0.2 wide', '0 inf 1 1 1'])
@pytest.mark.parametrize('with_set', [True, False])
def test_a_faulty_label_is_named_with_its_line(place, first, with_set):
    """Also where no file holds a label that could tell the format."""
    write_yolo(place / 'labels', [shown(place / 'images' / 'a.png')])
    (place / 'labels/a.txt').write_text(f'\n{first}\n')
    if with_set:
        (place / 'data.yaml').write_text('names: [ant]\ntrain: images\n')
    with pytest.raises(UserError, match=rf"labels/a\.txt, line 2: '{first}' is no label; "):
        read_annotated(place)


@pytest.mark.parametrize(('text', 'line'), [
    ('names: [ant\ntrain: images\n', r'data\.yaml, line 2: this is no valid YAML \('),
    (f'names: {"[" * 10_000}', r'data\.yaml: this is no valid YAML \(maximum recursion'),
    ('train: images\n', r'data\.yaml has no names; names lists the classes'),
    ('nc: 2\n', r'data\.yaml has no names and no train; ')])
def test_a_faulty_data_yaml_is_named(place, text, line):
    picture(place / 'images' / 'a.png')
    (place / 'data.yaml').write_text(text)
    with pytest.raises(UserError, match=line):
        read_annotated(place)
