"""The training the harness breaks: small, with all that a run keeps, and what of its folder must be equal."""
from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from tests.chaos.injections import how_far
from tests.support.fork_server import ROOT, ForkServer
from tests.support.small_run import make_dataset, write_config
from tests.support.staged_run import FULL, HEAD, NECK, differences

RUN = 'run'  # the work folder
EPOCHS, STEPS = 3, 2  # eight images, batch 4
LONG = 300.0  # seconds in which a training that does not hang has ended, on a busy machine
EMA = dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.02)
_STAMPED = re.compile(r'\d{8}_\d{6}$')  # folders of a start's log
_MACHINE = re.compile(r'(^|/)(time|data_time|memory)$')  # scalars that say how fast the machine is


def make(folder: Path, **options: Any) -> Path:
    """Data and a config of three epochs, one a stage, which keeps a checkpoint and the best; the config's path."""
    data = make_dataset(folder / 'set')
    path = write_config(folder / 'small.py', data, base='mgdet_nano_staged.py', load_from=None)
    cfg = Config.fromfile(path)
    cfg.train_cfg = dict(type='StagedTrainLoop', val_interval=1)
    cfg.val_cfg.pop('others', None)
    cfg.stages = [dict(each, epochs=1) for each in (HEAD, dict(NECK, restart_ema=True), FULL)]
    cfg.custom_hooks = [EMA]
    cfg.default_hooks.checkpoint.update(max_keep_ckpts=1)
    cfg.default_hooks.pop('visualization', None)
    cfg.visualizer.vis_backends = [dict(type='LocalVisBackend')]
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.serialize_data = False  # which collects garbage, a third of a run's time
    cfg.merge_from_dict(options)
    cfg.dump(path)
    return path


class Place:
    """A folder in which a training is begun, broken and gone on with.

    Args:
        server: Starts it.
        folder: Made; the work folder is ``run`` in it.
        config: Of the training.
        *options: More of its command line.
    """

    def __init__(self, server: ForkServer, folder: Path, config: Path, *options: str) -> None:
        self.server, self.folder, self.config, self.options = server, folder, config, options
        self.run, self.log = folder / RUN, folder / 'said'
        self._starts = 0
        folder.mkdir(parents=True)

    def start(self, *more: str, **fault: Any) -> int:
        """Begin, with a fault; the process."""
        self._starts += 1
        return self.begin(self.log, *more, **fault, progress=str(self.progress))

    def begin(self, log: Path, *more: str, **fault: Any) -> int:
        """Begin, with a fault and not counted as a start; the process. What it says goes to the end of ``log``."""
        return self.server.start([ROOT / 'tools/train.py', self.config, '--work-dir', RUN, *self.options, *more],
                                 self.folder, log, setup=('tests.chaos.injections:inject', fault))

    def end(self, *more: str, **fault: Any) -> int | None:
        """Train until it ends; how."""
        return self.server.wait(self.start(*more, **fault), LONG)

    @property
    def progress(self) -> Path:
        """How far the last start has come."""
        return self.folder / f'progress{self._starts}'

    def far(self) -> tuple[int, int]:
        """Iterations the last start had done, and the one it began with."""
        return how_far(self.progress)[:2]

    def at(self) -> int:
        """The iteration the last start is at, or has done last."""
        return how_far(self.progress)[2]

    def said(self) -> list[str]:
        """Lines of all starts."""
        return self.log.read_text().splitlines() if self.log.exists() else []


def folder_differences(one: Path, other: Path) -> list[str]:
    """Where two work folders differ in names or contents.

    Left out are the folders of each start's log, and within checkpoints: when they were saved, the name drawn for the
    run (one in all of a folder's), the text of the config, and how fast the machine was.
    """
    mine, others = ({str(each.relative_to(folder)): each for each in files_of(folder)} for folder in (one, other))
    found = [f'{name} only in {one if name in mine else other}' for name in sorted({*mine} ^ {*others})]
    runs = {read(path, one)[1] for name, path in mine.items() if name.endswith('.pth')}
    found += [f'checkpoints of the runs {sorted(map(str, runs))}'] if len(runs) > 1 else []
    for name in sorted({*mine} & {*others}):
        if name.endswith('.pth'):
            found += differences(read(mine[name], one)[0], read(others[name], other)[0], name)
        elif _within(mine[name].read_bytes(), one) != _within(others[name].read_bytes(), other):
            found.append(f'{name} has other content')
    return found


def files_of(folder: Path) -> Iterator[Path]:
    """The files of a work folder but for the logs."""
    return (each for each in folder.rglob('*') if not each.is_dir() and not any(
        map(_STAMPED.match, each.relative_to(folder).parts)))


def _within(content: bytes, folder: Path) -> bytes:
    """A file's content with paths as they are from its folder."""
    return content.replace(str(folder).encode(), b'.')


def read(path: Path, folder: Path) -> tuple[dict[str, Any], str | None]:
    """What of a checkpoint must be equal, and the name of its run."""
    content = torch.load(path, weights_only=True)
    meta, run = content['meta'], content['meta'].pop('run', None)
    for key in ('time', 'experiment_name', 'cfg'):
        meta.pop(key, None)
    if 'message_hub' in content:
        hub = content['message_hub']
        for key in ('cfg', 'experiment_name'):
            hub['runtime_info'].pop(key, None)
        for key, value in hub['runtime_info'].items():
            if isinstance(value, str):
                hub['runtime_info'][key] = value.replace(str(folder), '.')
        hub['log_scalars'] = {key: value for key, value in hub['log_scalars'].items() if not _MACHINE.search(key)}
    if 'mgdet' in content:
        run = content['mgdet'].pop('run')
    return content, run
