"""Does MultiGrid detect better than the head it is held against, and what is each part of its recipe worth?

MultiGrid and mmdet's YOLOv3 train from nothing on the same backbone, images, augmentation, schedule and image size, one
run a seed. All runs are measured on the test set at fixed epochs and the last epoch counts, so that no choice sees it.
Variants of the recipe are trained beside them; variants of scoring are measured on the runs' last weights.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmdet.registry import MODELS
from mmengine.config import Config

from benchmarks.accuracy_plot import accuracy_figure
from benchmarks.accuracy_report import (
    HEADS,
    METRICS,
    OURS,
    PEER,
    RECIPE,
    VARIANTS,
    Accuracy,
    Run,
    Score,
    accuracy_json,
    accuracy_text,
)
from benchmarks.benchmark import LearningOptions
from benchmarks.rescoring import SCORINGS, score_run
from benchmarks.trials import (
    ONE_PROCESS,
    ROOT,
    Finished,
    Trial,
    config_of,
    find_finished,
    run_trials,
    validations,
    write_report,
)
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.runs.held_out import prepare_data, quiet

NAME = 'accuracy'
EPOCHS = dict(bccd=24, digits=16)
VAL_INTERVAL = dict(bccd=3, digits=2)  # epochs; a divisor of the length, so that the last epoch is measured
VARIANT_EPOCHS = 12  # of BCCD: enough to tell parts of the recipe apart


@dataclass(frozen=True)
class Case:
    """A way to train, one run a seed.

    Attributes:
        group: 'heads' for the head to head, 'variants' for a change of MultiGrid's recipe.
        data: Name of the data set.
        name: 'multigrid' or 'yolov3', or that of the variant.
        config: Path of the config from the project's root.
        epochs: Length.
        interval: Epochs between measurements; the last epoch is one of them.
        options: Key with dots -> value: what the case changes in the config.

    Raises:
        ValueError: The last epoch would not be measured.
    """
    group: str
    data: str
    name: str
    config: str
    epochs: int
    interval: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.epochs % self.interval:
            raise ValueError(f'{self.title}: the interval {self.interval} is no divisor of {self.epochs} epochs')

    @property
    def title(self) -> str:
        """Group, data set and name, as ``--only`` takes them."""
        return f'{self.group}/{self.data}/{self.name}'

    @property
    def stem(self) -> str:
        """What the names of its runs begin with."""
        return f'{self.title.replace("/", "_")}_seed'

    def trial(self, seed: int) -> Trial:
        """Its run with a seed."""
        return Trial(f'{self.stem}{seed}', self.config, seed, {
            **ONE_PROCESS,
            'train_cfg.max_epochs': self.epochs,
            'train_cfg.val_interval': self.interval,
            'param_scheduler.1.T_max': self.epochs,  # the cosine ends with the run
            'default_hooks.checkpoint.interval': self.epochs,  # the last weights are all that is read
            **self.options,
        })


def _head(data: str, name: str) -> Case:
    return Case(HEADS, data, name, f'configs/scratch/{name}_nano_{data}.py', EPOCHS[data], VAL_INTERVAL[data])


def _variant(name: str, options: Mapping[str, Any] | None = None, config: str = 'multigrid_nano_bccd') -> Case:
    return Case(VARIANTS, 'bccd', name, f'configs/scratch/{config}.py', VARIANT_EPOCHS, VARIANT_EPOCHS,
                {f'model.bbox_head.{key}': value for key, value in (options or {}).items()})


CASES = (
    *(_head(data, name) for data in EPOCHS for name in (OURS, PEER)),
    _variant(RECIPE),
    _variant('conflict_reference', {'assigner.conflict': 'reference'}),
    _variant('overlap_iol', {'loss.overlap': 'iol'}),
    _variant('likely_anchor', {'bbox_coder.anchor_use': 'likely'}),
    _variant('imported_recipe', config='multigrid_nano_imported_bccd'),
    _variant('quality_focal', {'loss.objectness_gamma': 1.5}),
    _variant('cells_by_fit', {'loss.cell_weight_power': 1.0}),
)


def choose(cases: Sequence[Case], only: Iterable[str]) -> list[Case]:
    """The cases that names stand for.

    Args:
        cases: All there are.
        only: Each the beginning of a title or of a later part of one: 'variants', 'heads/bccd', 'digits'. None chooses
            all.

    Returns:
        The chosen cases in the order of all.

    Raises:
        UserError: A name stands for no case.
    """
    only = tuple(only)
    for name in only:
        if not name or not any(_stands_for(name, case) for case in cases):
            raise UserError(f"--only '{name}' stands for no run; there are {', '.join(case.title for case in cases)}")
    return [case for case in cases if not only or any(_stands_for(name, case) for name in only)]


def _stands_for(name: str, case: Case) -> bool:
    return f'/{name}' in f'/{case.title}'


def accuracy(options: LearningOptions, cases: Sequence[Case] = CASES) -> str:
    """Train the chosen cases and write ``accuracy.json``, ``.md`` and ``.png`` into the folder of that name.

    The report covers all runs that are finished there, those of earlier calls and other seeds among them.

    Args:
        options: Folder, runs at once, seeds, and which cases to run.
        cases: What there is to run.

    Returns:
        The report for a person, in markdown.

    Raises:
        UserError: A name stands for no case, a data set is missing, a run failed or a file cannot be written.
    """
    cases = [replace(case, options={**case.options, **options.precision}) for case in cases]
    chosen = choose(cases, options.only)
    folder = options.folder.resolve() / NAME
    with contextlib.chdir(ROOT):  # where the paths of configs begin
        check_data(chosen)
        run_trials(ordered_trials(chosen, options.seeds), folder, options.jobs)
        result = measure_runs(finished_runs(cases, folder))
        paths = write_report(folder, NAME, accuracy_json(result), accuracy_text(result), accuracy_figure(result))
    return accuracy_text(result) + '\nwritten: ' + ', '.join(map(str, paths))


def check_data(cases: Sequence[Case]) -> None:
    """Make the embedded data that cases need and look through all their data sets, before anything is trained.

    Raises:
        UserError: A data set is missing or wrong.
    """
    for path in dict.fromkeys(case.config for case in cases):
        # Here: runs side by side would draw the embedded data at the same time.
        prepare_data(Config.fromfile(ROOT / path), 'train', 'val', 'test')


def ordered_trials(cases: Sequence[Case], seeds: Sequence[int]) -> list[Trial]:
    """Runs in an order in which a benchmark that is cut off has whole comparisons: heads first, seed by seed."""
    return [case.trial(seed) for group in dict.fromkeys(case.group for case in cases) for seed in seeds
            for case in cases if case.group == group]


def finished_runs(cases: Sequence[Case], folder: Path) -> list[tuple[Case, list[Finished]]]:
    """The runs of each case that ended with the config it has now, by seed.

    Args:
        cases: The cases.
        folder: Of the runs.
    """
    found = []
    for case in cases:
        seeds = sorted(int(seed) for path in folder.glob(f'{case.stem}*')
                       if (seed := path.name.removeprefix(case.stem)).isdecimal())
        found.append((case, find_finished([case.trial(seed) for seed in seeds], folder)))
    return found


def measure_runs(found: Iterable[tuple[Case, Sequence[Finished]]]) -> Accuracy:
    """The curves of runs, their last weights measured, those of the heads in every way of scoring.

    Args:
        found: Cases with their runs.

    Raises:
        UserError: A run's weights are missing.
    """
    runs: list[Run] = []
    scores: list[Score] = []
    for case, each in found:
        for run in each:
            measured = score_run(case.data, case.name, run, SCORINGS[case.name] if case.group == HEADS else {})
            runs.append(_run(case, run, measured[0].metrics))
            if case.group == HEADS:
                scores += measured
    return Accuracy(tuple(runs), tuple(scores))


def curve(case: Case, folder: Path) -> dict[int, dict[str, float]]:
    """Epoch -> logged metrics, by the names of :data:`METRICS`; 0 where a run detected nothing and logged no metric.

    Where a later validation detects nothing, mmengine logs the metrics of the one before again.

    Args:
        case: What was run.
        folder: The run's work folder.
    """
    logged = dict(validations(folder))
    return {epoch: {name: logged.get(epoch, {}).get(key, 0.0) for name, key in METRICS.items()}
            for epoch in range(case.interval, case.epochs + 1, case.interval)}


def _run(case: Case, run: Finished, last: Mapping[str, float]) -> Run:
    with quiet():
        model = MODELS.build(config_of(run.trial).model)
    parameters = sum(each.numel() for each in model.parameters())
    # The weights themselves are measured for the epoch that counts: a log can repeat what they no longer reach.
    found = {**curve(case, run.folder), case.epochs: dict(last)}
    return Run(case.group, case.data, case.name, run.trial.seed, parameters, found, run.seconds)
