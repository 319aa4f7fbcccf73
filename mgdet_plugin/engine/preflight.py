"""What a tool checks before it builds a run, and how it hands over to mmdet's own scripts."""
from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mmdet.registry import TRANSFORMS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mgdet_plugin.common.resources import config_path, mmdet_script
from mgdet_plugin.compat.launch import end_launched_process
from mgdet_plugin.datasets import Inspector, check_datasets, ensure_embedded_data, iter_dataset_cfgs
from mgdet_plugin.engine.checkpoint_check import check_weights
from mgdet_plugin.engine.loops.loss_val_loop import check_other
from mgdet_plugin.engine.resume_choice import resolve_resume
from mgdet_plugin.engine.truth_check import check_truth
from mgdet_plugin.plan.plan import start_of


def run_mmdet_script(name: str, arguments: Sequence[str]) -> None:
    """Run a script of mmdet in this process, with the plugin loaded, as if called with the arguments."""
    path = str(mmdet_script(name))
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name='__main__')
    end_launched_process()


def parse_like_mmdet(name: str, arguments: Sequence[str]) -> tuple[SimpleNamespace, Config]:
    """Arguments of mmdet's train or test script and the config they make.

    Args:
        name: 'train' or 'test'.
        arguments: The command line without the program's name.

    Returns:
        The parsed arguments and the config with its options merged.

    Raises:
        UserError: If the config is missing.
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
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or os.path.join('work_dirs', Path(args.config).stem)
    return args, cfg


def is_first_rank(launcher: str = 'none') -> bool:
    """Tell whether this process speaks for all of a launch, before the launcher's processes know each other."""
    rank = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}.get(launcher)
    return rank is None or os.environ.get(rank, '0') == '0'


def prepare_train(arguments: Sequence[str]) -> list[str]:
    """Check what training needs: datasets and weights, or the checkpoint to resume from.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The command line for mmdet's script, which names the checkpoint to resume from if there is one.

    Raises:
        UserError: If something is missing or does not fit.
    """
    args, cfg = parse_like_mmdet('train', arguments)
    start = start_of(cfg)  # cannot be told once load_from names a checkpoint to resume from
    settled, said = resolve_resume(list(arguments), args.resume, cfg)
    _say(chain(said, _prepare(cfg, ('train', 'val'), start)), args.launcher)
    return settled


def prepare_test(arguments: Sequence[str]) -> None:
    """Check what testing needs: the dataset and the checkpoint.

    Raises:
        UserError: If something is missing or does not fit.
    """
    args, cfg = parse_like_mmdet('test', arguments)
    cfg.load_from = args.checkpoint
    _say(_prepare(cfg, ('test', )), args.launcher)


def _say(lines: Iterable[str], launcher: str) -> None:
    """Print lines as they come, on the first rank alone; the checks that yield them run on every rank."""
    for line in lines:
        if is_first_rank(launcher):
            print(line, file=sys.stderr)


def _prepare(cfg: Config, splits: Sequence[str], start: str | None = None) -> Iterator[str]:
    """All checks, before the run's folder is made; what a person should know of them, one line each."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    ensure_embedded_data(cfg)
    for split in splits:
        for leaf in iter_dataset_cfgs(cfg[f'{split}_dataloader']['dataset']):
            for step in leaf.get('pipeline') or []:
                TRANSFORMS.build(step)  # a transform refuses what it cannot do
    inspector = Inspector(say=lambda line: print(line, file=sys.stderr)) if is_first_rank(cfg.launcher) else None
    for report in check_datasets(cfg, splits, inspector):
        yield from report.lines()
    if 'val' in splits:
        others = other_sets(cfg)
        for report in check_datasets(others, [key.removesuffix('_dataloader') for key in others
                                              if key.endswith('_dataloader')], inspector):
            yield from report.lines()
    yield from check_truth(cfg, splits)
    yield from check_weights(cfg, splits[0], start)


def other_sets(cfg: Config) -> Config:
    """The further validation sets of a ``LossValLoop`` as a config with ``<name>_dataloader`` and ``<name>_evaluator``.

    Raises:
        UserError: One is not fully given.
    """
    sets: dict[str, Any] = dict(model=cfg.model)
    for name, each in ((cfg.get('val_cfg') or {}).get('others') or {}).items():
        check_other(name, each)
        sets[f'{name}_dataloader'], sets[f'{name}_evaluator'] = each['dataloader'], each['evaluator']
    return Config(sets, filename=cfg.filename)
