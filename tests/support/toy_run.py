"""Train a one-weight model with mmengine's Runner.

Called as ``python tests/support/toy_run.py WORK_DIR``: once without the plugin, then in ``WORK_DIR/late`` with it,
imported after mmengine.
"""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import Dataset


class ToyData(Dataset):
    """Four points of y = 2 x."""

    metainfo = {'classes': ('point', ), 'palette': np.array([[1, 2, 3]], dtype=np.uint8)}

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        x = torch.tensor([float(index)])
        return {'x': x, 'y': 2 * x}


class ToyModel(BaseModel):
    """y = w x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, y: torch.Tensor, mode: str = 'loss') -> dict[str, torch.Tensor]:
        return {'loss': ((self.weight * x - y)**2).mean()}


class NumpyHook(Hook):
    """Put numpy values where hooks of mmengine and mmdet put them."""

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        runner.message_hub.update_info('best_score', np.float64(0.5))
        runner.message_hub.update_info('per_class', np.array([0.25, 0.75], dtype=np.float32))


def make_runner(work_dir: Path, resume_from: Path | None = None, **options: Any) -> Runner:
    """Build a runner of four epochs with two iterations each that saves every epoch; options are the runner's."""
    return Runner(
        model=ToyModel(),
        work_dir=str(work_dir),
        train_dataloader={
            'dataset': ToyData(),
            'batch_size': 2,
            'num_workers': 0,
            'collate_fn': {'type': 'default_collate'},
            'sampler': {'type': 'DefaultSampler', 'shuffle': False}
        },
        train_cfg={'by_epoch': True, 'max_epochs': 4},
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9}},
        param_scheduler=[{'type': 'MultiStepLR', 'milestones': [1, 1, 3], 'gamma': 0.5}],
        custom_hooks=[NumpyHook()],
        resume=resume_from is not None,
        load_from=None if resume_from is None else str(resume_from),
        experiment_name=f'{work_dir.parent.name}-{work_dir.name}',
        **options)


if __name__ == '__main__':
    make_runner(Path(sys.argv[1])).train()
    import mgdet_plugin  # noqa: F401
    make_runner(Path(sys.argv[1]) / 'late').train()
