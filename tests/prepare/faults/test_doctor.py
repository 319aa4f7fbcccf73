"""Each fault that the doctor knows is planted once and found, alone; a clean set is called clean."""
from __future__ import annotations

import json
import os
import shutil
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from PIL import Image

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.prepare.faults import data_source, picture_faults
from mgdet_plugin.prepare.faults.doctor import PAGE, RECORD, examine, write_examination
from mgdet_plugin.prepare.faults.doctor_page import _drawn
from mgdet_plugin.prepare.faults.examination import Examination
from mgdet_plugin.prepare.faults.findings import ERROR, EXIT_CODES, NOTE, WARNING, Example, exit_code, some_of
from mgdet_plugin.prepare.faults.picture_faults import PictureLook
from tests.support.faulty_set import SIDE, FaultySet, Plant, make_clean_set, noise

LIKE = 'mgdet_nano_stage1'  # 192 pixels: twice the pictures' own
HARMLESS = {'unused_anchor', 'few_boxes'}  # of a set this small


@pytest.fixture
def clean(tmp_path: Path) -> FaultySet:
    """A set without a fault."""
    return make_clean_set(tmp_path / 'data')


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The config that data are held against is read once."""
    base = Config.fromfile(data_source.config_path(LIKE))
    read = Config.fromfile
    monkeypatch.setattr(Config, 'fromfile', lambda path: base.copy() if Path(path).stem == LIKE else read(path))


def examined(data: FaultySet, **options: Any) -> Examination:
    """What is found in a set."""
    return examine(data.write(), LIKE, **options)


def kinds(found: Examination) -> set[str]:
    """The kinds of findings that a set of this size does not have by itself."""
    return {each.kind for each in found.findings} - HARMLESS


def test_a_clean_set_is_called_clean(clean: FaultySet) -> None:
    found = examined(clean)
    assert kinds(found) == set() and exit_code(found.findings) == 0
    assert found.lines()[-1].startswith('clean: ')
    assert 'train: 8 pictures with 16 boxes, val: 8 pictures with 16 boxes; 2 classes' in found.lines()[0]


def cut_short(data: FaultySet) -> None:
    """A JPEG without its end."""
    path = data.picture('cut.jpg', noise())
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def another_format(data: FaultySet) -> None:
    """The picture of train once more, as a file of other bytes."""
    with Image.open(data.path('train', 1)) as picture:
        picture.save(data.path('val', 1).with_suffix('.bmp'))
    data.splits['val']['images'][1]['file_name'] = 'val/1.bmp'


def shared(data: FaultySet) -> None:
    """A test set with a picture of the validation set."""
    data.splits['test'] = json.loads(json.dumps(data.splits['val']))
    data.splits['test']['images'] = data.splits['test']['images'][:1]
    data.splits['test']['annotations'] = data.splits['test']['annotations'][:2]


def turned(told: tuple[int, int], orientation: int) -> Plant:
    """A picture that Exif turns, and the size its record tells."""

    def plant(data: FaultySet) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        data.picture('turned.jpg', noise(SIDE, SIDE + 32), exif=exif)
        data.splits['train']['images'][-1].update(width=told[0], height=told[1])

    return plant


def other_size(data: FaultySet) -> None:
    """A record of another size than the picture."""
    data.splits['train']['images'][0].update(width=SIDE + 10)


def without(split: str, label: int) -> Plant:
    """A split without boxes of a class."""

    def plant(data: FaultySet) -> None:
        content = data.splits[split]
        content['annotations'] = [each for each in content['annotations'] if each['category_id'] != label]

    return plant


def absent(data: FaultySet) -> None:
    """A class that no box is of."""
    for content in data.splits.values():
        content['categories'].append(dict(id=2, name='ghost'))


def as_shares(data: FaultySet) -> None:
    """Boxes in shares of their picture in place of pixels."""
    for each in (each for content in data.splits.values() for each in content['annotations']):
        each['bbox'] = [side / SIDE for side in each['bbox']]


def uneven(data: FaultySet) -> None:
    """Hundreds of boxes of a class beside 8 of the other."""
    for image in range(8):
        for x in range(0, 90, 10):
            for y in range(0, 80, 7):
                data.box([x, y, 10, 15], 'train', image)


def crowd(data: FaultySet) -> None:
    """Objects on one centre, so that cells run out: none of them twice, by its size."""
    for each in range(12):
        data.box([60 - each, 10 + each, 14 + 2 * each, 52 - 2 * each], 'val', 1)
        data.box([60 - each, 10 + each, 14 + 2 * each, 52 - 2 * each], 'train', 1)


FAULTS: tuple[tuple[str, str, Plant], ...] = (
    ('unreadable', ERROR, lambda data: data.path('train', 2).write_bytes(b'')),
    ('unreadable', ERROR, cut_short),
    ('duplicate', WARNING, lambda data: shutil.copy(data.path('train', 1), data.path('train', 2))),
    ('leak', ERROR, lambda data: shutil.copy(data.path('train', 1), data.path('val', 2))),
    ('leak', ERROR, another_format),
    ('shared', WARNING, shared),
    ('exif_boxes', ERROR, turned((SIDE + 32, SIDE), 6)),
    ('exif', NOTE, turned((SIDE, SIDE + 32), 6)),
    ('exif', NOTE, turned((SIDE + 32, SIDE), 3)),
    ('other_size', ERROR, other_size),
    ('small_picture', NOTE, lambda data: data.picture('small.png', noise(31, 60))),
    ('long_picture', NOTE, lambda data: data.picture('long.png', noise(60, 300))),
    ('far_size', NOTE, lambda data: data.picture('far.png', noise(768, 768))),
    ('degenerate', WARNING, lambda data: data.box([50, 5, 0, 9])),
    ('degenerate', WARNING, lambda data: data.box([50, 5, 9, 0.5])),
    ('outside', WARNING, lambda data: data.box([SIDE + 5, 5, 9, 9])),
    ('beyond', WARNING, lambda data: data.box([80, 5, 30, 20])),
    ('beyond', WARNING, lambda data: data.box([-9, 5, 20, 20])),
    ('duplicate_box', WARNING, lambda data: data.box([8, 30, 14, 22], label=0)),
    ('two_classes', WARNING, lambda data: data.box([8, 30, 14, 22], label=1)),
    ('huge', NOTE, lambda data: data.box([0, 0, SIDE, SIDE])),
    ('tiny', WARNING, lambda data: data.box([50, 5, 1.5, 9])),
    ('no_anchor', WARNING, lambda data: data.box([40, 4, 56, 4])),
    ('shared_cells', NOTE, lambda data: data.box([20, 40, 14, 22])),
    ('shared_centre', WARNING, lambda data: [data.box([8 + image, 30, 12, 20], image=image) for image in range(8)]),
    ('no_cell', WARNING, crowd),
    ('absent_class', NOTE, absent),
    ('untrained_class', WARNING, without('train', 1)),
    ('unmeasured_class', NOTE, without('val', 1)),
    ('uneven', NOTE, uneven),
    ('empty_picture', NOTE, lambda data: data.splits['train']['annotations'].__delitem__(slice(0, 2))),
    ('refused', ERROR, as_shares),
    ('missing', ERROR, lambda data: data.path('train', 2).unlink()),
)
ALSO = dict(  # what comes with a fault by its nature
    duplicate_box={'shared_centre'}, two_classes={'shared_centre'}, huge={'no_anchor'}, tiny={'no_anchor'},
    no_anchor={'shared_cells'}, no_cell={'shared_centre', 'shared_cells', 'no_anchor'}, beyond={'no_anchor'},
    uneven={'shared_centre', 'shared_cells', 'no_cell', 'beyond'}, shared_centre={'shared_cells'},
    far_size={'tiny', 'no_anchor'}, refused={'degenerate', 'absent_class'}, shared={'refused'})


@pytest.mark.parametrize(('kind', 'severity', 'plant'), FAULTS)
def test_a_planted_fault_is_found(clean: FaultySet, kind: str, severity: str, plant: Plant) -> None:
    plant(clean)
    found = examined(clean)
    assert kind in kinds(found), found.lines()
    [finding] = [each for each in found.findings if each.kind == kind]
    assert finding.severity == severity and finding.count >= 1
    assert kinds(found) - {kind} <= ALSO.get(kind, set())
    assert exit_code(found.findings) >= EXIT_CODES[severity]
    if not kind.endswith('class') and kind not in ('uneven', 'unused_anchor'):
        assert finding.examples and any(kind in line and finding.what in line for line in found.lines())


def test_what_a_loader_fills_up_is_told(clean: FaultySet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some versions of OpenCV read a picture without its end."""
    cut_short(clean)
    filled = dict(img=noise(), ori_shape=(SIDE, SIDE))
    whole = picture_faults.loaded
    monkeypatch.setattr(picture_faults, 'loaded', lambda path, loader: (
        filled if path.endswith('cut.jpg') else whole(path, loader)))
    found = examined(clean)
    assert kinds(found) == {'cut_short'} and exit_code(found.findings) == EXIT_CODES[ERROR]
    assert 'truncated' in found.findings[0].examples[0].text


@pytest.mark.parametrize('name', ['a.png', 'a.jpg', 'a.bmp'])
def test_files_that_are_not_whole_are_told_from_whole_ones(tmp_path: Path, name: str) -> None:
    """By what is in the file alone, of the formats that are looked through without decoding all of it, too."""
    path = tmp_path / name
    Image.fromarray(noise()).save(path)
    assert picture_faults._in_file(str(path)) == ('', 1)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    assert picture_faults._in_file(str(path))[0]


def test_a_decoder_that_hangs_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its picture is a fault, and all others are looked at, be there more that hang than threads."""
    free = Event()
    monkeypatch.setattr(picture_faults, '_look', lambda path, loader: (
        free.wait() and None if path.startswith('bad') else PictureLook((1, 1))))
    paths = [f'{"bad" if each % 2 else "good"}{each}' for each in range(2 * (2 * min(8, os.cpu_count() or 1) + 1))]
    looks = picture_faults.look_at(paths, LoadImageFromFile(), patience=0.1)
    free.set()
    assert list(looks) == paths
    assert all(look.fault == ('not decoded in 0.1 seconds' if path.startswith('bad') else '')
               for path, look in looks.items())


def test_one_of_a_kind_is_said_in_the_singular() -> None:
    assert some_of(1, '1 picture', 'are cut') == '1 of 1 picture is cut'
    assert some_of(2, '4,888 boxes', 'have no size') == '2 of 4,888 boxes have no size'


def test_page_and_record_hold_what_was_found(clean: FaultySet, tmp_path: Path) -> None:
    clean.box([50, 5, 0, 9])
    clean.path('train', 3).write_bytes(b'<svg onload="x"/>')
    found = examined(clean)
    paths = write_examination(found, tmp_path / 'out')
    assert [path.name for path in paths] == [RECORD, PAGE] and all(path.is_file() for path in paths)
    record = json.loads(paths[0].read_text())
    assert record['exit_code'] == 3 and record['splits']['val'] == dict(pictures=8, boxes=dict(disc=8, square=8))
    assert [each['kind'] for each in record['findings']][:2] == ['unreadable', 'degenerate']
    page = paths[1].read_text()
    assert 'src="data:image/jpeg' in page and 'id="degenerate"' in page and page.count('<figure>') >= 3
    assert 'http' not in page.replace('http-equiv', '')


def test_nothing_is_written_among_the_data(clean: FaultySet, tmp_path: Path) -> None:
    found = examined(clean, pictures=0)
    before = sorted(tmp_path.rglob('*'))
    for folder in (clean.folder, clean.folder / 'val', clean.folder / 'val' / 'deeper'):
        with pytest.raises(UserError, match=r'the data lie there.* --out'):
            write_examination(found, folder)
    assert sorted(tmp_path.rglob('*')) == before


def test_some_pictures_are_enough_if_asked_for(clean: FaultySet) -> None:
    clean.path('train', 0).write_bytes(b'')
    assert examined(clean, pictures=0).looked == 0
    found = examined(clean, pictures=4)
    assert found.looked == 4 and 'unreadable' in kinds(found)
    assert '4 of 16 pictures looked at' in '\n'.join(found.lines())


@pytest.mark.parametrize(('options', 'line'), [
    (dict(pictures=-1), 'the pictures to look at must be a whole number, got -1'),
    (dict(tiny=-1), 'the side of a tiny box must be a number of pixels, got -1'),
    (dict(least_fit=2), 'the least fit of an anchor must be from 0 to 1, got 2')])
def test_bad_options_are_refused(tmp_path: Path, options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        examine(tmp_path, LIKE, **options)


def test_size_limits_are_options(clean: FaultySet) -> None:
    assert {'tiny', 'no_anchor'} <= kinds(examined(clean, tiny=40.0, least_fit=1.0, pictures=0))


def test_data_alone_are_told_to_name_their_classes(clean: FaultySet, tmp_path: Path) -> None:
    """The config that they are held against has other classes."""
    torch.save(dict(meta=dict(dataset_meta=dict(classes=('square', 'disc'))), state_dict=dict(a=torch.zeros(1))),
               tmp_path / 'w.pth')
    [finding] = [each for each in examined(clean, weights=str(tmp_path / 'w.pth'), pictures=0).findings
                 if each.kind == 'weights_classes']
    assert 'disc (row 1, here 0), square (row 0, here 1)' in finding.what and '--classes NAMES.txt' in finding.advice


@pytest.mark.parametrize(('box', 'is_marked'), [((300, 200, 302, 202), True), ((300, 200, 300, 205), True),
                                                ((300, 200, 500, 300), False)])
def test_a_box_that_is_hardly_a_dot_has_corners_around_it(box: tuple[float, ...], is_marked: bool) -> None:
    picture = Image.new('RGB', (640, 480), 'white')
    drawn = Image.open(BytesIO(_drawn(picture, Example('a.png', boxes=(box, )))))
    red = np.argwhere(np.asarray(drawn).astype(int)[..., 1] < 150)  # rows, columns
    assert drawn.width == 300
    spread = np.ptp(red, axis=0).max()
    assert (25 <= spread <= 60) == is_marked and len(red) > 20
