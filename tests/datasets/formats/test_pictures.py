"""Pictures are read before training as training reads them: what fails is named, and seen ones are remembered."""
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from mmdet.registry import DATASETS
from mmengine.config import Config
from PIL import Image

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import Inspector, LoadReadableImage, StagedDataset, check_datasets
from mgdet_plugin.datasets.formats import pictures
from mgdet_plugin.datasets.transforms import load_readable_image

MakeSet = Callable[..., Config]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


def cut_short(path: Path) -> None:
    """Half of what a file holds."""
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def bomb(path: Path) -> None:
    """A PNG's header that declares more pixels than any memory holds."""
    Image.new('L', (1, 1)).save(path, 'png')
    content = bytearray(path.read_bytes())
    content[16:24] = (30_000).to_bytes(4, 'big') * 2
    content[29:33] = crc32(content[12:29]).to_bytes(4, 'big')
    path.write_bytes(content)


@pytest.mark.parametrize(('damage', 'message'), [
    (cut_short, 'cut short or no picture'),
    (lambda path: path.write_bytes(b''), 'empty'),
    (lambda path: path.write_text('<svg/>'), 'cut short or no picture'),
    (lambda path: (path.unlink(), path.mkdir()), 'no file'),
    (lambda path: (path.unlink(), os.mkfifo(path)), 'no file'),
    (bomb, '900,000,000 pixels declared'),
])
def test_unreadable_pictures_are_named(make_coco: MakeSet, tmp_path: Path, damage: Callable[[Path], object],
                                       message: str) -> None:
    cfg = make_coco()
    damage(tmp_path / 'img' / '2.jpg')
    with pytest.raises(UserError, match=rf'train: 1 of 2 pictures in .*: 2.jpg \(id 2\): {message}.*SHARE.* 0.5$'):
        check_datasets(cfg, inspector=Inspector())
    with pytest.raises(UserError, match=rf'val: 1 of 2 .*{message}.*take their records out$'):
        check_datasets(cfg, ['val'], Inspector())


def test_a_loader_that_reads_none_is_named(make_coco: MakeSet, tmp_path: Path) -> None:
    cfg = make_coco()
    for path in (tmp_path / 'img').glob('*.jpg'):
        cut_short(path)
    with pytest.raises(UserError, match=r'train: LoadImageFromFile reads none of 2 pictures .*; see its imdecode'):
        check_datasets(cfg, inspector=Inspector())


def test_a_share_of_them_is_left_out_of_training_alone(make_coco: MakeSet, tmp_path: Path) -> None:
    cfg = make_coco()
    leaf = cfg.train_dataloader.dataset
    leaf.pipeline[0] = dict(type='LoadReadableImage', skip=0.4)
    cut_short(tmp_path / 'img' / '2.jpg')
    with pytest.raises(UserError, match='1 of 2 pictures'):
        check_datasets(cfg, ['train'], Inspector())
    leaf.pipeline[0]['skip'] = 0.5
    line, = check_datasets(cfg, ['train'], Inspector())[0].lines()
    assert 'cannot be read and will be skipped: 2.jpg (id 2): cut short' in line
    dataset = StagedDataset(DATASETS.build(leaf))
    assert [Path(dataset[index]['img_path']).name for index in (0, 1)] == ['1.jpg', '1.jpg']
    cfg.val_dataloader.dataset.pipeline[0] = leaf.pipeline[0]
    with pytest.raises(UserError, match='val: LoadReadableImage leaves pictures out, and this set is measured on'):
        check_datasets(cfg, ['val'], Inspector())
    with pytest.raises(UserError, match='skip must be a share from 0 to 1, got 2'):
        LoadReadableImage(skip=2)


def test_many_unreadable_pictures_have_a_line_each(make_coco: MakeSet, tmp_path: Path) -> None:
    cfg = make_coco(lambda content: content['images'].extend(
        dict(id=i, file_name=f'{i}.jpg', width=64, height=48) for i in range(3, 15)))
    for i in range(3, 15):
        (tmp_path / 'img' / f'{i}.jpg').write_bytes(b'no picture')
    said: list[str] = []
    with pytest.raises(UserError, match=r'train: 12 of 14 pictures .*12.jpg .* and 2 more'):
        check_datasets(cfg, inspector=Inspector(say=said.append))
    assert len(said) == 12 and said[-1].startswith('train: cannot read 14.jpg (id 14): cut short')


@pytest.mark.parametrize(('other', 'turned'), [((32, 24), False), ((48, 64), True)])
def test_sizes_that_disagree(make_coco: MakeSet, tmp_path: Path, other: tuple[int, int], turned: bool) -> None:
    cfg = make_coco()
    for name in ('2.jpg', '1.jpg'):
        Image.new('RGB', other).save(tmp_path / 'img' / name)
        if name == '2.jpg':
            line, = check_datasets(cfg, inspector=Inspector())[0].lines()
            assert line.startswith('train: 1 of 2 pictures are not of the size that their records say (first: 2.jpg is '
                                   f'{other[0]} x {other[1]}, its record says 64 x 48)')
            assert ('1 seem turned by 90 degrees' in line) == turned
    with pytest.raises(UserError, match=r'train: 2 of 2 pictures .*correct the sizes'):
        check_datasets(cfg, inspector=Inspector())


def test_an_upright_flag_counts_as_the_loader_takes_it(make_coco: MakeSet, tmp_path: Path) -> None:
    cfg = make_coco()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / 'img' / '2.jpg', exif=exif)
    assert '1 seem turned' in check_datasets(cfg, inspector=Inspector())[0].lines()[0]
    cfg.train_dataloader.dataset.pipeline[0]['color_type'] = 'color_ignore_orientation'
    assert check_datasets(cfg, ['train'], Inspector())[0].lines() == []


def test_time_is_bounded_and_what_was_seen_remembered(make_coco: MakeSet, tmp_path: Path, cache: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = make_coco()
    assert check_datasets(cfg, ['train'], Inspector(budget=-1))[0].lines()[0].startswith(
        'train: 2 of 2 pictures were not looked at')
    check_datasets(cfg, inspector=Inspector())
    assert not cache.exists()  # that took no time
    monkeypatch.setattr(pictures, '_REMEMBER', 0)
    check_datasets(cfg, inspector=Inspector())
    memory, = (cache / 'mgdet/pictures').iterdir()
    assert set(json.loads(memory.read_text())) == {'1.jpg', '2.jpg'}
    Image.new('RGB', (64, 48), 'red').save(tmp_path / 'img' / '2.jpg')  # a changed file is looked at again
    assert check_datasets(cfg, ['train'], Inspector(budget=-1))[0].lines()[0].startswith('train: 1 of 2 pictures were')
    memory.write_text('[')
    assert check_datasets(cfg, ['train'], Inspector())[0].lines() == []


def test_a_picture_that_is_skipped_is_told_before_training_and_not_again(tmp_path, monkeypatch):
    """Each time it is drawn, the log's file has it."""
    said = []
    monkeypatch.setattr(load_readable_image, 'print_log', lambda text, logger, level: said.append((text, level)))
    (tmp_path / 'a.jpg').write_bytes(b'no picture')
    assert LoadReadableImage().transform(dict(img_path=str(tmp_path / 'a.jpg'))) is None
    [(text, level)] = said
    assert 'a.jpg cannot be read and is skipped' in text and level == logging.INFO
