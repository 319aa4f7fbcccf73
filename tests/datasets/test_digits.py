"""The embedded digits: deterministic, sound, made as a whole or not at all."""
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import DIGIT_CLASSES, check_datasets, digits, ensure_digits, ensure_embedded_data

CONFIGS = Path(__file__).parents[2] / 'configs/_base_/datasets'
ALL_IMAGES = dict(digits.DOMAINS)


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the first images of each split only; an image does not depend on how many follow."""
    monkeypatch.setattr(digits, 'DOMAINS', {
        name: dataclasses.replace(domain, counts=(8, 4, 4)) for name, domain in ALL_IMAGES.items()})


def files_of(root: Path) -> dict[str, bytes]:
    """Name and content of every file under ``root``."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def boxes_of(root: Path, domain: str, split: str) -> tuple[dict[str, Any], list[tuple[np.ndarray, list[int]]]]:
    """A split's file, and for each annotation its image (H, W, 3) and box xywh."""
    content = json.loads((root / domain / f'{split}.json').read_text())
    images = {image['id']: np.asarray(Image.open(root / domain / split / image['file_name']))
              for image in content['images']}
    return content, [(images[annotation['image_id']], annotation['bbox']) for annotation in content['annotations']]


def test_two_runs_make_the_same_files(tmp_path: Path) -> None:
    first, second = files_of(ensure_digits(tmp_path / 'a')), files_of(ensure_digits(tmp_path / 'b'))
    assert len(first) == 1 + 2 * (3 + 16)
    assert first == second


def test_version_1_draws_these_boxes(tmp_path: Path) -> None:
    """When this fails the drawing changed: raise ``VERSION``, or sets made before are kept."""
    digits.make_digits(tmp_path, 'source')
    content, _ = boxes_of(tmp_path, 'source', 'train')
    drawn = [(a['category_id'], *a['bbox']) for a in content['annotations'] if a['image_id'] < 2]
    assert (digits.VERSION, drawn) == (1, [
        (3, 42, 5, 21, 35), (8, 10, 124, 19, 28), (5, 104, 0, 21, 25), (6, 156, 138, 35, 51), (5, 110, 128, 19, 24),
        (7, 23, 86, 53, 71), (7, 68, 111, 25, 36), (7, 129, 43, 39, 67), (6, 51, 50, 17, 28), (5, 21, 13, 23, 36),
        (1, 77, 62, 37, 53), (2, 141, 119, 20, 32)])


@pytest.mark.parametrize(('domain', 'shown'), [('source', '01234567'), ('target', '456789')])
def test_content(tmp_path: Path, domain: str, shown: str) -> None:
    digits.make_digits(tmp_path, domain)
    for split, count in (('train', 8), ('val', 4), ('test', 4)):
        content, boxes = boxes_of(tmp_path, domain, split)
        assert [category['name'] for category in content['categories']] == list(DIGIT_CLASSES)
        assert len(content['images']) == count
        assert {DIGIT_CLASSES[a['category_id'] - 1] for a in content['annotations']} <= set(shown)
        per_image = np.bincount([a['image_id'] for a in content['annotations']], minlength=count)
        assert per_image.min() >= 1 and per_image.max() <= 9
        for image, (x, y, w, h) in boxes:
            assert image.shape == (192, 192, 3)
            assert min(x, y) >= 0 and x + w <= 192 and y + h <= 192
            assert 4 <= w <= 100 and 20 <= h <= 90


@pytest.mark.parametrize(('domain', 'ink_is_darker'), [('source', True), ('target', False)])
def test_boxes_hold_the_ink_and_fit_it(tmp_path: Path, domain: str, ink_is_darker: bool) -> None:
    digits.make_digits(tmp_path, domain)
    _, boxes = boxes_of(tmp_path, domain, 'train')
    for image, (x, y, w, h) in boxes:
        grey = image.mean(-1)
        ink = grey < 140 if ink_is_darker else grey > 140
        inside = ink[y:y + h, x:x + w]
        assert inside.mean() > 0.15
        for edge in (inside[:3], inside[-3:], inside[:, :3], inside[:, -3:]):
            assert edge.any()  # tight: each side touches ink


def test_digits_hardly_overlap(tmp_path: Path) -> None:
    digits.make_digits(tmp_path, 'source')
    content = json.loads((tmp_path / 'source/train.json').read_text())
    for image in content['images']:
        boxes = [tuple(a['bbox']) for a in content['annotations'] if a['image_id'] == image['id']]
        overlaps = [digits._overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
        assert all(overlap <= 0.05 for overlap in overlaps)


def test_overlap_typed_in() -> None:
    assert digits._overlap((0, 0, 10, 10), (5, 0, 10, 10)) == pytest.approx(1 / 3)
    assert digits._overlap((0, 0, 10, 10), (10, 0, 10, 10)) == 0


def test_handwritten_samples_are_in_one_split_only() -> None:
    samples = digits._handwritten_samples()
    seen = {split: {sample.tobytes() for part in samples[split].values() for sample in part} for split in samples}
    assert sum(len(part) for parts in samples.values() for part in parts.values()) == 1797
    assert not seen['train'] & (seen['val'] | seen['test']) and not seen['val'] & seen['test']
    assert min(len(part) for parts in samples.values() for part in parts.values()) >= 20


def test_full_size_of_the_set() -> None:
    assert {name: (domain.digits, domain.counts) for name, domain in ALL_IMAGES.items()} == {
        'source': ((0, 1, 2, 3, 4, 5, 6, 7), (600, 100, 100)), 'target': ((4, 5, 6, 7, 8, 9), (200, 100, 100))}


def test_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ensure_digits(tmp_path / 'set')
    monkeypatch.setattr(digits, 'make_digits', lambda *args: pytest.fail('made again'))
    assert ensure_digits(tmp_path / 'set') == root
    assert sorted(path.name for path in tmp_path.iterdir()) == ['set']


def test_another_version_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ensure_digits(tmp_path / 'set')
    (root / 'source/train/left.jpg').write_bytes(b'')
    monkeypatch.setattr(digits, 'VERSION', digits.VERSION + 1)
    ensure_digits(root)
    assert json.loads((root / 'stamp.json').read_text())['version'] == digits.VERSION
    assert not (root / 'source/train/left.jpg').exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['set']


def test_broken_off_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_off(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, '_draw', broken_off)
    with pytest.raises(KeyboardInterrupt):
        ensure_digits(tmp_path / 'set')
    assert list(tmp_path.iterdir()) == []


def test_left_overs_of_killed_runs_are_removed_when_old(tmp_path: Path) -> None:
    for name, age in (('.set.old.tmp', 7200), ('.set.new.tmp', 0)):
        (tmp_path / name).mkdir()
        then = (tmp_path / name).stat().st_mtime - age
        os.utime(tmp_path / name, (then, then))
    ensure_digits(tmp_path / 'set')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['.set.new.tmp', 'set']


def test_lost_race_keeps_the_winners_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = digits.make_digits

    def make_while_another_finishes(root: Path, domain: str) -> Path:
        monkeypatch.setattr(digits, 'make_digits', make)
        ensure_digits(tmp_path / 'set')
        (tmp_path / 'set/winner').write_text('')
        return make(root, domain)

    monkeypatch.setattr(digits, 'make_digits', make_while_another_finishes)
    assert (ensure_digits(tmp_path / 'set') / 'winner').exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['set']


def test_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / 'mine.txt').write_text('mine')
    with pytest.raises(UserError, match='was not made as the embedded digits'):
        ensure_digits(tmp_path)
    assert files_of(tmp_path) == {'mine.txt': b'mine'}


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot write the embedded digits'):
        ensure_digits(tmp_path / 'file' / 'set')


def test_without_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(UserError, match=r'need scikit-learn.*\[demo\]'):
        ensure_digits(tmp_path / 'data' / 'set')
    assert list(tmp_path.iterdir()) == []


def test_unknown_domain(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'letters'; there are source, target"):
        digits.make_digits(tmp_path, 'letters')


def test_made_for_a_config_that_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ensure_embedded_data(Config.fromfile(CONFIGS / 'coco_letterbox.py')) == []
    assert list(tmp_path.iterdir()) == []
    cfg = Config.fromfile(CONFIGS / 'digits_target.py')
    assert ensure_embedded_data(cfg) == [Path('data/mgdet_digits')]
    cfg.train_dataloader.batch_size = 4
    reports = check_datasets(cfg)
    assert [(report.name, report.images, report.lines()) for report in reports] == [
        (name, images, [f'{name}: no box of 4 of 10 classes: 0, 1, 2, 3'])
        for name, images in (('train', 8), ('val', 4), ('test', 4))]
