"""What preflight says of old pictures: one line for each thing that is wrong with them."""
import os
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmengine.registry import init_default_scope
from PIL import Image

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import Inspector
from mgdet_plugin.engine.keep_check import check_keep

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
            dict(type='Letterbox', scale=(64, 64)), dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1)),
            dict(type='PackDetInputs', meta_keys=('img_id', ))]
READABLE = [dict(type='LoadReadableImage', skip=0.1), *PIPELINE[1:]]


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders ``old`` of 20 pictures, ``new`` of 5 and ``other`` of 2 in the current one."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.chdir(tmp_path)
    init_default_scope('mmdet')
    for seed, (folder, count) in enumerate((('old', 20), ('new', 5), ('other', 2))):
        Path(folder).mkdir()
        for index in range(count):
            noise = np.random.default_rng((seed, index)).integers(0, 255, (24, 32, 3), np.uint8)
            Image.fromarray(noise).save(f'{folder}/{index:02}.png')


def said(images: Any = 'old', held_out: Any = 0.2, images_used: int | None = None, pipeline: Any = PIPELINE,
         new: str = 'new') -> list[str]:
    return list(check_keep(images, held_out, images_used, pipeline, [str(path) for path in sorted(Path(new).iterdir())],
                           Inspector()))


def refused(message: str, **kwargs: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        said(**kwargs)
    assert '\n' not in str(caught.value)


def huge(path: Path) -> None:
    """A PNG's header that declares more pixels than any memory holds."""
    content = bytearray(path.read_bytes())
    content[16:24] = (30_000).to_bytes(4, 'big') * 2
    content[29:33] = crc32(content[12:29]).to_bytes(4, 'big')
    path.write_bytes(content)


def test_a_sound_folder_needs_no_line() -> None:
    Path('old/00.txt').write_text('1 0.5 0.5 0.1 0.1')  # a label
    assert said() == said(held_out='other') == said(held_out=0.0) == []


def test_places_without_pictures() -> None:
    Path('empty').mkdir()
    refused(r'^keep.images: gone is not there \(seen from', images='gone')
    refused(r'^keep.images: old/00.png is a file', images='old/00.png')
    refused(r'^keep.images: empty holds no picture', images='empty')
    refused(r'^keep.held_out: empty holds no picture', held_out='empty')
    refused(r'^keep.images: .*gone.json', images=dict(type='CocoDataset', ann_file='gone.json'))


def test_too_few() -> None:
    for index in range(1, 20):
        Path(f'old/{index:02}.png').unlink()
    refused(r'keep.held_out 0.2 of 1 picture leaves none to train on')
    assert said(held_out=0.0, images_used=5) == [
        'keep.images_used is 5 and 1 pictures are there to train on: all are used']


@pytest.mark.parametrize(('damage', 'message'), [
    (lambda path: path.write_bytes(path.read_bytes()[:100]), 'cut short or no picture'),
    (lambda path: path.write_bytes(b''), 'empty'), (huge, '900,000,000 pixels declared'),
    (lambda path: (path.unlink(), os.mkfifo(path)), 'no file'),
    (lambda path: (path.unlink(), path.symlink_to('gone')), 'no file')])
def test_pictures_that_cannot_be_read(damage: Any, message: str) -> None:
    damage(Path('old/03.png'))
    found = rf'1 of 20 pictures in old cannot be read.*: 03.png \(id 3\): {message}'
    refused(rf'^keep.images: {found}.*; fetch them again or take them out$')
    [line] = said(pipeline=READABLE)
    assert line.startswith('keep.images: 1 of 20 pictures in old cannot be read and will be skipped: 03.png')
    for name in ('04', '05'):
        damage(Path(f'old/{name}.png'))
    refused('^keep.images: 3 of 20 pictures', pipeline=READABLE)
    list(check_keep('old', 0.2, None, PIPELINE, []))  # another process of the launch


def test_the_training_sets_own_pictures() -> None:
    refused(r'^keep.images: 20 of 20 pictures are those of the training set itself \(first: 00.png\)', new='old')
    Path('old/new.png').write_bytes(Path('new/00.png').read_bytes())
    assert said(images_used=17) == ["keep.images: 1 of 21 pictures are the training set's own and are left out",
                                    'keep.images_used is 17 and 16 pictures are there to train on: all are used']
    refused('^keep.held_out: 5 of 5 pictures are those of the training set', held_out='new')


def test_held_out_pictures_that_are_trained_on() -> None:
    Path('other/copy.png').write_bytes(Path('old/07.png').read_bytes())
    refused(r'^keep.held_out: 1 of 3 pictures are in keep.images, too \(first: copy.png\)', held_out='other')


@TRANSFORMS.register_module(force=True)
class NeedsABox(BaseTransform):
    """Cuts out the first object."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        assert len(results['gt_bboxes'])
        return results


def test_a_step_that_cannot_do_without_boxes() -> None:
    refused(r'step 2 of a pipeline, NeedsABox, cannot take old/00.png',
            pipeline=[*PIPELINE[:2], dict(type='NeedsABox'), *PIPELINE[2:]])
