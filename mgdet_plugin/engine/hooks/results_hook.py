"""``results.csv``: a row a validation, the same of a run that was stopped and resumed as of one that was not."""
from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from mgdet_plugin.common.checkpoint_content import checks
from mgdet_plugin.common.files import write_together
from mgdet_plugin.common.records import Numbers, need, typed
from mgdet_plugin.engine.staged_run import staged_run

FILE = 'results.csv'
KEY = 'results'  # in a checkpoint
_RATE = re.compile(r'train/(?!base_)(\w+_)?lr$')  # mmengine's base_lr is that of the first group
_NUMBER = re.compile(r'-?(\d+\.?\d*(e[-+]?\d+)?|inf|nan)$')
Row = dict[str, str]


@HOOKS.register_module()
class ResultsHook(Hook):
    """Write every validation into ``results.csv`` of the work folder.

    A row has epochs and iterations done, the stage, each metric and loss of every domain under the name it is logged
    by, ``kept`` (the share of the old domain's mean AP that is left), the mean of each training loss since the row
    before (``train/loss``, ..., of the first process), and the rates of the last iteration (``lr``, ``backbone_lr``,
    ...). A figure that a validation does not give is empty.

    Rows and sums are in every checkpoint. A new run in the folder begins the file anew.
    """
    priority = 85  # after what judges a validation, before CheckpointHook (VERY_LOW, 90)

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._sums: dict[str, float] = {}
        self._count = 0

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Take the rows of a checkpoint to resume from."""
        kept = checkpoint.get(KEY)
        if runner._resume and isinstance(kept, Mapping):
            check_results(kept, KEY)
            self._rows, self._sums, self._count = list(kept['rows']), dict(kept['sums']), kept['count']

    def before_train(self, runner: Runner) -> None:
        """Let the file say what was done up to here, no more.

        Another loop than a plan's does not make up for a validation that came after the checkpoint; the file has it.
        """
        path = Path(runner.work_dir, FILE)
        found = _read(path)
        if runner._resume and found[:len(self._rows)] == self._rows:
            self._rows += [row for row in found[len(self._rows):] if int(row['iter']) <= runner.iter]
        if not is_main_process():
            return
        if self._rows:
            _write(path, self._rows)
        else:
            path.unlink(missing_ok=True)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: Mapping[str, Any] | None = None) -> None:
        """Add up the losses; a step that was skipped has none."""
        losses = {name: float(value.detach() if isinstance(value, Tensor) else value)
                  for name, value in (outputs or {}).items() if 'loss' in name}
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += bool(losses)

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, Any] | None = None) -> None:
        """Add the row of a validation of a training."""
        if isinstance(runner._train_loop, (dict, type(None))):
            return
        run = staged_run(runner)
        figures = {name: value for name, value in (metrics or {}).items() if isinstance(value, (int, float))}
        if run is not None and run.kept is not None:
            figures['kept'] = run.kept[0]
        figures |= {f'train/{name}': value / self._count for name, value in self._sums.items()}
        figures |= {name.removeprefix('train/'): buffer.current() for name, buffer in
                    runner.message_hub.log_scalars.items() if _RATE.match(name)}
        row = dict(epoch=runner.epoch, iter=runner.iter, stage=run.stage.name if run is not None else '', **{
            name: float(value) for name, value in figures.items()})
        self._rows = [each for each in self._rows if int(each['iter']) < runner.iter]
        self._rows.append({name: str(value) for name, value in row.items() if value != ''})
        self._sums, self._count = {}, 0
        if is_main_process():
            _write(Path(runner.work_dir, FILE), self._rows)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the rows and the sums since the last."""
        checkpoint[KEY] = dict(rows=[dict(row) for row in self._rows], sums=dict(self._sums), count=self._count)


@checks(KEY)
def check_results(kept: Any, place: str) -> None:
    """Refuse rows and sums of a checkpoint that are none.

    Raises:
        Damage: They are none.
    """
    need(isinstance(kept, Mapping) and {'rows', 'sums', 'count'} <= set(kept), place, kept, 'rows, sums and count')
    typed(Numbers, kept['sums'], f'{place}.sums')
    typed(int, kept['count'], f'{place}.count')
    for index, row in enumerate(typed(list[Row], kept['rows'], f'{place}.rows')):
        need(_is_row(row), f'{place}.rows[{index}]', row, 'the figures of a validation')


def _is_row(row: Row) -> bool:
    """Whether a row counts an iteration and has nothing but numbers beside the name of the stage."""
    return row.get('iter', '').isdecimal() and len(row['iter']) < 16 and all(
        name == 'stage' or _NUMBER.match(value) for name, value in row.items())


def _read(path: Path) -> list[Row]:
    """The rows of a file, none where it is not there or is no such file."""
    if not path.is_file():
        return []
    with path.open(newline='', encoding='utf-8', errors='replace') as stream:
        rows = [{name: value for name, value in row.items() if name and value} for row in csv.DictReader(stream)]
    return rows if all(map(_is_row, rows)) else []


def _write(path: Path, rows: list[Row]) -> None:
    """Write the rows under all the names that any of them has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline='')
    table = csv.DictWriter(text, names, restval='', lineterminator='\n')
    table.writeheader()
    table.writerows(rows)
    content = text.getvalue().encode()
    write_together({path: lambda stream: stream.write(content)})
