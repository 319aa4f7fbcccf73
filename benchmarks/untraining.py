"""Does fine-tuning in stages keep what the weights knew? Ways to fine-tune the demo's weights, both domains measured.

All ways start from the same weights, see the same new images and train for as many steps; the guard watches and
changes nothing. Some hold on to old images without labels, and two, for comparison, train on old images with labels.
Blends with the loaded weights (WiSE-FT, arXiv 2109.01903) are picked on the validation sets. Everything reported is
measured on the test sets, which no choice has seen.
"""
from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import Tensor

from benchmarks.benchmark import LearningOptions
from benchmarks.trials import ONE_PROCESS, ROOT, Finished, Trial, find_finished, last_weights, run_trials, write_report
from benchmarks.untraining_plot import comparison_figure
from benchmarks.untraining_report import BlendPoint, Comparison, Row, Scores, comparison_json, comparison_text, flat
from benchmarks.untraining_ways import BLENDS, STAGED, SWEEP, Way, old_images, ways
from mgdet_plugin.cli.training.demo import DEMO_FLAG, SOURCE_CONFIG, use_demo
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import write_together
from mgdet_plugin.common.guard_record import OLD
from mgdet_plugin.common.records import ratio
from mgdet_plugin.datasets import ensure_embedded_data
from mgdet_plugin.runs.blends import blend_weights
from mgdet_plugin.runs.held_out import HeldOut
from mgdet_plugin.runs.run import Run, read_run

NAME = 'untraining'
CONFIG = 'configs/mgdet_nano_staged.py'
ALPHAS = (0.25, 0.5, 0.75, 0.9)
MEASURED = 'measured.json'  # in a run's folder
KEEP = 0.65  # share of the loaded weights' old-domain AP on the validation set that a blend must keep
COMMON: dict[str, Any] = {
    **ONE_PROCESS,
    'val_cfg.others.old.dataloader.num_workers': 0,
    'val_cfg.others.old.dataloader.persistent_workers': False,
    'default_hooks.drift_guard.divergence': 'warn',  # by default it would lower the rate of the ways it should show
    'default_hooks.drift_guard.nan': 'warn',
    'default_hooks.checkpoint.interval': 1000,  # best.pth is all that is read
    'default_hooks.channels_last.type': 'ChannelsLastHook',
}


def trials(way: str, options: Mapping[str, Any], seeds: Sequence[int], config: str = CONFIG) -> list[Trial]:
    """The runs of a way, one a seed.

    Args:
        way: Its name.
        options: What it changes in the config.
        seeds: Of the runs.
        config: Path of a config with three stages, from the project's root.
    """
    return [Trial(f'{way}_seed{seed}', config, seed, {**COMMON, **options}) for seed in seeds]


def untraining(options: LearningOptions, config: str = CONFIG) -> str:
    """Train all ways, measure and write ``untraining.json``, ``.md`` and ``.png`` into the folder of that name.

    Args:
        options: Folder, runs at once, seeds, of which other settings of the recommended way take the first alone; with
            ``only`` no other ways are trained, and all that were trained before are compared.
        config: Path of a config with three stages, from the project's root.

    Returns:
        The report for a person, a markdown table with a verdict.

    Raises:
        UserError: A run failed, a file is missing or cannot be written, or ``only`` names no way.
    """
    folder = options.folder.resolve() / NAME
    photographs = options.photographs and options.photographs.resolve()
    with contextlib.chdir(ROOT):  # where the paths of configs begin
        cfg = Config.fromfile(config)
        use_demo([config, DEMO_FLAG], train=True)  # makes the weights to start from
        ensure_embedded_data(cfg)  # here: runs side by side would draw it at the same time
        old, notes = old_images(folder, photographs)
        known = ways(cfg, old)
        chosen = choose(known, options.only)
        planned = {way: trials(way, {**each.options, **options.precision}, options.seeds, config)
                   for way, each in known.items()}
        run_trials([trial for way in chosen for trial in planned[way][:1 if known[way].family == SWEEP else None]],
                   folder, options.jobs)
        found = {way: find_finished(each, folder) for way, each in planned.items()}
        comparison = compare_ways({way: runs for way, runs in found.items() if runs}, BothDomains(config))
        text = '\n'.join([comparison_text(comparison), *notes])
        paths = write_report(folder, NAME, comparison_json(comparison), text, comparison_figure(comparison, known))
    return text + '\nwritten: ' + ', '.join(map(str, paths))


def choose(known: Mapping[str, Way], only: Sequence[str]) -> list[str]:
    """The ways to train.

    Raises:
        UserError: A name is of none.
    """
    for name in only:
        if name not in known:
            raise UserError(f"--only '{name}' is no way to fine-tune; there are {', '.join(known)}")
    return [way for way in known if not only or way in only]


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
    """Measure runs that ended, and blends of some of them; what was measured before is read.

    Args:
        runs: Name of a way -> its runs, one at least.
        tests: What they are measured on.

    Raises:
        UserError: A run left no record or no checkpoint.
    """
    measured = {way: [_measured(way, run, tests) for run in each] for way, each in runs.items()}
    rows = [Row.of(found[0]) for each in measured.values() for found, _ in each]
    blended = [Row.of(found[1]) for each in measured.values() for found, _ in each if len(found) > 1]
    start = tests.scores_of(str(next(iter(runs.values()))[0].folder / 'start.pth'))
    return Comparison(start, (*rows, *blended), tuple(
        BlendPoint.of(point) for each in measured.values() for _, points in each for point in points), KEEP)


def _measured(way: str, run: Finished, tests: BothDomains) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of a run and, where it is blended, of its blend; and that of each share, as plain types."""
    path = run.folder / MEASURED
    if path.is_file():
        rows, points = json.loads(path.read_text())
        return rows, points
    found, blends = [_row(way, run, tests)], list[BlendPoint]()
    if way in BLENDS:
        blended, blends = blend_run(way, run, tests)
        found.append(blended)
    content = [flat(each) for each in found], [flat(each) for each in blends]
    write_together({path: lambda file: file.write(json.dumps(content).encode())})
    return content


def _row(way: str, run: Finished, tests: BothDomains) -> Row:
    record = read_run(run.folder)
    new, old = (worst_ratio(record, [each.metrics for each in record.validations], prefix) for prefix in ('val/', OLD))
    if new is None:
        raise UserError(f'the run in {run.folder} measured no guarded loss; remove the folder to train it again')
    return Row(way, run.trial.seed, tests.scores_of(best_weights(run.folder)), new, old, run.seconds)


def best_weights(folder: Path) -> str:
    """Path of a run's best checkpoint; of its last one where no validation detected anything, so that none is best."""
    best = folder / 'best.pth'
    lost = not best.is_file() and (folder / 'last_checkpoint').is_file()
    return str(last_weights(folder) if lost else best)


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


def blend_run(way: str, run: Finished, tests: BothDomains) -> tuple[Row, list[BlendPoint]]:
    """Blend a run's best weights with those it started from, pick a share on the validation sets, test every share.

    What forgot is asked to keep a part and else the best on the new domain; what kept all, the best mean of both.

    Args:
        way: One of which blends are looked at.
        run: A run of it.
        tests: What the blends are measured on.

    Returns:
        The row of the picked blend, whose drift is that of its own losses and whose seconds count blending in; and all
        shares.

    Raises:
        UserError: A file of the run is missing.
    """
    begun = time.perf_counter()
    blend = blend_weights(str(run.folder / 'start.pth'), best_weights(run.folder), ALPHAS,
                          by='new' if way == STAGED else 'mean', keep=KEEP)
    seconds = run.seconds + time.perf_counter() - begun
    points = [BlendPoint(way, run.trial.seed, row.alpha, tests.scores(blend.state(index)), index == blend.picked)
              for index, row in enumerate(blend.rows)]
    picked, record = blend.rows[blend.picked], read_run(run.folder)
    new, old = (worst_ratio(record, [{f'{prefix}{name}': value for name, value in figures.items()}], prefix)
                for prefix, figures in (('val/', picked.new), (OLD, picked.old)))
    if new is None:
        raise UserError(f'the run in {run.folder} measured no guarded loss; remove the folder to train it again')
    return Row(BLENDS[way], run.trial.seed, points[blend.picked].scores, new, old, seconds), points
