"""Train the one-weight model in one of several processes, or alone.

Called as ``python tests/support/toy_launch.py WORK_DIR LAUNCHER BATCH_SIZE``; the environment says which process it is.
"""
from __future__ import annotations

import sys
from pathlib import Path

import mgdet_plugin  # noqa: F401  before mmengine

sys.path.insert(0, str(Path(__file__).parents[2]))
from mmengine.runner import Runner

from tests.support.toy_run import ToyData, ToyModel


def train(work_dir: Path, launcher: str, batch_size: int) -> None:
    """Train two epochs, save the last, and note in a file a rank what wrapped the model."""
    loader = {'dataset': ToyData(), 'batch_size': batch_size, 'num_workers': 1, 'persistent_workers': True,
              'collate_fn': {'type': 'default_collate'}, 'sampler': {'type': 'DefaultSampler', 'shuffle': False}}
    runner = Runner(model=ToyModel(), work_dir=str(work_dir), train_dataloader=loader, launcher=launcher,
                    train_cfg={'by_epoch': True, 'max_epochs': 2}, experiment_name=f'toy-{launcher}',
                    optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.05}}, randomness={'seed': 0},
                    env_cfg={'dist_cfg': {'backend': 'nccl'}}, cfg={'find_unused_parameters': True})
    runner.train()
    wrapped = f'{type(runner.model).__name__} {getattr(runner.model, "find_unused_parameters", None)}'
    (work_dir / f'rank_{runner.rank}').write_text(wrapped)


if __name__ == '__main__':
    train(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
