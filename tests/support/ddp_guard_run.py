"""Guarded runs as one of two processes without a GPU: what is not finite, is so in the second one only.

Called as ``python -m tests.support.ddp_guard_run FOLDER DATA``; the environment says which process it is.
"""
from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from mmengine.dist import barrier, get_rank
from mmengine.model import is_model_wrapper

import mgdet_plugin  # noqa: F401
from mgdet_plugin.compat.launch import end_launched_process
from mgdet_plugin.plan.freezing import digest
from tests.support.guarded_run import EMA, FaultHook, Recorder, guarded_config
from tests.support.staged_run import FULL, run

FAULTS = {1: 'loss', 3: 'gradient', 5: 'nan image'}
STAGE = dict(FULL, epochs=2, warmup_epochs=0, mosaic_prob=0, mixup_prob=0)
IMAGES = 7  # an odd number for two processes


def main(folder: Path, data: Path, rank: int) -> None:
    """Two epochs of four iterations; what was learned after each is written down as hashes."""
    (folder / f'configs{rank}').mkdir()
    cfg = guarded_config(folder / f'configs{rank}', data, [STAGE], dict(images=5, interval=2, window=2),
                         **{'train_dataloader.batch_size': 1})
    cfg.val_dataloader.dataset.indices = IMAGES
    cfg.val_dataloader.batch_size = 2
    cfg.launcher, cfg.find_unused_parameters = 'pytorch', True
    cfg.env_cfg.dist_cfg = dict(backend='gloo')
    cfg.custom_hooks = [EMA]
    recorder = Recorder()
    runner = run(cfg, folder / 'run', hooks=[recorder, *([FaultHook(FAULTS)] if get_rank_before() else [])])
    assert is_model_wrapper(runner.model) and get_rank() == rank
    notes = [{part: {name: digest(value) for name, value in tensors.items()} for part, tensors in (
        ('weights', state['weights']), ('buffers', state['buffers']), ('average', state['average'][0]))}
        for state in recorder.states]
    (folder / f'rank{rank}.json').write_text(json.dumps(dict(notes=notes, epochs=runner.epoch, files=recorder.files)))
    barrier()


def get_rank_before() -> int:
    """This process's number, before the processes know each other."""
    return int(os.environ['RANK'])


if __name__ == '__main__':
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), get_rank_before())
    end_launched_process()
