"""The random state of every process in every checkpoint."""
from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_gather_object, get_rank, is_distributed
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from mgdet_plugin.common.checkpoint_content import checks
from mgdet_plugin.common.records import need

KEY = 'random_state'


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Save the states of Python's, numpy's and torch's generators and put them back on resume.

    Under DDP each process has its own; mmengine saves in the first process only, so the states are gathered
    beforehand: after every epoch, and at iterations at which a ``CheckpointHook`` saves. The dataloaders get
    generators of their own: that a resumed run starts its workers anew must not be seen in the random state.
    """
    priority = 80  # before CheckpointHook (VERY_LOW, 90), after what may draw

    def __init__(self) -> None:
        self._others: list[dict[str, Any]] = []
        self._loaded: list[dict[str, Any]] = []

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Keep the states of a checkpoint to resume from until training begins."""
        self._loaded = list(checkpoint.get(KEY) or []) if runner._resume else []
        if runner._resume and not self._loaded:
            runner.logger.warning('the checkpoint holds no random state: what is drawn from here on differs from an '
                                  'uninterrupted run')

    def before_train(self, runner: Runner) -> None:
        """Put the states back, last of all before the first iteration."""
        for index, loader in enumerate((runner.train_dataloader, runner.val_dataloader if runner.val_loop else None)):
            if loader is not None:
                loader.generator = torch.Generator().manual_seed((runner.seed or 0) + index)
        if not self._loaded:
            return
        if get_rank() < len(self._loaded):
            set_random_state(self._loaded[get_rank()])
        else:
            runner.logger.warning(f'the checkpoint holds the random states of {len(self._loaded)} processes, not of '
                                  f'process {get_rank()}, which draws from its seed')
        self._loaded = []

    def after_train_epoch(self, runner: Runner) -> None:
        """Gather before the epoch's checkpoint."""
        self._gather()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Gather before an iteration's checkpoint."""
        if saves_now(runner):
            self._gather()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the states, this process's as it is now."""
        checkpoint[KEY] = [random_state(), *self._others[1:]]

    def _gather(self) -> None:
        if is_distributed():
            self._others = all_gather_object(random_state())


def saves_now(runner: Runner) -> bool:
    """Whether a checkpoint is saved after this iteration: a ``CheckpointHook`` counts them, or the run is to end."""
    if getattr(runner.train_loop, 'stopping', False):
        return True
    savers = [each for each in runner.hooks if isinstance(each, CheckpointHook) and not each.by_epoch]
    return any((each.interval > 0 and each.every_n_train_iters(runner, each.interval))
               or (each.save_last and each.is_last_train_iter(runner)) for each in savers)


def random_state() -> dict[str, Any]:
    """The states of all generators of this process, as plain types and tensors."""
    version, keys, gauss = random.getstate()
    name, array, position, has_gauss, cached = np.random.get_state(legacy=True)  # type: ignore[misc]
    return dict(
        python=[version, list(keys), gauss],
        numpy=[name, torch.from_numpy(np.asarray(array).astype(np.int64)), int(position), int(has_gauss),
               float(cached)],
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])


@checks(KEY)
def check_random_states(states: Any, place: str) -> None:
    """Refuse what no generator can be put into.

    Raises:
        Damage: It is none.
    """
    need(isinstance(states, (list, tuple)), place, states, 'a list of states')
    for index, state in enumerate(states):
        try:
            python, numpy = _states(state)
            random.Random().setstate(python)
            np.random.RandomState().set_state(numpy)
            torch.Generator().set_state(state['torch'].cpu())
            fits = all(each.dtype == torch.uint8 for each in state['cuda'])
        except Exception:  # each generator has its own
            fits = False
        need(fits, f'{place}[{index}]', state, 'the state of random generators')


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators of this process into a state that :func:`random_state` gave."""
    python, numpy = _states(state)
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(state['torch'].cpu())
    if torch.cuda.is_available() and len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([each.cpu() for each in state['cuda']])


def _states(state: dict[str, Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What Python's and numpy's generators take; numpy's takes a state without its last two parts, too."""
    version, keys, gauss = state['python']
    name, array, position, has_gauss, cached = state['numpy']
    return (version, tuple(keys), gauss), (name, np.asarray(array.cpu()).astype(np.uint32), position, has_gauss, cached)
