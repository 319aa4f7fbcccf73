"""Runs without what most have: a GPU for mixed precision, workers, validation, anything left to do."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mgdet_plugin.engine.preflight import prepare_train
from tests.support.small_run import make_dataset
from tests.support.staged_run import HEAD, NECK, newest, run, staged_config

STAGES = [dict(HEAD, epochs=1), dict(NECK, epochs=1)]


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp('data') / 'set')


def without_validation(cfg: Config) -> None:
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.train_dataloader.update(num_workers=0, persistent_workers=True, prefetch_factor=2)


def in_single(cfg: Config) -> None:
    """In the layout of mixed precision, in which the network's dropout draws the same numbers for the same cells."""
    without_validation(cfg)
    cfg.custom_hooks = [*cfg.get('custom_hooks', ()), dict(type='ChannelsLastHook')]


def in_bfloat16(cfg: Config) -> None:
    without_validation(cfg)
    cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')  # as mmdet's --amp does


def losses(work_dir: Path) -> torch.Tensor:
    history = newest(work_dir)['message_hub']['log_scalars']['train/loss']
    return torch.tensor(next(list(each) for key, each in history.items() if 'log' in key))


def test_mixed_precision_without_validation_or_workers(data: Path, tmp_path: Path) -> None:
    """Finite losses near those of single precision, killed and resumed as well."""
    cfg = staged_config(tmp_path, data, STAGES)
    run(cfg, tmp_path / 'single', change=in_single)
    run(cfg, tmp_path / 'mixed', kill=('iter', 3), change=in_bfloat16)
    run(cfg, tmp_path / 'mixed', resume=True, change=in_bfloat16)
    assert 'loss_scaler' not in newest(tmp_path / 'mixed')['optimizer']
    single, mixed = losses(tmp_path / 'single'), losses(tmp_path / 'mixed')
    assert len(single) == 4 and not torch.equal(single, mixed)
    torch.testing.assert_close(mixed, single, rtol=0.05, atol=0)
    assert not (tmp_path / 'single' / 'best.pth').exists()


def test_a_finished_run_is_not_resumed(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = staged_config(tmp_path, data, STAGES[:1])
    run(cfg, tmp_path / 'run')
    cfg.dump(tmp_path / 'config.py')
    words = [str(tmp_path / 'config.py'), '--work-dir', str(tmp_path / 'run'), '--resume']
    assert prepare_train(words) is None
    assert f'{tmp_path}/run is already finished' in capsys.readouterr().err
    (tmp_path / 'run' / 'guard.json').unlink()  # a run whose end nobody saw validates its last epoch
    settled = prepare_train(words)
    assert settled is not None and settled[-1].endswith('epoch_1.pth')
