"""What a tool checks before it builds a run."""
from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mmdet.registry import TRANSFORMS
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import Inspector, check_datasets, ensure_embedded_data, iter_dataset_cfgs
from mgdet_plugin.datasets.formats.annotation_check import config_name
from mgdet_plugin.datasets.formats.dataset_report import number_of
from mgdet_plugin.datasets.old_images import image_paths, pipeline_of
from mgdet_plugin.engine.checkpoint_check import check_weights
from mgdet_plugin.engine.config_check import checked
from mgdet_plugin.engine.fit.fitting import Wish, as_words, given_entries, measured_entries
from mgdet_plugin.engine.keep_check import check_keep
from mgdet_plugin.engine.loops.loss_val_loop import check_other
from mgdet_plugin.engine.mmdet_scripts import is_first_rank, parse_like_mmdet
from mgdet_plugin.engine.resume_choice import added_epochs, extended_end, is_finished, resolve_resume
from mgdet_plugin.engine.run_folder import allow_open_files, check_run_folder
from mgdet_plugin.engine.truth_check import check_truth
from mgdet_plugin.plan.keeping import Keeping, is_followed
from mgdet_plugin.plan.plan import Plan, start_of

_VALIDATION = ('val_dataloader', 'val_cfg', 'val_evaluator')


def prepare_train(arguments: Sequence[str], more_epochs: int | None = None,
                  wish: Wish | None = None, hold: Callable[[Path], object] | None = None) -> list[str] | None:
    """Check what training needs: datasets and weights, or the checkpoint to resume from.

    Args:
        arguments: The command line without the program's name.
        more_epochs: By how many the last stage of the ended run in the work folder is to go on.
        wish: What the run is to be fitted to; a resumed one keeps what it was fitted to.
        hold: Takes the work folder when all is right, in the first process of a launch.

    Returns:
        The command line for mmdet's script, which names the checkpoint to resume from if there is one; None where the
        run to resume is finished.

    Raises:
        UserError: If something is missing or does not fit.
    """
    args, cfg = parse_like_mmdet('train', arguments)
    wish = wish or Wish()
    wish.check(cfg)
    folder = Path(cfg.work_dir)
    allow_open_files()
    if is_first_rank(args.launcher):
        check_run_folder(folder, Path(cfg.filename).name)
    unwatched = [key for key in _VALIDATION if cfg.get(key) is None]
    if unwatched:
        arguments = [*arguments, '--cfg-options', *(f'{key}=None' for key in _VALIDATION)]
        cfg.merge_from_dict(dict.fromkeys(_VALIDATION))
    with checked(cfg):
        start = start_of(cfg)  # cannot be told once load_from names a checkpoint to resume from
        settled, said = resolve_resume(list(arguments), args.resume if more_epochs is None else 'auto', cfg)
        resumed = bool(cfg.get('resume')) and '://' not in str(cfg.get('load_from'))
        entries = given_entries(cfg, wish, resumed)
        cfg.merge_from_dict(dict(entries))
        settled = [*settled, *as_words(entries)]
        end = _end(args, cfg, more_epochs, settled, said)
        if end is None:
            _say(said, args.launcher)
            if hold is not None and is_first_rank(args.launcher):
                hold(folder)
            return None
        settled += end
        if unwatched:
            said.append(f'no validation ({", ".join(unwatched)} None): no best.pth is kept, no stage ends early, and '
                        'only spikes, divergence and NaN of the training losses are guarded')
        _say(chain(said, _prepare(cfg, ('train', ) if unwatched else ('train', 'val'), start)), args.launcher)
        if not resumed:
            if wish.measures_batch or wish.hours is not None:
                _say(['measuring steps of this run, in a process of their own'], args.launcher)
            entries, said = measured_entries(cfg, wish)
            _say(said, args.launcher)
            settled = [*settled, *as_words(entries)]
        if hold is not None and is_first_rank(args.launcher):
            hold(folder)
        return settled


def _end(args: SimpleNamespace, cfg: Config, more_epochs: int | None, settled: Sequence[str],
         said: list[str]) -> list[str] | None:
    """What tells mmdet's script where a resumed run ends, if not where its plan does; None where it has ended."""
    if more_epochs is not None:
        return _extension(args, cfg, more_epochs, settled)
    if not cfg.get('resume'):
        return []
    asked = {'train_cfg.max_epochs', 'train_cfg.end_epoch'} & set(args.cfg_options or ())
    added, end = (0, 0) if asked else added_epochs(cfg)
    if added:
        said.append(f'{number_of(added, "epoch")} had been added to this run by --more-epochs: it goes on to epoch '
                    f'{end}')
        return ['--cfg-options', f'train_cfg.end_epoch={end}']
    if is_finished(cfg):
        said.append(f'{cfg.work_dir} is already finished, {cfg.load_from} is its end: nothing to do. To train on give '
                    '--more-epochs N, or start a run from its best.pth (load_from) in another --work-dir')
        return None
    return []


def _extension(args: SimpleNamespace, cfg: Config, more: int, settled: Sequence[str]) -> list[str]:
    """What makes mmdet's script go on with a run after its end."""
    asked = f'--more-epochs {more}'
    given = sorted({'load_from', 'resume', 'train_cfg.max_epochs'} & set(args.cfg_options or ()))
    given = [f'--resume {args.resume}'] if args.resume else given
    if given:
        raise UserError(f"{asked} goes on from the last checkpoint of the run's end, and {given[0]} says otherwise; "
                        'give one of the two')
    if not cfg.get('stages'):
        raise UserError(f'{asked} makes the last stage of a plan longer, and {config_name(cfg)} has no stages; raise '
                        'train_cfg.max_epochs and give --resume')
    cap = cfg.train_cfg.get('max_epochs')
    if cap is not None:
        raise UserError(f'{asked}: train_cfg.max_epochs={cap} ends the run before its plan does; raise it or leave it '
                        'out, and give --resume')
    if not any(word.startswith('--resume=') for word in settled):
        raise UserError(f'{asked}: there is no checkpoint in {cfg.work_dir} to go on from; without it the run begins')
    return ['--cfg-options', f'train_cfg.end_epoch={extended_end(cfg, more)}']


def prepare_test(arguments: Sequence[str]) -> None:
    """Check what testing needs: the dataset and the checkpoint.

    Raises:
        UserError: If something is missing or does not fit.
    """
    args, cfg = parse_like_mmdet('test', arguments)
    cfg.load_from = args.checkpoint
    with checked(cfg):
        _say(chain(_prepare(cfg, ('test', )), _views(cfg) if args.tta else ()), args.launcher)


def _say(lines: Iterable[str], launcher: str) -> None:
    """Print lines as they come, on the first rank alone; the checks that yield them run on every rank."""
    for line in lines:
        if is_first_rank(launcher):
            print(line, file=sys.stderr)


def _prepare(cfg: Config, splits: Sequence[str], start: str | None = None) -> Iterator[str]:
    """All checks, before the run's folder is made; what a person should know of them, one line each."""
    for split in splits:
        for leaf in iter_dataset_cfgs(cfg[f'{split}_dataloader']['dataset']):
            for step in leaf.get('pipeline') or []:
                TRANSFORMS.build(step)  # a transform refuses what it cannot do
                if step.get('type') == 'Normalize' and (cfg.model.get('data_preprocessor') or {}).get('mean'):
                    yield (f'the {split} pipeline has Normalize, and model.data_preprocessor normalises, too, so the '
                           'model sees pictures of another range; leave one out')
    ensure_embedded_data(cfg)
    inspector = Inspector(say=lambda line: print(line, file=sys.stderr)) if is_first_rank(cfg.launcher) else None
    for report in check_datasets(cfg, splits, inspector):
        yield from report.lines()
    if 'val' in splits:
        others = other_sets(cfg)
        for report in check_datasets(others, [key.removesuffix('_dataloader') for key in others
                                              if key.endswith('_dataloader')], inspector):
            yield from report.lines()
    if splits[0] == 'train' and cfg.get('keep'):
        yield from _old_pictures(cfg, Keeping.build(cfg.keep), inspector)
    yield from check_truth(cfg, splits)
    yield from check_weights(cfg, splits[0], start)


def _old_pictures(cfg: Config, keep: Keeping, inspector: Inspector | None) -> Iterator[str]:
    """Checks of the pictures that hold a model to what its weights knew."""
    if not cfg.get('stages'):
        raise UserError(f'{config_name(cfg)} has keep and no stages: only a plan is held; inherit a config that has '
                        'stages, such as _base_ = "mgdet_plugin::mgdet_nano_keep.py"')
    for stage in Plan.from_cfg(cfg).stages:
        keep.beside(stage.batch_size or cfg.train_dataloader.batch_size)  # refuses a share that leaves no room
    if keep.images is None:
        return
    dataset = cfg.train_dataloader['dataset']
    yield from check_keep(keep.images, keep.others(is_followed(cfg)), keep.images_used, pipeline_of(dataset),
                          image_paths(dataset), inspector)


def _views(cfg: Config) -> Iterator[str]:
    """A line where test-time augmentation looks at none of the size that the test set is looked at in, or at what mmdet
    chooses, which would be a warning there."""
    if not cfg.get('tta_pipeline'):
        warnings.filterwarnings('ignore', 'Cannot find ``tta_')
        yield '--tta looks at each picture and its mirror image: the config has no tta_pipeline that names other views'
    sizes = {tuple(step['scale']) for leaf in iter_dataset_cfgs(cfg.test_dataloader['dataset'])
             for step in leaf.get('pipeline') or () if step.get('type') == 'Letterbox'}
    views = {tuple(step['scale']) for each in cfg.get('tta_pipeline') or () for steps in each.get('transforms') or ()
             for step in steps if step.get('type') == 'Letterbox'}
    if sizes and views and not sizes & views:
        seen, given = (', '.join(f'{width}x{height}' for width, height in sorted(each)) for each in (views, sizes))
        yield f'--tta looks at {seen} alone, the test set at {given}: set tta_pipeline to sizes about that'


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
