"""What a person reads of a run: how far it is, a line a validation, where its end lies and what comes next."""
from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from mgdet_plugin.common.metric_names import figures_in_words
from mgdet_plugin.common.resources import command, shown_config
from mgdet_plugin.compat.console import PROGRESS, SAID, SHORT, shows
from mgdet_plugin.datasets.formats.dataset_report import number_of
from mgdet_plugin.engine.staged_run import staged_run

_WINDOW = 50  # iterations the loss of the progress line is a mean of


@HOOKS.register_module()
class ConsoleHook(Hook):
    """Log a run in lines for a person; what else is logged is in the log's file.

    The tools register it where the terminal does not show all. Progress is shown by the main process alone.
    """
    priority = 'LOWEST'  # after CheckpointHook, which says what is the best

    def __init__(self) -> None:
        self._begun, self._first_iter = time.monotonic(), 0
        self._best: dict[str, Any] = {}

    def before_run(self, runner: Runner) -> None:
        """Say where the log is."""
        self._begun = time.monotonic()
        if runner.logger.log_file:
            _say(runner, f'full log: {os.path.relpath(runner.logger.log_file)}')

    def before_train(self, runner: Runner) -> None:
        """Note where this process begins."""
        self._begun, self._first_iter, self._best = time.monotonic(), runner.iter, _best(runner)
        if runner._resume:
            source = f' from {os.path.relpath(runner._load_from)}' if runner._load_from else ''  # mmengine may choose
            _say(runner, f'going on{source}, {_done(runner)}')

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Show how far training is and how long it will take as it went so far, validations included."""
        done, whole = runner.iter + 1, max(1, runner.max_iters)
        run = staged_run(runner)

        def text() -> str:
            left = (time.monotonic() - self._begun) / (done - self._first_iter) * (whole - done)
            stage = f" '{run.stage.name}'" if run is not None and len(run.plan.stages) > 1 else ''
            step = '' if _by_iteration(runner) else f'{stage}, step {batch_idx + 1} of {len(runner.train_dataloader)}'
            return f'{_place(runner, 1)}{step}{_after_colon(_loss(runner), _left(left))}'

        self._show(done / whole, text)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                       outputs: Sequence[Any] | None = None) -> None:
        """Show how far a validation is."""
        if _trains(runner):
            count = len(runner.val_dataloader)
            self._show(runner.iter / max(1, runner.max_iters), lambda: (
                f'{_place(runner)}: validating, step {batch_idx + 1} of {count}'))

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                        outputs: Sequence[Any] | None = None) -> None:
        """Show how far a test is."""
        done, whole = batch_idx + 1, len(runner.test_dataloader)
        self._show(done / whole, lambda: f'step {done} of {whole}' + _after_colon(
            _left((time.monotonic() - self._begun) / done * (whole - done))))

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, Any] | None = None) -> None:
        """Say what a validation found, of all domains, and whether it is the best so far."""
        words, run, best = [figures_in_words(metrics or {})], staged_run(runner), _best(runner)
        if run is not None and run.kept is not None:
            words.append(f'{run.kept[0]:.1%} of the old AP kept')
        if best != self._best and best.get('best_score') != 0:  # the first one is kept, whatever it is
            words.append('best so far')
        if run is not None and run.rolled_back:
            words.append('rolled back')
        self._best = best
        _say(runner, f'{_place(runner) if _trains(runner) else "validation"}: {"; ".join(filter(None, words))}')

    def after_test_epoch(self, runner: Runner, metrics: Mapping[str, Any] | None = None) -> None:
        """Say every figure of a test on a line."""
        found = {name: value for name, value in (metrics or {}).items() if isinstance(value, (int, float))}
        width = max(map(len, found), default=0)
        _say(runner, '\n'.join([f'{len(runner.test_dataloader.dataset)} images in '
                                f'{in_words(time.monotonic() - self._begun)}',
                                *(f'  {name:<{width}}  {value:.4f}' for name, value in found.items())]))

    def after_train(self, runner: Runner) -> None:
        """Say how the run ended, what its best is, and what comes next."""
        if shows(SHORT) and getattr(runner.train_loop, 'stop_reason', None) is None:
            _say(runner, '\n'.join(_end(runner, time.monotonic() - self._begun)))

    @staticmethod
    def _show(share: float, text: Callable[[], str]) -> None:
        if shows(SHORT) and is_main_process():
            PROGRESS.show(share, text)


def in_words(seconds: float) -> str:
    """A length of time for a person: '40 s', '12 min', '3 h 5 min'."""
    if seconds < 90:
        return f'{seconds:.0f} s'
    minutes = round(seconds / 60)
    return f'{minutes} min' if minutes < 60 else f'{minutes // 60} h {minutes % 60} min'


def _left(seconds: float) -> str:
    """How long it still takes; nothing at the end."""
    return f'about {in_words(seconds)} left' if seconds >= 1 else ''


def _after_colon(*words: str) -> str:
    said = ', '.join(filter(None, words))
    return f': {said}' if said else ''


def _say(runner: Runner, text: str) -> None:
    runner.logger.info(text, extra=SAID)


def _trains(runner: Runner) -> bool:
    """Whether a validation is one of a training."""
    return not isinstance(runner._train_loop, (dict, type(None)))


def _by_iteration(runner: Runner) -> bool:
    return isinstance(runner.train_loop, IterBasedTrainLoop)


def _done(runner: Runner) -> str:
    return f'{number_of(*((runner.iter, "iteration") if _by_iteration(runner) else (runner.epoch, "epoch")))} done'


def _place(runner: Runner, more: int = 0) -> str:
    """Where a training is, an epoch or iteration ``more`` than are done."""
    if _by_iteration(runner):
        return f'iteration {runner.iter + more} of {runner.max_iters}'
    return f'epoch {runner.epoch + more} of {runner.max_epochs}'


def _loss(runner: Runner) -> str:
    scalars = runner.message_hub.log_scalars
    return f'loss {scalars["train/loss"].mean(_WINDOW):.4g}' if 'train/loss' in scalars else ''


def _best(runner: Runner) -> dict[str, Any]:
    """What the checkpoint hook keeps as the best, with the score."""
    return {key: value for key, value in runner.message_hub.runtime_info.items()
            if key.startswith(('best_ckpt', 'best_score'))}


def _end(runner: Runner, seconds: float) -> list[str]:
    """The lines about a run that ended."""
    run, folder = staged_run(runner), os.path.relpath(runner.work_dir)
    early = ', ended early' if run is not None and run.progress.ended else ''
    lines = [f'end: {_done(runner)}{early}, {in_words(seconds)}']
    best, config = Path(folder, 'best.pth'), runner.cfg.filename
    found = runner.message_hub.get_info('best_ckpt')
    if found and best.is_file():
        epoch = re.search(r'epoch_(\d+)\.pth$', str(found))
        score = runner.message_hub.get_info('best_score')
        figure = next((hook.key_indicators[0] for hook in runner.hooks if isinstance(hook, CheckpointHook)
                       and getattr(hook, 'key_indicators', None)), '')
        words, of_epoch = figures_in_words({figure: score}), f' of epoch {epoch[1]}' if epoch else ''
        lines.append(f'nothing right was detected yet ({words}); the first weights measured{of_epoch}: {best}'
                     if words and score == 0 else f'best: {words or f"{figure} {score:.4g}"}{of_epoch}: {best}')
    else:
        last = runner.message_hub.get_info('last_ckpt')
        lines.append(f'no best.pth; the last weights: {os.path.relpath(last) if last else "not saved"}')
        best = Path(os.path.relpath(last)) if last else best
    following = [command('check_run', folder)]
    if config:
        following.append(command('test', shown_config(config), best))
    return [*lines, f'next: {"; ".join(following)}']
