"""The command: its line, its sheet, what it refuses, and who points to it."""
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from mgdet_plugin.cli.prepare.look import look_command
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.deploy.sheet import rgb_of_input
from mgdet_plugin.plan.plan import Plan
from mgdet_plugin.prepare.batches.stage_batches import PlainBatches
from mgdet_plugin.prepare.batches.view import View, place_of
from mgdet_plugin.runs import mmdet_tools
from tests.support.mmdet_detectors import YOLOV3
from tests.support.small_run import make_dataset, write_config

STAGES = [dict(name='head', epochs=2, freeze_level=2, lr=1e-4), dict(name='all', epochs=3, freeze_level=0, lr=1e-4,
                                                                     mosaic_prob=1.0, mixup_prob=0.5)]


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """Two stages on eight small images."""
    folder = tmp_path_factory.mktemp('look')
    return write_config(folder / 'cfg.py', make_dataset(folder / 'data'), base='mgdet_model5_staged.py', stages=STAGES,
                        work_dir=str(folder / 'run'))


def test_a_stage_is_said_in_a_line_and_drawn(config, capsys):
    assert look_command([str(config), '--stage', 'all', '--samples', '20']) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("stage 2 'all' of 2 (epochs 3 to 5), epoch 3 to 5, seed 1 (the config's): 20 new images, 20 "
                           'mosaic (100.0%, planned 100%), ')
    assert ' mixup (' in line and 'planned 50%); ' in line and ' cells; targets decode to the truth within ' in line
    path = config.parent / 'run/look/stage2_epoch3.png'
    assert line.endswith(f'drawn in {path}')
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[1] > 1000 and (sheet == (255, 255, 255)).all(-1).any() and sheet.std() > 20


def test_a_run_without_stages_is_drawn_as_it_loads_its_samples(config, tmp_path, capsys):
    """Its own first batch, bit for bit, as two processes load it."""
    words = ['--samples', '20', '--out', str(tmp_path / 'a.png'), '--cfg-options', 'stages=None',
             'train_cfg.max_epochs=2', 'train_dataloader.num_workers=2']
    assert look_command([str(config), *words]) == 0
    line = capsys.readouterr().out
    assert line.startswith("no stages (2 epochs), epoch 1 to 3, seed 1 (the config's): 20 images; ")
    assert 'targets decode to the truth within' in line and 'mosaic' not in line and Image.open(tmp_path / 'a.png')
    cfg = Config.fromfile(config)
    cfg.train_dataloader.num_workers = 2
    batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, 1)))
    seen = [each.inputs for each in PlainBatches(cfg, 0, 1).samples(len(batch['inputs']))]
    assert len(seen) > 1 and all(map(torch.equal, seen, batch['inputs']))


def test_detections_are_drawn_beside(config, tmp_path, capsys):
    state = MODELS.build(Config.fromfile(config).model).state_dict()
    torch.save(dict(meta=dict(seed=7), state_dict=state), tmp_path / 'w.pth')
    sizes = []
    for more in ([], ['--checkpoint', str(tmp_path / 'w.pth'), '--cfg-options', 'randomness.seed=None']):
        assert look_command([str(config), '--samples', '1', '--out', str(tmp_path / 'a.png'), *more]) == 0
        sizes.append(Image.open(tmp_path / 'a.png').size)
    assert sizes[1][0] == 2 * sizes[0][0] + 4
    assert "seed 7 (the checkpoint's): 1 new image, 0 mosaic" in capsys.readouterr().out


def test_other_detectors_are_shown_their_truth(config, tmp_path, capsys):
    cfg = Config.fromfile(config)
    cfg.model = Config(dict(model=YOLOV3)).model
    cfg.stages = [dict(name='all', epochs=1, freeze_level=0, lr=1e-4)]
    cfg.dump(tmp_path / 'yolo.py')
    assert look_command([str(tmp_path / 'yolo.py'), '--samples', '2', '--out', str(tmp_path / 'a.png')]) == 0
    line = capsys.readouterr().out
    assert '4 objects; drawn in' in line and 'cells' not in line


def test_a_picture_is_drawn_in_rgb():
    inputs = torch.zeros(3, 2, 4)
    inputs[0], inputs[1, 0, 3] = 200.4, 300.0
    picture = rgb_of_input(inputs)
    assert picture.size == (4, 2) and picture.getpixel((0, 0)) == (0, 0, 200) and picture.getpixel((3, 0))[1] == 255


@pytest.mark.parametrize(('words', 'line'), [
    (['--stage', '3'], r'the stage must be a number from 1 to 2 or one of head, all, got .3.'),
    (['--stage', '0'], 'got .0.'),
    (['--epoch', '6'], 'the plan has 5 epochs, got 6'),
    (['--epoch', '0'], 'an epoch must be a whole number from 1, as the log counts, got 0'),
    (['--seed', '-1'], 'the seed must be a whole number from 0, got -1'),
    (['--samples', '0'], 'from 1 to 1,000,000 samples can be looked at, got 0'),
    (['--score-thr', '2'], 'the lowest score must be from 0 to 1, got 2.0'),
    (['--checkpoint', 'nowhere.pth'], r'nowhere\.pth'),
    (['--out', 'nowhere/a.png'], 'there is no folder nowhere'),
    (['--stage', '1', '--cfg-options', 'stages=None'], 'the config has no stages, got --stage 1'),
    (['--cfg-options', 'stages=None', 'train_cfg.max_epochs=2', '--epoch', '3'], 'the run has 2 epochs, got 3'),
    (['--cfg-options', 'train_dataloader=None'], r'cfg\.py has no train_dataloader; inherit a config that has'),
    (['--cfg-options', 'model=None'], r'cfg\.py has no model; inherit a config that has'),
    (['--cfg-options', 'train_dataloader.dataset.ann_file=gone.json'], r'gone\.json')])
def test_what_cannot_be_looked_at_is_one_line(config, words, line):
    with pytest.raises(UserError, match=line):
        look_command([str(config), *words])


def test_an_epoch_tells_its_stage():
    plan = Plan.from_cfg(Config(dict(stages=STAGES)))
    places = [place_of(plan, View(stage, epoch))[:2] for stage, epoch in (
        (None, None), (None, 2), (None, 3), ('2', None), ('head', 2), ('all', 9))]
    assert places == [(0, 0), (0, 1), (1, 2), (1, 2), (0, 1), (1, 8)]


def test_browse_dataset_says_who_shows_mixes(config, monkeypatch, capsys):
    monkeypatch.setattr(mmdet_tools, 'run_mmdet_script', lambda name, words: None)
    mmdet_tools.run_tool('analysis_tools/browse_dataset', [str(config)])
    assert 'look CFG draws mosaics, mixups and old images' in capsys.readouterr().err


def test_what_is_drawn_is_a_png(tmp_path):
    with pytest.raises(UserError, match=r'must end in \.png, got'):
        look_command(['mgdet_nano_keep', '--out', str(tmp_path / 'l.jpg')])
