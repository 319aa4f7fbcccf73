"""Sheets of detections: sizes, texts, truth, and what is refused."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.deploy.draw import draw_detections
from mgdet_plugin.deploy.sheet import SHEET_WIDTH, Box, class_colours, draw_boxes, read_rgb, scale_of, write_sheet
from tests.support.small_run import make_dataset, write_config

GREEN, GREY = (0, 200, 0), (128, 128, 128)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Config and random weights on a small set, of scores about 0.2."""
    folder = tmp_path_factory.mktemp('draw')
    config = write_config(folder / 'cfg.py', make_dataset(folder / 'data', 3), work_dir=str(folder))
    init_default_scope('mmdet')
    state = MODELS.build(Config.fromfile(config).model).state_dict()
    low = {name: tensor / 100 for name, tensor in state.items() if 'predict' in name}
    torch.save({**state, **low}, folder / 'w.pth')
    return config, folder / 'w.pth'


def draw(run, out, *args, **options):
    return draw_detections(*map(str, run), str(out), *args, **options)


def test_small_pictures_are_enlarged_and_photographs_are_not():
    assert scale_of((160, 120)) == 3 and scale_of((192, 192)) == 2 and scale_of((20, 10)) == 20
    assert scale_of((640, 480)) == scale_of((384, 200)) == scale_of((SHEET_WIDTH, 9)) == 1
    assert scale_of((4 * SHEET_WIDTH, 100)) == 0.25
    assert scale_of((4000, 300), 1) == 1 and scale_of((160, 120), 2) == 2 and scale_of((4096, 9), 8) == 2


def test_rows_have_their_own_heights(tmp_path):
    """Six equal pictures go three and three; large ones a row each, none padded to the largest."""
    write_sheet([Image.new('RGB', (384, 384))] * 6, tmp_path / 'a.png')
    assert Image.open(tmp_path / 'a.png').size == (3 * 384 + 8, 2 * 384 + 4)
    write_sheet([Image.new('RGB', size) for size in ((1000, 700), (900, 100))], tmp_path / 'b.png')
    assert Image.open(tmp_path / 'b.png').size == (1000, 804)


def count(picture, colour):
    return int((np.asarray(picture) == colour).all(-1).sum())


def test_boxes_and_texts_lie_where_they_belong():
    """Detections have a whole outline in their class's colour, the truth a dashed one; texts stay in the picture."""
    ground = Image.new('RGB', (100, 80), GREY)
    plain = np.asarray(draw_boxes(ground, [Box((20, 30, 60, 70), GREEN, '')], 1))
    assert (plain[30, 20:61] == GREEN).all() and (plain[30:71, 60] == GREEN).all() and (plain[29] == GREY).all()
    dashed = np.asarray(draw_boxes(ground, [Box((20, 30, 60, 70), GREEN, '', dashed=True)], 1))
    edge = {tuple(pixel) for pixel in dashed[30, 20:61].tolist()}
    assert edge == {GREEN, (255, 255, 255)} and (dashed[28] == GREY).all() and (dashed[50, 40] == GREY).all()
    for corners in ((0, 0, 5, 5), (95, 75, 100, 80), (-9, -9, 400, 400)):
        text = draw_boxes(ground, [Box(corners, GREEN, 'raccoon 0.50')], 1)
        assert text.size == (100, 80) and count(text, GREEN) > 500, corners  # the ground of the letters


@pytest.mark.parametrize('scale', [0.25, 1, 3])
def test_letters_have_one_height_at_every_scale(scale):
    drawn = draw_boxes(Image.new('RGB', (int(400 / scale), int(400 / scale)), GREY), [
        Box((9, 99 / scale, 9, 99 / scale), GREEN, 'dog')], scale)
    rows = (np.asarray(drawn) == GREEN).all(-1).any(1).nonzero()[0]
    assert drawn.width in (399, 400, 402) and 14 <= len(rows) <= 22


def test_letters_of_a_large_picture_grow_with_it_but_not_over_its_objects():
    for side, height in ((600, 40), (60, 20), (9, 14)):
        drawn = draw_boxes(Image.new('RGB', (4000, 3000), GREY), [Box((900, 900, 900, 900 + side), GREEN, 'dog')], 1)
        rows = (np.asarray(drawn)[:900] == GREEN).all(-1).any(1).sum()
        assert height <= rows <= 1.5 * height, side


def test_classes_have_colours_apart():
    assert class_colours(dict(classes='ab', palette=[(1, 2, 3), (4, 5, 6), (7, 8, 9)])) == [(1, 2, 3), (4, 5, 6)]
    for palette in (None, 'random', [(1, 2, 3)], [(1, 2, 3)] * 12):
        colours = np.array(class_colours(dict(classes=range(12), palette=palette)))
        apart = np.abs(colours[:, None] - colours).sum(-1) + 999 * np.eye(12)
        assert apart.min() > 60


def test_a_picture_is_turned_as_the_network_sees_it(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter clockwise
    Image.new('RGB', (40, 20), (250, 0, 0)).save(tmp_path / 'a.jpg', exif=turned)
    picture = read_rgb(str(tmp_path / 'a.jpg'))
    assert picture.size == (20, 40) and picture.getpixel((9, 9))[0] > 240 > 20 > picture.getpixel((9, 9))[2]


def test_truth_is_drawn_in_original_pixels(run, tmp_path):
    """The truth's dashes lie on the annotated rectangles, wherever the letterbox moved these."""
    assert draw(run, tmp_path / 'a.png', 1, 1.0, enlarge=1) == 0
    assert draw(run, tmp_path / 'b.png', 1, 1.0, enlarge=1, truth=True) == 0
    without, with_truth = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ('a.png', 'b.png'))
    assert without.shape == (60, 80, 3)
    drawn = (without != with_truth).any(-1)
    for channel in range(3):  # rectangles are pure red, green or blue on grey noise
        rectangle = without[..., channel] - without.sum(-1) // 3 > 100
        if rectangle.any():
            rows, columns = (rectangle.any(axis).nonzero()[0] for axis in (1, 0))
            assert drawn[rows[0] + 2:rows[-1] - 1, columns[0]:columns[0] + 2].any()


def test_concatenated_and_repeated_sets_are_drawn(run, tmp_path):
    cfg = Config.fromfile(run[0])
    leaf = cfg.test_dataloader.dataset
    data = Path(leaf.data_root)
    first, second = (json.loads((data / 'all.json').read_text()) for _ in range(2))
    for each in (*second['images'], *second['annotations']):
        each.update({key: each[key] + 100 for key in ('id', 'image_id') if key in each})
    (data / 'others.json').write_text(json.dumps(second))
    both = dict(first, **{key: first[key] + second[key] for key in ('images', 'annotations')})
    (data / 'both.json').write_text(json.dumps(both))
    cfg.test_evaluator.ann_file = str(data / 'both.json')
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[
        dict(type='RepeatDataset', times=2, dataset=dict(leaf, indices=1)),
        dict(leaf, ann_file='others.json', indices=2)])
    cfg.dump(tmp_path / 'concat.py')
    draw((tmp_path / 'concat.py', run[1]), tmp_path / 'a.png', 9, 1.0, enlarge=1)
    sheet = np.asarray(Image.open(tmp_path / 'a.png'))
    assert sheet.shape == (60, 4 * 84 - 4, 3)
    assert (sheet[:, :80] == sheet[:, 84:164]).all() and (sheet[:, :80] == sheet[:, 168:248]).all()


@pytest.mark.parametrize(('options', 'line'), [
    (dict(count=0), r'a sheet has 1 to 100 images .*, got 0'),
    (dict(count=101), r'got 101'),
    (dict(score_thr=1.5), r'the lowest score must be from 0 to 1, got 1\.5'),
    (dict(score_thr=float('nan')), r'got nan'),
    (dict(enlarge=0), r'a whole number from 1 to 8, got 0'),
    (dict(enlarge=9), r'got 9')])
def test_numbers_out_of_range_are_refused(options, line, run, tmp_path):
    with pytest.raises(UserError, match=line):
        draw(run, tmp_path / 'a.png', **options)


def test_weights_of_other_classes_are_refused_as_test_does(run, tmp_path):
    cfg = Config.fromfile(run[0])
    cfg.model.bbox_head.num_classes = 5
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / 'five.pth')
    with pytest.raises(UserError, match=r'five\.pth was trained on 5 classes, the config has 3'):
        draw((run[0], tmp_path / 'five.pth'), tmp_path / 'a.png')
    assert not (tmp_path / 'a.png').exists()
