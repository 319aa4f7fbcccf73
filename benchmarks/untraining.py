"""Does fine-tuning in stages keep what the weights knew? Ways to fine-tune the demo's weights, both domains measured.

All ways start from the same weights, see the same images and train for as many epochs with the same validations; the
guard watches and changes nothing. A blend of a staged run with the loaded weights (WiSE-FT, arXiv 2109.01903) is picked
on the validation sets. Everything reported is measured on the test sets, which no choice has seen.
"""
from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import Tensor

from benchmarks.benchmark import LearningOptions
from benchmarks.trials import ONE_PROCESS, ROOT, Finished, Trial, run_trials, write_report
from benchmarks.untraining_report import (
    BLENDED,
    STAGED,
    BlendPoint,
    Comparison,
    Row,
    Scores,
    comparison_figure,
    comparison_json,
    comparison_text,
)
from mgdet_plugin.cli.training.demo import DEMO_FLAG, SOURCE_CONFIG, use_demo
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.guard_record import OLD
from mgdet_plugin.common.records import ratio
from mgdet_plugin.datasets import ensure_embedded_data
from mgdet_plugin.runs.blends import blend_weights
from mgdet_plugin.runs.held_out import HeldOut
from mgdet_plugin.runs.run import Run, read_run

NAME = 'untraining'
CONFIG = 'configs/mgdet_nano_staged.py'
ALPHAS = (0.25, 0.5, 0.75, 0.9)
KEEP = 0.65  # share of the loaded weights' old-domain AP on the validation set that a blend must keep
COMMON: dict[str, Any] = {
    **ONE_PROCESS,
    'val_cfg.others.old.dataloader.num_workers': 0,
    'val_cfg.others.old.dataloader.persistent_workers': False,
    'default_hooks.drift_guard.divergence': 'warn',  # by default it would lower the rate of the ways it should show
    'default_hooks.drift_guard.nan': 'warn',
    'default_hooks.checkpoint.interval': 1000,  # best.pth is all that is read
}


def ways(stages: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The ways to fine-tune, each as long as the staged one.

    Args:
        stages: The guide's three: head, neck, full.

    Returns:
        Name -> options of the config: what differs from it, with the rules of the guide that the way breaks.
    """
    head, neck, full = (dict(stage) for stage in stages)
    epochs = sum(stage['epochs'] for stage in stages)
    wild = dict(mosaic_prob=1.0, mixup_prob=0.5)

    def everything(lr: float) -> list[dict[str, Any]]:
        return [{**full, 'name': 'all', 'epochs': epochs, 'lr': lr}]

    return {
        STAGED: {},
        'all_1e-4': {'stages': everything(1e-4)},
        'all_1e-3': {'stages': everything(1e-3), 'plan.allow': ['rate']},
        'head_only': {'stages': [{**head, 'epochs': epochs}]},
        'two_to_zero': {'stages': [head, {**full, 'epochs': epochs - head['epochs']}],
                        'plan.allow': ['skipped-level']},
        'mosaic_frozen': {'stages': [{**head, **wild}, {**neck, **wild}, full],
                          'plan.allow': ['mixing-while-frozen']},
    }


def trials(seeds: Sequence[int], config: str = CONFIG) -> dict[str, list[Trial]]:
    """Name of a way -> its runs, one a seed.

    Args:
        seeds: Of the runs.
        config: Path of a config with three stages, from the project's root.
    """
    found = ways(Config.fromfile(ROOT / config).stages)
    return {way: [Trial(f'{way}_seed{seed}', config, seed, {**COMMON, **options}) for seed in seeds]
            for way, options in found.items()}


def untraining(options: LearningOptions, config: str = CONFIG) -> str:
    """Train all ways, measure and write ``untraining.json``, ``.md`` and ``.png`` into the folder of that name.

    Args:
        options: Folder, runs at once, seeds.
        config: Path of a config with three stages, from the project's root.

    Returns:
        The report for a person, a markdown table with a verdict.

    Raises:
        UserError: A run failed, a file is missing or cannot be written, or only some runs are asked for.
    """
    if options.only:
        raise UserError(f'{NAME} compares all its ways and takes no --only, got {" ".join(options.only)}')
    folder = options.folder.resolve() / NAME
    with contextlib.chdir(ROOT):  # where the paths of configs begin
        use_demo([config, DEMO_FLAG], train=True)  # makes the weights to start from
        ensure_embedded_data(Config.fromfile(config))  # here: runs side by side would draw it at the same time
        planned = trials(options.seeds, config)
        finished = iter(run_trials([each for runs in planned.values() for each in runs], folder, options.jobs))
        runs = {way: [next(finished) for _ in each] for way, each in planned.items()}
        comparison = compare_ways(runs, BothDomains(config))
        paths = write_report(folder, NAME, comparison_json(comparison), comparison_text(comparison),
                             comparison_figure(comparison))
    return comparison_text(comparison) + '\nwritten: ' + ', '.join(map(str, paths))


class BothDomains:
    """The test sets of both domains.

    Args:
        config: Path of the config of the model and the new domain; the old one's is that of the demo's weights.

    Raises:
        UserError: A dataset is missing.
    """

    def __init__(self, config: str) -> None:
        configs = dict(new=Config.fromfile(config), old=Config.fromfile(SOURCE_CONFIG))
        for cfg in configs.values():
            cfg.merge_from_dict(ONE_PROCESS)
        self.tests = HeldOut.of_tests(configs)

    def scores(self, state: Mapping[str, Tensor]) -> Scores:
        """AP of weights; 0 where they detect nothing.

        Args:
            state: Name -> tensor, all of the model's.
        """
        found = self.tests.measure(state)
        return Scores(*(found[domain].get(f'coco/{metric}', 0.0) for domain in ('new', 'old')
                        for metric in ('bbox_mAP', 'bbox_mAP_50')))

    def scores_of(self, path: str) -> Scores:
        """AP of a checkpoint.

        Args:
            path: Of the file.

        Raises:
            UserError: It is missing or does not fit.
        """
        return self.scores(self.tests.read(path))


def compare_ways(runs: Mapping[str, Sequence[Finished]], tests: BothDomains) -> Comparison:
    """Measure runs that ended, and blends of the staged ones.

    Args:
        runs: Name of a way -> its runs; one is 'staged'.
        tests: What they are measured on.

    Raises:
        UserError: A run left no record or no checkpoint.
    """
    rows = [_row(way, run, tests) for way, each in runs.items() for run in each]
    blended = [blend_run(run, tests) for run in runs[STAGED]]
    start = tests.scores_of(str(runs[STAGED][0].folder / 'start.pth'))
    return Comparison(start, (*rows, *(row for row, _ in blended)),
                      tuple(point for _, points in blended for point in points), KEEP)


def _row(way: str, run: Finished, tests: BothDomains) -> Row:
    record = read_run(run.folder)
    new, old = (worst_ratio(record, [each.metrics for each in record.validations], prefix) for prefix in ('val/', OLD))
    if new is None:
        raise UserError(f'the run in {run.folder} measured no guarded loss; remove the folder to train it again')
    return Row(way, run.trial.seed, tests.scores_of(best_weights(run.folder)), new, old, run.seconds)


def best_weights(folder: Path) -> str:
    """Path of a run's best checkpoint; of its last one where no validation detected anything, so that none is best."""
    best, last = folder / 'best.pth', folder / 'last_checkpoint'
    return str(best) if best.is_file() or not last.is_file() else last.read_text().strip()


def worst_ratio(record: Run, found: Sequence[Mapping[str, float]], prefix: str) -> float | None:
    """The highest ratio of a guarded loss to that of the loaded weights.

    Args:
        record: Of the run, with its baseline.
        found: Metrics of validations.
        prefix: Of the losses' names: 'val/' on the new domain, 'old/' on the old one.

    Returns:
        The ratio, infinite where a loss was not finite; None where the baseline or the validations have none.
    """
    names = [f'{prefix}{loss}' for loss in record.guarded if f'{prefix}{loss}' in record.pretrained]
    ratios = [ratio(each[name], record.pretrained[name]) for each in found for name in names if name in each]
    return max((math.inf if math.isnan(each) else each for each in ratios), default=None)


def blend_run(run: Finished, tests: BothDomains) -> tuple[Row, list[BlendPoint]]:
    """Blend a run's best weights with those it started from, pick a share on the validation sets, test every share.

    Args:
        run: A staged run.
        tests: What the blends are measured on.

    Returns:
        The row of the picked blend, whose drift is that of its own losses and whose seconds count blending in; and all
        shares.

    Raises:
        UserError: A file of the run is missing.
    """
    begun = time.perf_counter()
    blend = blend_weights(str(run.folder / 'start.pth'), best_weights(run.folder), ALPHAS, by='new', keep=KEEP)
    seconds = run.seconds + time.perf_counter() - begun
    points = [BlendPoint(run.trial.seed, row.alpha, tests.scores(blend.state(index)), index == blend.picked)
              for index, row in enumerate(blend.rows)]
    picked, record = blend.rows[blend.picked], read_run(run.folder)
    new, old = (worst_ratio(record, [{f'{prefix}{name}': value for name, value in figures.items()}], prefix)
                for prefix, figures in (('val/', picked.new), (OLD, picked.old)))
    if new is None:
        raise UserError(f'the run in {run.folder} measured no guarded loss; remove the folder to train it again')
    return Row(BLENDED, run.trial.seed, points[blend.picked].scores, new, old, seconds), points
