"""How a tool hands over to mmdet's own scripts: with the command line they would read, in this process."""
from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import check_folder
from mgdet_plugin.common.resources import config_path, mmdet_script
from mgdet_plugin.compat.console import VERBOSE, show, shows
from mgdet_plugin.compat.launch import end_launched_process
from mgdet_plugin.engine.config_check import check_parts
from mgdet_plugin.engine.hooks.console_hook import ConsoleHook
from mgdet_plugin.engine.run_folder import whole_config

_RANKS = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}
"""Launcher -> the variable of the environment in which a process finds its number."""
_NEEDED = dict(train=('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'),
               test=('model', 'test_dataloader', 'test_cfg', 'test_evaluator'))


def run_mmdet_script(name: str, arguments: Sequence[str]) -> None:
    """Run a script of mmdet in this process, with the plugin loaded, as if called with the arguments.

    A test leaves the config in the work folder as the training wrote it: with options of its own, or around the model
    of ``--tta``, it is another one, and no longer says what the checkpoints beside it are of.
    """
    path, called = str(mmdet_script(name)), sys.argv
    ways = Runner.dump_config, Runner.register_hooks
    Runner.dump_config = (_beside_the_log if name == 'test' else whole_config)(Runner.dump_config)
    if not shows(VERBOSE):
        Runner.register_hooks = _with_console(Runner.register_hooks)
    sys.argv = [path, *arguments]
    try:
        runpy.run_path(path, run_name='__main__')
    finally:  # another command of this process begins as this one did
        sys.argv = called
        Runner.dump_config, Runner.register_hooks = ways
    end_launched_process()


def _with_console(register: Callable[..., None]) -> Callable[..., None]:
    """A runner's method that also registers what tells a person of the run; no config of a run has to name it."""

    @wraps(register)
    def register_hooks(runner: Runner, *args: Any, **kwargs: Any) -> None:
        register(runner, *args, **kwargs)
        runner.register_hook(ConsoleHook())

    return register_hooks


def _beside_the_log(dump: Callable[[Runner], None]) -> Callable[[Runner], None]:
    """A runner's method that writes its config beside the log where the work folder has one of this name."""

    @wraps(dump)
    def dump_config(runner: Runner) -> None:
        name = Path(runner.cfg.filename or f'{runner.timestamp}.py').name
        if not Path(runner.work_dir, name).exists():
            dump(runner)
        elif is_main_process():
            runner.cfg.dump(Path(runner.log_dir, name))

    return dump_config


def parse_like_mmdet(name: str, arguments: Sequence[str]) -> tuple[SimpleNamespace, Config]:
    """Arguments of mmdet's train or test script and the config they make.

    Args:
        name: 'train' or 'test'.
        arguments: The command line without the program's name.

    Returns:
        The parsed arguments and the config with its options merged.

    Raises:
        UserError: If the config is missing, or the work folder cannot be written to.
    """
    script = runpy.run_path(str(mmdet_script(name)), run_name=name)
    called = sys.argv
    sys.argv = [called[0] or f'tools/{name}.py', *arguments]
    try:
        args = script['parse_args']()
    finally:
        sys.argv = called
    cfg = Config.fromfile(config_path(args.config))
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    check_parts(cfg, *_NEEDED[name])
    scaling = cfg.get('auto_scale_lr')
    if getattr(args, 'auto_scale_lr', False) and not {'enable', 'base_batch_size'} <= set(scaling or ()):
        raise UserError('--auto-scale-lr needs auto_scale_lr=dict(enable=False, base_batch_size=N) in the config, got '
                        f'{scaling!r}')
    variable = _RANKS.get(args.launcher)
    if variable is not None and variable not in os.environ:
        raise UserError(f'--launcher {args.launcher} is for processes that a launcher started, and {variable} is not '
                        f'set in the environment; start them by tools/dist_{name}.sh CFG GPUS or slurm_train.sh, or '
                        'leave --launcher out')
    if cfg.get('log_level') == 'DEBUG':
        show(VERBOSE)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or os.path.join('work_dirs', Path(args.config).stem)
    check_folder(Path(cfg.work_dir))
    return args, cfg


def is_first_rank(launcher: str = 'none') -> bool:
    """Tell whether this process speaks for all of a launch, before the launcher's processes know each other."""
    rank = _RANKS.get(launcher)
    return rank is None or os.environ.get(rank, '0') == '0'
