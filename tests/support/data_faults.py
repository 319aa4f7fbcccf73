"""Faults of data: how each is made in a small set, and what comes of it.

``FAULTS`` is the one list of them: ``tests/engine/test_data_faults.py`` makes each, and the table of
docs/reliability.md is held against it. A set is COCO or VOC, six pictures to train on and two to validate on.
"""
from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import numpy as np
from PIL import Image

from tests.support.faulty_set import noise

NAMES = ('cat', 'dog')
WIDTH, HEIGHT = 64, 48
TRAINED, VALIDATED = 6, 2  # pictures
Outcome = Literal['trains', 'said', 'refused']
"""It is trained on as any other; trained on, and a line says what was left out or is odd; refused in one line before a
folder is made."""


@dataclass
class Planted:
    """A sound set on disk that a fault is planted in; ``train`` and ``val`` are the contents of its COCO files.

    Attributes:
        folder: With ``img`` (``train0.png`` and so on), ``train.json``, ``val.json``; or ``JPEGImages``,
            ``Annotations`` and ``train.txt``, ``val.txt``.
        options: Dotted keys of the config to set.
        environment: Variables to set.
    """

    folder: Path
    train: dict[str, Any]
    val: dict[str, Any]
    options: dict[str, Any]
    environment: dict[str, str]

    @property
    def picture(self) -> Path:
        """The file of the third training picture."""
        return self.folder / 'img' / 'train2.png'

    @property
    def record(self) -> dict[str, Any]:
        """Its record."""
        return self.train['images'][2]

    @property
    def annotation(self) -> dict[str, Any]:
        """Its first annotation."""
        return self.train['annotations'][4]

    @property
    def xml(self) -> Path:
        """Its annotation file in the VOC set."""
        return self.folder / 'Annotations' / 'train2.xml'

    def write(self) -> None:
        """Write the COCO files."""
        for split in ('train', 'val'):
            (self.folder / f'{split}.json').write_text(json.dumps(getattr(self, split)))


@dataclass(frozen=True)
class DataFault:
    """One fault.

    Attributes:
        group: The table's row it is in.
        name: In a few words.
        plant: Makes it, before the COCO files are written.
        outcome: What comes of it.
        said: Pattern of the line; empty where nothing is said.
        kind: The set it is planted in.
        late: Makes what has to be made after the COCO files are written.
    """

    group: str
    name: str
    plant: Callable[[Planted], object]
    outcome: Outcome
    said: str = ''
    kind: Literal['coco', 'voc'] = 'coco'
    late: Callable[[Planted], object] = str


def make_coco(folder: Path) -> Planted:
    """A sound COCO set."""
    (folder / 'img').mkdir(parents=True)
    contents = []
    for place, (split, count) in enumerate((('train', TRAINED), ('val', VALIDATED))):
        for each in range(count):
            Image.fromarray(noise(HEIGHT, WIDTH, 10 * place + each)).save(folder / 'img' / f'{split}{each}.png')
        contents.append(dict(
            images=[dict(id=each, file_name=f'{split}{each}.png', width=WIDTH, height=HEIGHT) for each in range(count)],
            categories=[dict(id=each, name=name) for each, name in enumerate(NAMES)],
            annotations=[dict(id=2 * each + label, image_id=each, category_id=label, bbox=[4 + 30 * label, 5, 20, 30],
                              area=600, iscrowd=0) for each in range(count) for label in (0, 1)]))
    return Planted(folder, *contents, {}, {})


def make_voc(folder: Path) -> Planted:
    """The same as a VOC set."""
    made = make_coco(folder)
    (folder / 'img').rename(folder / 'JPEGImages')
    (folder / 'Annotations').mkdir()
    for split in ('train', 'val'):
        content = getattr(made, split)
        names = [Path(each['file_name']).stem for each in content['images']]
        (folder / f'{split}.txt').write_text('\n'.join(names) + '\n')
        for place, name in enumerate(names):
            (folder / 'JPEGImages' / f'{name}.png').rename(folder / 'JPEGImages' / f'{name}.jpg')
            (folder / 'Annotations' / f'{name}.xml').write_text(voc_text(
                [each for each in content['annotations'] if each['image_id'] == place]))
    return made


def voc_text(annotations: list[dict[str, Any]], size: tuple[object, object] = (WIDTH, HEIGHT)) -> str:
    """An annotation file."""
    objects = ''
    for each in annotations:
        x, y, w, h = each['bbox']
        objects += (f'<object><name>{NAMES[each["category_id"]]}</name><difficult>0</difficult><bndbox><xmin>{x + 1}'
                    f'</xmin><ymin>{y + 1}</ymin><xmax>{x + w + 1}</xmax><ymax>{y + h + 1}</ymax></bndbox></object>')
    return (f'<annotation><size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>{objects}'
            '</annotation>')


def cut(path: Path, size: int | None = None) -> None:
    """Leave the beginning of a file: half of it or so many bytes."""
    content = path.read_bytes()
    path.write_bytes(content[:len(content) // 2 if size is None else size])


def bomb(path: Path, side: int = 30_000) -> None:
    """A PNG's header that declares more pixels than any memory holds."""
    Image.new('L', (1, 1)).save(path, 'png')
    content = bytearray(path.read_bytes())
    content[16:24] = side.to_bytes(4, 'big') * 2
    content[29:33] = crc32(content[12:29]).to_bytes(4, 'big')
    path.write_bytes(content)


def replaced(make: Callable[[Path], object]) -> Callable[[Planted], object]:
    """Something else in the place of the picture."""

    def plant(made: Planted) -> None:
        made.picture.unlink()
        make(made.picture)

    return plant


def saved(mode: str, suffix: str, size: tuple[int, int] = (WIDTH, HEIGHT), told: tuple[int, int] | None = None,
          **options: Any) -> Callable[[Planted], object]:
    """The picture in another mode, format or size, its record as it is (or of the size that is told)."""

    def plant(made: Planted) -> None:
        path = made.picture.with_suffix(suffix)
        picture = Image.fromarray(noise(*size[::-1])) if max(size) < 1000 else Image.new('RGB', size, (90, 120, 30))
        if mode == 'I;16':
            picture = Image.fromarray(np.asarray(picture)[..., 0].astype(np.uint16) * 257)
        elif mode == 'animated':
            options.update(save_all=True, append_images=[Image.fromarray(noise(*size[::-1], 5)) for _ in range(3)])
        elif mode == 'turned':
            options['exif'] = Image.Exif()
            options['exif'][0x0112] = 6
        else:
            picture = picture.convert(mode)
        picture.save(path, **options)
        width, height = told or size
        made.record.update(file_name=path.name, width=width, height=height)
        made.train['annotations'] = [  # not those that would lie outside of it
            each for each in made.train['annotations'] if each['image_id'] != 2 or (
                each['bbox'][0] + each['bbox'][2] <= width and each['bbox'][1] + each['bbox'][3] <= height)]

    return plant


def boxed(**values: Any) -> Callable[[Planted], object]:
    """An annotation with other values."""
    return lambda made: made.annotation.update(values)


def recorded(**values: Any) -> Callable[[Planted], object]:
    """A record with other values."""
    return lambda made: made.record.update(values)


def readable(plant: Callable[[Planted], object], skip: float) -> Callable[[Planted], object]:
    """Pictures that cannot be read, and the loader that leaves a share of them out."""

    def both(made: Planted) -> None:
        plant(made)
        first = 'train_dataloader.dataset.pipeline.0'
        made.options.update({f'{first}.type': 'LoadReadableImage', f'{first}.skip': skip})

    return both


def many(made: Planted) -> None:
    """5,000 boxes in one picture."""
    made.train['annotations'] += [
        dict(made.annotation, id=100 + each, bbox=[each % 50, each // 50 % 30, 8 + each % 5, 9], area=80)
        for each in range(5000)]


def encoded(encoding: str) -> Callable[[Planted], object]:
    """The annotation file in another encoding."""

    def plant(made: Planted) -> None:
        for split in ('train', 'val'):
            path = made.folder / f'{split}.json'
            path.write_bytes(path.read_text().encode(encoding))

    return plant


def rewritten(change: Callable[[str], str]) -> Callable[[Planted], object]:
    """The training file's text changed."""

    def plant(made: Planted) -> None:
        path = made.folder / 'train.json'
        path.write_text(change(path.read_text()))

    return plant


def sparse(path: Path, size: int) -> None:
    """A file of so many bytes that takes no room."""
    path.write_bytes(b'{')
    os.truncate(path, size)


def xml(text: str, encoding: str = 'utf-8') -> Callable[[Planted], object]:
    """The annotation file of a picture of the VOC set."""
    return lambda made: made.xml.write_bytes(text.encode(encoding))


def in_xml(old: str, new: str) -> Callable[[Planted], object]:
    """A part of it changed, once."""
    return lambda made: made.xml.write_text(made.xml.read_text().replace(old, new, 1))


def listed(change: Callable[[bytes], bytes]) -> Callable[[Planted], object]:
    """The list of the VOC set's training pictures changed."""

    def plant(made: Planted) -> None:
        path = made.folder / 'train.txt'
        path.write_bytes(change(path.read_bytes()))

    return plant


def emptied(*keys: str, split: str = 'train') -> Callable[[Planted], object]:
    """Lists of a COCO file without an entry."""
    return lambda made: [getattr(made, split)[key].clear() for key in keys]


LAUGHS = '<!DOCTYPE a [<!ENTITY l0 "lol">' + ''.join(
    f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10)) + ']>'
SOUND = '<annotation><size><width>64</width><height>48</height></size><object><name>{}</name><bndbox><xmin>5</xmin>' \
    '<ymin>6</ymin><xmax>25</xmax><ymax>36</ymax></bndbox></object></annotation>'
UNREADABLE: dict[str, tuple[Callable[[Planted], object], str]] = {
    'cut in half': (lambda made: cut(made.picture), 'cut short or no picture'),
    '20 bytes of it': (lambda made: cut(made.picture, 20), 'cut short or no picture'),
    'zero bytes': (lambda made: cut(made.picture, 0), 'empty'),
    'text': (lambda made: made.picture.write_text('no picture'), 'cut short or no picture'),
    'an SVG named .png': (lambda made: made.picture.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>'),
                          'cut short or no picture'),
    'a folder': (replaced(Path.mkdir), 'no file'),
    'a dangling link': (replaced(lambda path: path.symlink_to('nowhere.png')), 'no file'),
    'a named pipe': (replaced(os.mkfifo), 'no file'),
    'declares 30,000 x 30,000 pixels': (lambda made: bomb(made.picture), '900,000,000 pixels declared, 268,435,456'),
}
"""Fault of a picture -> how it is made, what is said of it."""
_UNREAD = r'train: 1 of 6 pictures in .* cannot be read: train2\.png \(id 2\): {}.*skip=SHARE'
_SKIPPED = r'train: 1 of 6 pictures in .* cannot be read and will be skipped: train2\.png \(id 2\): {}'
_WHERE = 'images that cannot be read'


def _unreadable() -> list[DataFault]:
    """Each, refused and skipped."""
    faults = [DataFault(_WHERE, name, plant, 'refused', _UNREAD.format(said))
              for name, (plant, said) in UNREADABLE.items()]
    faults += [DataFault('the same, 1 of 6 with `LoadReadableImage(skip=0.2)`', name, readable(plant, 0.2), 'said',
                         _SKIPPED.format(said)) for name, (plant, said) in UNREADABLE.items()]
    return faults


FAULTS: tuple[DataFault, ...] = (
    *_unreadable(),
    DataFault(_WHERE, 'a float TIFF', saved('F', '.tiff'), 'refused',
              r'train: 1 of 6 pictures in .*: train2\.tiff \(id 2\): cut short or no picture'),
    DataFault('the same, more than the share', 'cut in half', readable(lambda made: cut(made.picture), 0.1), 'refused',
              _UNREAD.format('cut short')),
    DataFault('the same in val', 'cut in half', lambda made: cut(made.folder / 'img' / 'val1.png'), 'refused',
              r'val: 1 of 2 pictures in .*: val1\.png \(id 1\): cut short'),
    DataFault('images beyond a limit of pixels that is lowered', '64 x 48 where 1,000 are allowed',
              lambda made: made.environment.update(OPENCV_IO_MAX_IMAGE_PIXELS='1000'), 'refused',
              r'train: .*none of 6 .*3,072 pixels declared, 1,000 are allowed \(by OPENCV_IO_MAX_IMAGE_PIXELS'),
    *(DataFault('images of other kinds', name, plant, 'trains') for name, plant in (
        ('16-bit PNG', saved('I;16', '.png')), ('grey', saved('L', '.png')), ('CMYK', saved('CMYK', '.jpg')),
        ('RGBA', saved('RGBA', '.png')), ('palette', saved('P', '.png')), ('1-bit', saved('1', '.png')),
        ('animated GIF', saved('animated', '.gif')),
        ('animated PNG', saved('animated', '.png')), ('animated WebP', saved('animated', '.webp')),
        ('1 x 1 pixel', saved('RGB', '.png', (1, 1))), ('8,000 x 8,000 pixels', saved('RGB', '.jpg', (8000, 8000))),
        ('EXIF-rotated, its record upright', saved('turned', '.jpg', told=(HEIGHT, WIDTH))))),
    DataFault('images of another size than their record', 'EXIF-rotated', saved('turned', '.jpg'), 'said',
              r'train: 1 of 6 pictures are not of the size .*train2\.jpg is 48 x 64, .*1 seem turned'),
    DataFault('images of another size than their record', 'half of it', saved(
        'RGB', '.png', (WIDTH // 2, HEIGHT // 2), (WIDTH, HEIGHT)), 'said',
              r'train: 1 of 6 pictures are not of the size .*train2\.png is 32 x 24'),
    DataFault('boxes', 'reversed', boxed(bbox=[24, 35, -20, -30]), 'said',
              r'train: 1 of 12 boxes skipped: zero or negative size \(first: image train2\.png, \[24, 35'),
    DataFault('boxes', 'outside of their image', boxed(bbox=[70, 5, 20, 30]), 'said',
              r'train: 1 of 12 boxes skipped: outside of its image \(first: image train2\.png'),
    DataFault('boxes', 'NaN', boxed(bbox=[4, 5, math.nan, 30]), 'said',
              r'train: 1 of 12 boxes skipped: not a number.*image train2\.png'),
    DataFault('boxes', 'infinite', boxed(bbox=[4, 5, math.inf, 30]), 'said',
              r'train: 1 of 12 boxes skipped: not a number.*image train2\.png'),
    DataFault('boxes', '1e30', boxed(bbox=[4, 5, 1e30, 30]), 'said',
              r'train: 1 of 12 boxes skipped: .*image train2\.png'),
    DataFault('boxes', 'without an area', boxed(area=0), 'said',
              r'train: 1 of 12 boxes skipped: area not above zero .*image train2\.png'),
    DataFault('boxes', '5,000 in one image', many, 'trains'),
    DataFault('boxes', 'empty', boxed(bbox=[]), 'refused', r'train\.json: annotation 4 has bbox \[\]; four numbers'),
    DataFault('boxes', 'strings', boxed(bbox=['4', '5', '20', '30']), 'refused',
              'annotation 4 has bbox .*four numbers'),
    DataFault('boxes', 'an integer of 400 digits', boxed(bbox=[4, 5, 10**399, 30]), 'refused',
              'annotation 4 has bbox .*four numbers'),
    DataFault('boxes', 'more than half unusable', lambda made: [
        each.update(bbox=[4, 5, 0, 0]) for each in made.train['annotations'][:7]], 'refused',
        'train: 7 of 12 boxes skipped: .*too many to be meant'),
    *(DataFault('records', name, plant, 'refused', said) for name, plant, said in (
        ('category id a list', boxed(category_id=[0]), r'annotation 4 names category_id \[0\]'),
        ('image id a list', boxed(image_id=[2]), r'annotation 4 names image_id \[2\]'),
        ('class out of range', boxed(category_id=7), 'annotation 4 names category_id 7'),
        ('image that is not there', boxed(image_id=70), 'annotation 4 names image_id 70'),
        ('the id of an image a list', recorded(id=[2]), r'images\[2\] has id \[2\]; a number or a text'),
        ('the id of an image null', recorded(id=None), r'images\[2\] has id None; a number or a text'),
        ('the id of an image a text among numbers', recorded(id='2'), "some ids in 'images' are texts and some are"),
        *((f'iscrowd {shown}', boxed(iscrowd=value), f'annotation 4 has iscrowd {pattern}; 0 or 1')
          for shown, value, pattern in (('a text', '0', "'0'"), ('null', None, 'None'), ('a list', [1], r'\[1\]'))),
        ('area infinite', boxed(area=math.inf), 'annotation 4 has area inf; a number of pixels'),
        ('a box of true', boxed(bbox=[True, 5, 20, 30]), 'annotation 4 has bbox .*four numbers'),
        *((f'width {shown}', recorded(width=value), rf'images\[2\] has width {pattern}')
          for shown, value, pattern in (('a string', '64', "'64'"), ('null', None, 'None'), ('0', 0, '0 '),
                                        ('negative', -64, '-64'), ('NaN', math.nan, 'nan'), ('true', True, 'True'))),
        *((f'file_name {shown}', recorded(file_name=value), rf'images\[2\] has file_name {pattern}')
          for shown, value, pattern in (('a number', 3, '3;'), ('null', None, 'None'), ('a list', ['a'], r"\['a'\]"),
                                        ('a lone surrogate', '\ud800.png', r"'\\ud800"))),
        ('an image id twice', recorded(id=1), "ids in 'images' are not unique"),
        ('an annotation id twice', boxed(id=1), "ids in 'annotations' are not unique"),
        ('a class name twice', lambda made: made.train['categories'].append(dict(id=9, name='dog')),
         r'train\.json: .*each name once'))),
    DataFault('images without boxes', 'one in train', lambda made: made.train['annotations'].__delitem__(slice(4, 6)),
              'trains'),
    DataFault('images without boxes', 'all in val', emptied('annotations', split='val'), 'said',
              'val: no box of 2 of 2 classes: cat, dog'),
    DataFault('images without boxes', 'all in train', emptied('annotations'), 'refused', 'train: .*no usable box'),
    DataFault('an empty set', 'train', emptied('images', 'annotations'), 'refused',
              r'train: .*train\.json names no image'),
    DataFault('an empty set', 'val', emptied('images', 'annotations', split='val'), 'refused',
              r'val: .*val\.json names no image'),
    DataFault('annotation files', 'with a BOM', str, 'trains', late=encoded('utf-8-sig')),
    DataFault('annotation files', 'in UTF-16', str, 'trains', late=encoded('utf-16')),
    *(DataFault('annotation files', name, str, 'refused', said, late=late) for name, late, said in (
        ('in Latin-1', lambda made: (made.folder / 'train.json').write_text(
            (made.folder / 'train.json').read_text().replace('"cat"', '"k\xe4tzchen"'), 'latin-1'),
         r'train\.json is not valid JSON'),
        ('a key twice', rewritten(lambda text: text.replace('"bbox"', '"bbox": [1, 2, 3, 4], "bbox"', 1)),
         r"train\.json: .*'bbox' twice"),
        ('100,000 lists deep', rewritten(lambda text: '[' * 100_000), r'train\.json is not valid JSON'),
        ('cut in half', lambda made: cut(made.folder / 'train.json'), r'train\.json is not valid JSON'),
        ('5 GiB', lambda made: sparse(made.folder / 'train.json', 5 << 30), r'train\.json has 5,368,709,120 bytes'),
        ('a named pipe', lambda made: ((made.folder / 'train.json').unlink(), os.mkfifo(made.folder / 'train.json')),
         r'train: ann_file .*train\.json is not there')))
    ,
    *(DataFault('VOC files', name, plant, outcome, said, kind='voc') for name, plant, outcome, said in (
        ('sound', str, 'trains', ''),
        ('entities upon entities (billion laughs)', xml(LAUGHS + SOUND.format('&l9;')), 'refused',
         r'train2\.xml is not valid XML'),
        ('an external entity', xml('<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + SOUND.format('&e;')),
         'refused', r'train2\.xml is not valid XML'),
        ('in GBK', xml('<?xml version="1.0" encoding="GBK"?>' + SOUND.format('猫'), 'gbk'), 'refused',
         r'train2\.xml is not valid XML .*UTF-8'),
        ('in an unknown encoding', xml('<?xml version="1.0" encoding="x-none"?>' + SOUND.format('cat')), 'refused',
         r'train2\.xml is not valid XML .*UTF-8'),
        ('in UTF-16', xml('<?xml version="1.0" encoding="UTF-16"?>' + SOUND.format('cat'), 'utf-16'), 'trains', ''),
        ('with a BOM', xml(SOUND.format('cat'), 'utf-8-sig'), 'trains', ''),
        ('a named pipe', lambda made: (made.xml.unlink(), os.mkfifo(made.xml)), 'refused',
         r'train2\.xml is missing or no file'),
        ('100 MiB', lambda made: sparse(made.xml, 100 << 20), 'refused', r'train2\.xml has 104,857,600 bytes'),
        ('zero bytes', lambda made: made.xml.write_bytes(b''), 'refused', r'train2\.xml is not valid XML'),
        ('a class name with spaces around', in_xml('>cat<', '> cat <'), 'refused',
         r"train2\.xml: object 0 is named ' cat '.*spaces"),
        ('a class that is not listed', in_xml('>cat<', '>cow<'), 'said',
         'train: 1 boxes left out, their classes are not in metainfo: cow'),
        ('a width of 0', in_xml('<width>64<', '<width>0<'), 'refused', r"train2\.xml: size .*'0' x '48'"),
        ('a coordinate twice', in_xml('<xmin>5<', '<xmin>5</xmin><xmin>7<'), 'refused',
         r'train2\.xml: object 0 has bndbox/xmin twice'),
        ('a coordinate that is no number', in_xml('<xmin>5<', '<xmin>five<'), 'refused',
         r"train2\.xml: object 0 has xmin 'five'"),
        ('a coordinate of 400 digits', in_xml('<xmax>25<', f'<xmax>{"9" * 400}<'), 'refused',
         r'train2\.xml: object 0 has xmax'),
        ('a coordinate of 1e30', in_xml('<xmax>25<', '<xmax>1e30<'), 'refused', r'train2\.xml: object 0 has xmax'),
        ('reversed', in_xml('<xmax>25<', '<xmax>1<'), 'said',
         r'train: 1 of 12 boxes skipped: zero or negative size \(first: image train2\.jpg'),
        ('without objects', xml(voc_text([])), 'trains', ''))),
    *(DataFault('VOC lists', name, listed(change), 'refused', said, kind='voc') for name, change, said in (
        ('binary', lambda text: b'\xff\xfe\x00' + text, r'train\.txt is no list of image names'),
        ('a blank line', lambda text: text.replace(b'train2', b'\ntrain2'), r"line 3 of .*train\.txt is ''.*awk"),
        ('trailing spaces', lambda text: text.replace(b'train2', b'train2  '), r"line 3 of .* is 'train2  '.*awk"),
        ('flags 1 and -1', lambda text: text.replace(b'\n', b' -1\n'), r"line 1 of .* is 'train0 -1'.*awk"),
        ('a name twice', lambda text: text + b'train2\n', r"train\.txt: .*'train2' .*twice"),
        ('nothing', lambda text: b'', r'train\.txt names no image'))),
)


def plant(fault: DataFault, folder: Path) -> Planted:
    """A set with one fault."""
    made = dict(coco=make_coco, voc=make_voc)[fault.kind](folder)
    fault.plant(made)
    if fault.kind == 'coco':
        made.write()
        fault.late(made)
    return made


def remove_pictures(folder: Path, count: int) -> None:
    """Training pictures disappear, the last ones first."""
    for each in range(TRAINED - count, TRAINED):
        (folder / 'img' / f'train{each}.png').unlink()




_OUTCOMES = dict(trains='trained on', said='trained on, and a line says so', refused='refused')


def table() -> str:
    """What comes of every fault, for docs/reliability.md."""
    rows: dict[tuple[str, str], list[str]] = {}
    for fault in FAULTS:
        rows.setdefault((fault.group, _OUTCOMES[fault.outcome]), []).append(fault.name)
    lines = [f'| {group} | {"; ".join(names)} | {outcome} |' for (group, outcome), names in rows.items()]
    return '\n'.join(['| fault | each of | outcome |', '|---|---|---|', *lines])


if __name__ == '__main__':
    print(table())
