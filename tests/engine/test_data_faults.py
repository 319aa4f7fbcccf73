"""Every fault of data comes out as it should: trained on, said, or refused in one line by what starts a training."""
from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.registry import DATASETS, METRICS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import StagedDataset
from mgdet_plugin.engine.mmdet_scripts import parse_like_mmdet
from mgdet_plugin.engine.preflight import prepare_train
from tests.support.data_faults import FAULTS, NAMES, DataFault, plant, remove_pictures, table
from tests.support.small_run import ROOT, run_tool, write_config

PATIENCE = 300  # seconds, after which a fault hangs
_VOC = dict(type='VOCDataset', data_prefix=dict(sub_data_root=''), metainfo=dict(classes=NAMES))


class Hung(BaseException):
    """No code takes this for an error it can deal with."""


@pytest.fixture(scope='module')
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A config for each kind of set; the set lies in ``set`` of the working folder."""
    folder = tmp_path_factory.mktemp('configs')
    paths = {}
    for kind in ('coco', 'voc'):
        path = paths[kind] = write_config(folder / f'{kind}.py', Path('set'), base='mgdet_model5_staged.py',
                                          load_from=None, **{'model.bbox_head.num_classes': len(NAMES),
                                                             'model.bbox_head.loss.class_weights': None})
        cfg = Config.fromfile(path)
        for split in ('train', 'val'):
            dataset = cfg[f'{split}_dataloader'].dataset
            fields = dict(ann_file=f'{split}.json', data_prefix=dict(img='img/'), metainfo=dict(classes=NAMES))
            dataset.update(fields if kind == 'coco' else dict(_VOC, ann_file=f'{split}.txt'))
        cfg.train_cfg.pop('max_epochs', None)
        cfg.val_evaluator = (dict(type='CocoMetric', ann_file='set/val.json') if kind == 'coco' else
                             dict(type='VOCMetric'))
        cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
        cfg.dump(path)
    return paths


@pytest.fixture(scope='module')
def model(configs: dict[str, Path]) -> Any:
    """The detector, small."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    return MODELS.build(Config.fromfile(configs['coco']).model)


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """What hangs fails."""
    def over(*_: object) -> None:
        raise Hung(f'still at it after {PATIENCE} seconds')

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def started(configs: dict[str, Path], fault: DataFault, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Plant a fault and start a training as far as its checks; the config it would run."""
    made = plant(fault, folder / 'set')
    monkeypatch.chdir(folder)
    monkeypatch.setenv('XDG_CACHE_HOME', str(folder / 'cache'))
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    options = [f'{key}={value}' for key, value in made.options.items()]
    words = [str(configs[fault.kind]), '--work-dir', 'run', *(['--cfg-options', *options] if options else [])]
    prepare_train(words)
    return parse_like_mmdet('train', words)[1]


def train_on(cfg: Config, model: Any) -> None:
    """One epoch of losses with gradients, and a validation."""
    dataset = StagedDataset(DATASETS.build(cfg.train_dataloader.dataset))
    model.train()
    batch = pseudo_collate([dataset[each] for each in range(len(dataset))])
    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    total = sum(value for name, value in losses.items() if 'loss' in name)
    total.backward()
    assert torch.isfinite(total) and all(torch.isfinite(each.grad).all() for each in model.parameters()
                                         if each.grad is not None)
    model.zero_grad()
    held_out = DATASETS.build(cfg.val_dataloader.dataset)
    metric = METRICS.build(cfg.val_evaluator)
    metric.dataset_meta = held_out.metainfo
    model.eval()
    with torch.no_grad():
        for each in range(len(held_out)):
            batch = pseudo_collate([held_out[each]])
            metric.process(batch, [sample.to_dict() for sample in model.val_step(batch)])
    metric.evaluate(len(held_out))


@pytest.mark.parametrize('fault', FAULTS, ids=lambda fault: f'{fault.group}-{fault.name}')
def test_a_fault_of_data(configs: dict[str, Path], model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                         capfd: pytest.CaptureFixture[str], fault: DataFault) -> None:
    if fault.outcome == 'refused':
        with pytest.raises(UserError) as caught:
            started(configs, fault, tmp_path, monkeypatch)
        assert re.search(fault.said, str(caught.value)), str(caught.value)
        assert '\n' not in str(caught.value)
    else:
        cfg = started(configs, fault, tmp_path, monkeypatch)
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith(('train', 'val'))]
        assert bool(lines) == (fault.outcome == 'said'), lines
        assert not lines or any(re.search(fault.said, line) for line in lines), lines
        train_on(cfg, model)
    assert not (tmp_path / 'run').exists()


def removed(configs: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch, count: int,
            **options: Any) -> StagedDataset:
    """A set that was sound when its training started, whose last pictures are gone since."""
    sound = DataFault('', '', lambda made: made.options.update(options), 'trains')
    dataset = StagedDataset(DATASETS.build(started(configs, sound, folder, monkeypatch).train_dataloader.dataset))
    remove_pictures(folder / 'set', count)
    return dataset


def test_an_image_deleted_while_training(configs: dict[str, Path], tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = removed(configs, tmp_path, monkeypatch, 1)
    assert dataset[0] is not None
    with pytest.raises(UserError, match=r'step 0 of a pipeline, LoadImageFromFile, cannot take .*train5\.png: FileNot'):
        dataset[5]


def test_a_bounded_share_of_deleted_images_is_left_out(configs: dict[str, Path], tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    first = 'train_dataloader.dataset.pipeline.0'
    dataset = removed(configs, tmp_path, monkeypatch, 3, **{f'{first}.type': 'LoadReadableImage', f'{first}.skip': 0.3})
    loaded = [Path(dataset[each]['data_samples'].img_path).name for each in range(3)]
    assert loaded == ['train0.png', 'train1.png', 'train2.png']
    with pytest.raises(UserError, match=r'3 of 6 pictures cannot be read any more \(the last: .*, no file\), and '
                                        r'LoadReadableImage leaves out skip=0\.3 of them at most'):
        for each in (3, 3, 4, 5):  # the same one twice is one
            dataset[each]


def test_the_table_of_outcomes_is_that_of_the_faults() -> None:
    assert table() in (ROOT / 'docs/reliability.md').read_text()


@pytest.mark.parametrize('name', ['a named pipe', '5 GiB'])
def test_a_command_refuses_in_one_line(configs: dict[str, Path], tmp_path: Path, name: str) -> None:
    plant(next(each for each in FAULTS if each.name == name), tmp_path / 'set')
    done = run_tool('train', configs['coco'], '--work-dir', 'run', cwd=tmp_path)
    lines = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert done.returncode == 2 and len(lines) == 1 and 'Traceback' not in done.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ['set']
