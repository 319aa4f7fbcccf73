"""Old pictures: found in any folder, in one order, never with boxes, through every step that trains a detector."""
import copy
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.config import Config
from PIL import Image

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import OldImages, StagedDataset
from mgdet_plugin.datasets.old_images import old_pipeline, same_pictures
from mgdet_plugin.datasets.staged.sample_index import SampleIndex

LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
PACK = dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'augmented'))


def old_images(images: object, **kwargs: object) -> OldImages:
    """Not serialised, for which mmengine looks through all of the process's memory."""
    return OldImages(images, serialize_data=False, **kwargs)  # type: ignore[arg-type]


def draw(path: Path, seed: int = 0, size: tuple[int, int] = (64, 48), **kwargs: object) -> Path:
    """A picture (w, h) of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path, **kwargs)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures at three depths."""
    for seed, name in enumerate(('b.jpg', 'a/d.PNG', 'a/c/e.webp', 'a.bmp')):
        draw(tmp_path / 'old' / name, seed)
    return tmp_path / 'old'


def test_pictures_are_found_at_any_depth_in_one_order(folder: Path, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('Thumbs.db', 'notes.txt', 'b.xml', '.hidden.jpg', '.cache/f.jpg'):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b'none')
    draw(tmp_path / 'elsewhere' / 'g.jpg', 4)
    (folder / 'z').symlink_to(tmp_path / 'elsewhere')
    (folder / 'a' / 'round').symlink_to(folder)  # a ring
    (folder / 'link.jpg').symlink_to(tmp_path / 'elsewhere' / 'g.jpg')
    listed = ['a.bmp', 'a/c/e.webp', 'a/d.PNG', 'b.jpg', 'link.jpg', 'z/g.jpg']
    old = old_images(str(folder))
    assert old.names == listed and old.folder == str(folder)
    assert old.get_data_info(2) == dict(img_path=str(folder / 'a/d.PNG'), file_name='a/d.PNG', img_id=2, width=64,
                                        height=48, instances=[], sample_idx=2)
    walk = os.walk
    monkeypatch.setattr(os, 'walk', lambda *args, **kwargs: (
        (place, folders, files[::-1]) for place, folders, files in walk(*args, **kwargs)))
    assert old_images(str(folder)).names == listed
    assert old_images(old.paths[2:4]).names == ['a/d.PNG', 'b.jpg']


@pytest.mark.parametrize(('name', 'message'), [
    ('none', r'none is not there \(seen from .*\); give a folder of pictures'),
    ('old/b.jpg', 'b.jpg is a file; give a folder'), ('empty', r'empty holds no picture \(.jpg, .*\); give')])
def test_where_no_pictures_are(folder: Path, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty' / 'a.json').write_text('{}')
    with pytest.raises(UserError, match=message):
        old_images(str(tmp_path / name))


def test_sizes_are_those_of_upright_pictures(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    paths = [draw(tmp_path / f'turned.{kind}', exif=exif) for kind in ('jpg', 'png', 'webp')]
    os.mkfifo(tmp_path / 'pipe.jpg')
    (tmp_path / 'dangling.jpg').symlink_to(tmp_path / 'nowhere')
    (tmp_path / 'text.jpg').write_text('text')
    infos = {info['file_name']: (info['width'], info['height']) for info in map(
        old_images(str(tmp_path)).get_data_info, range(6))}
    assert infos == {'dangling.jpg': (0, 0), 'pipe.jpg': (0, 0), 'text.jpg': (0, 0),
                     **{path.name: (48, 64) for path in paths}}
    loaded = TRANSFORMS.build(LOAD[0])(dict(img_path=str(paths[0])))
    assert loaded['img_shape'] == (64, 48)


def test_a_dataset_gives_its_pictures_alone(make_coco: Callable[..., Config], tmp_path: Path) -> None:
    leaf = make_coco().train_dataloader.dataset
    wrapped = dict(type='RepeatDataset', times=3, dataset=leaf)
    old = DATASETS.build(dict(type='OldImages', images=wrapped, pipeline=leaf.pipeline))
    assert old.paths == [str(tmp_path / 'img' / name) for name in ('1.jpg', '2.jpg')]
    assert [len(old[index]['gt_bboxes']) for index in (0, 1)] == [0, 0]
    assert len(DATASETS.build(leaf)[0]['gt_bboxes']) == 2  # it has some


def test_what_a_loader_would_skip_is_left_out(folder: Path) -> None:
    (folder / 'b.jpg').write_text('broken')
    pipeline = [dict(type='LoadReadableImage', skip=0.5)]
    old = old_images(str(folder), pipeline=pipeline)
    assert old.names == ['a.bmp', 'a/c/e.webp', 'a/d.PNG'] and len(old_images(str(folder))) == 4
    (folder / 'a.bmp').write_text('broken since')
    seen = old.seen_by([*LOAD, dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1)), PACK])
    assert seen.names == old.names and seen.test_mode and not old.test_mode
    sample = seen[1]['data_samples']
    assert sample.img_id == 1 and len(sample.gt_instances.bboxes) == 0


def test_the_new_sets_own_are_left_out(folder: Path, tmp_path: Path) -> None:
    for index in range(10):
        draw(folder / f'{index}.png', 10 + index)
    old = old_images(str(folder))
    copied, linked = tmp_path / 'copy.jpg', tmp_path / 'link.webp'
    copied.write_bytes((folder / 'b.jpg').read_bytes())
    linked.symlink_to(folder / 'a/c/e.webp')
    other = draw(tmp_path / 'other.bmp', 5)  # as large as a.bmp, and another picture
    assert other.stat().st_size == (folder / 'a.bmp').stat().st_size
    missing = str(tmp_path / 'missing.jpg')
    new = [str(copied), str(linked), str(other), missing]
    assert [old.names[index] for index in same_pictures(old.paths, new)] == ['a/c/e.webp', 'b.jpg']
    with pytest.raises(UserError, match=r'2 of 14 pictures are those of the training set itself \(first: a/c/e.webp\)'):
        old.leave_out(new)
    assert old.leave_out([str(other), missing]) == 0 and len(old) == 14
    assert old.leave_out(new[:1]) == 1 and len(old) == 13 and 'b.jpg' not in old.names
    assert old.names[-1] == 'a/d.PNG'


STEPS = [
    dict(type='Letterbox', scale=(64, 64)), dict(type='RandomFlip', prob=1.0), dict(type='PhotoMetricDistortion'),
    dict(type='YOLOXHSVRandomAug'), dict(type='DropDegenerateBoxes'), dict(type='ClipBoxes'),
    dict(type='RandomAffine'), dict(type='Expand', prob=1.0), dict(type='MinIoURandomCrop'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True), dict(type='Pad', size_divisor=32),
    dict(type='RandomCrop', crop_size=(32, 32)), dict(type='CutOut', n_holes=2, cutout_shape=(8, 8)),
    dict(type='RandomShift', prob=1.0), dict(type='FilterAnnotations', min_gt_bbox_wh=(2, 2)),
    dict(type='RandomChoice', transforms=[[dict(type='RandomCrop', crop_size=(32, 32))],
                                          [dict(type='FilterAnnotations', min_gt_bbox_wh=(2, 2))]]),
    dict(type='RandomApply', prob=1.0, transforms=dict(type='FilterAnnotations', min_gt_bbox_wh=(2, 2))),
    dict(type='Compose', transforms=[dict(type='Compose', transforms=[
        dict(type='mmdet.FilterAnnotations', min_gt_bbox_wh=(2, 2))])]),
]


@pytest.mark.parametrize('step', STEPS, ids=lambda step: step['type'])
def test_steps_take_pictures_without_boxes(folder: Path, step: dict) -> None:
    pipeline = [*LOAD, step, PACK]
    given = copy.deepcopy(pipeline)
    old = old_images(str(folder), pipeline=old_pipeline(pipeline), test_mode=True)
    assert pipeline == given
    for seed in range(5):
        random.seed(seed)
        np.random.seed(seed)
        sample = old[seed % 4]  # test mode: None would raise
        assert sample['inputs'].shape[0] == 3 and sample['data_samples'].gt_instances.bboxes.shape == (0, 4)


def test_albu_keeps_pictures_without_boxes() -> None:
    albu = dict(type='Albu', transforms=[dict(type='RandomCrop', height=8, width=8)], skip_img_without_anno=True)
    assert old_pipeline([albu]) == [dict(albu, skip_img_without_anno=False)]


def test_old_pictures_are_mixed_with_old_ones(folder: Path) -> None:
    mosaic = dict(type='StagedMix', name='mosaic', transforms=[dict(type='Mosaic', img_scale=(64, 64))])
    mixup = dict(type='StagedMix', name='mixup', transforms=[dict(type='MixUp', img_scale=(64, 64))])
    pipeline = old_pipeline([*LOAD, mosaic, dict(type='Letterbox', scale=(64, 64)), mixup, PACK])
    assert pipeline == [*LOAD, mosaic, dict(type='Letterbox', scale=(64, 64)), PACK]
    dataset = StagedDataset(dict(type='OldImages', images=str(folder), pipeline=pipeline), [{}, dict(mosaic=1.0)])
    plain, mixed, again = (dataset[SampleIndex(2, 0, stage, 7)] for stage in (0, 1, 1))
    assert plain['data_samples'].augmented == () and mixed['data_samples'].augmented == ('mosaic', )
    assert not mixed['inputs'].equal(plain['inputs']) and mixed['inputs'].equal(again['inputs'])
    assert len(mixed['data_samples'].gt_instances.bboxes) == 0


@pytest.mark.parametrize('serialize', [True, False])
def test_a_subset_has_steps_of_its_own(folder: Path, serialize: bool) -> None:
    """mmengine's copies of one process share what they noted: another subset's steps, or in the place of one that is
    gone any object that lies where it lay."""
    whole = DATASETS.build(dict(type='OldImages', images=str(folder), pipeline=LOAD[:1], serialize_data=serialize))
    one, two = whole.get_subset([0]), whole.get_subset([1, 2])
    steps = [each.pipeline.transforms[0] for each in (whole, one, two)]
    assert len({id(step) for step in steps}) == 3 and len({type(step) for step in steps}) == 1
    assert [len(each) for each in (whole, one, two)] == [4, 1, 2]
