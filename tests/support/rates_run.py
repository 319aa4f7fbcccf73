"""The rates of whole runs, read from their logs, and the table of them worked out by hand."""
from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from tests.support.small_run import ROOT
from tests.support.staged_run import run, staged_config

CONFIGS = dict(full='mgdet_model5_staged.py', backbone='mgdet_backbone_staged.py')  # scenario -> its config
GROUPS = ('backbone', 'neck', 'bbox_head')
TABLE = ROOT / 'tests' / 'data' / 'rates_by_hand.csv'


@dataclass(frozen=True)
class Point:
    """A row of the table.

    Attributes:
        scenario: 'full' or 'backbone'.
        stage: Name of the stage.
        iteration: From 0 over the whole run, two an epoch.
        moment: What it is in the stage.
        rates: Group -> rate, 0 where nothing of the group trains.
    """
    scenario: str
    stage: str
    iteration: int
    moment: str
    rates: dict[str, float]


def points_by_hand(scenario: str) -> list[Point]:
    """The rows of a scenario in ``rates_by_hand.csv``."""
    with TABLE.open(newline='') as file:
        return [Point(scenario, row['stage'], int(row['iteration']), row['moment'],
                      {group: float(row[group]) for group in GROUPS})
                for row in csv.DictReader(file) if row['scenario'] == scenario]


def stages_of(scenario: str) -> list[dict]:
    """The stages of a scenario's config, as they are."""
    return [dict(stage) for stage in Config.fromfile(ROOT / 'configs' / CONFIGS[scenario]).stages]


def logged_rates(folder: Path, data: Path, stages: Sequence[dict], start: str) -> list[dict[str, float]]:
    """Train a plan on the tiny model and read the rates from the run's log.

    Runner, loop, hooks, scheduler, optimizer and log are the real ones; the model is the tiny one of
    :mod:`tests.support.staged_run`, and only the last epoch is validated.

    Args:
        folder: Where the run lies.
        data: What :func:`tests.support.small_run.make_dataset` made.
        stages: The plan.
        start: The plan's start.

    Returns:
        Group -> rate for every iteration.
    """
    # mmengine makes one visualizer a name and process: a second run of the name would log into the first one's folder.
    cfg = staged_config(folder, data, stages, **{
        'plan.start': start, 'train_cfg.val_interval': 1000, 'default_hooks.checkpoint.interval': 1000,
        'default_hooks.logger.interval': 1, 'visualizer.name': str(folder)})
    run(cfg, folder / 'run')
    log, = (folder / 'run').glob('*/vis_data/scalars.json')
    entries = [entry for entry in map(json.loads, log.read_text().splitlines()) if 'backbone_lr' in entry]
    assert [entry['step'] for entry in entries] == list(range(1, len(entries) + 1)), 'an iteration is not in the log'
    assert all({key for key in entry if key.endswith('_lr')} - {'base_lr'} == {f'{group}_lr' for group in GROUPS}
               for entry in entries), 'the groups in the log are not the three parts'
    return [{group: entry[f'{group}_lr'] for group in GROUPS} for entry in entries]
