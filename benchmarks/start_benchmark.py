"""The start of ``train.py`` up to its first step beside the import of ``mmdet.models`` alone.

Every side is a process of its own, in turns, with modules compiled before the first that counts. The small model of
stage 1 trains on the embedded digits from weights that are there; a hook ends the run after its first step.
"""
from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing import active_children
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from mmdet.registry import HOOKS
from mmengine.config import Config
from mmengine.hooks import Hook

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.resources import CONFIGS, DEMO_WEIGHTS

ROOT = Path(__file__).parents[1]
PEER = 'python -c "import mmdet.models"'
_CONFIG = """_base_ = {base!r}
custom_imports = dict(imports={imports}, allow_failed_imports=False)
custom_hooks = [dict(type='EndAfterFirstStep')]
load_from = {weights!r}
default_hooks = dict(drift_guard={guard})
"""


@HOOKS.register_module()
class EndAfterFirstStep(Hook):
    """Ends the process, as one that has succeeded."""

    def after_train_iter(self, *args: Any, **kwargs: Any) -> None:
        """End this process and those that load its images."""
        for child in active_children():
            child.terminate()
        os._exit(0)


def start_rows(repeats: int = 5) -> list[dict[str, Any]]:
    """Measure the start without and with the guard's validations of the weights before the first step.

    Args:
        repeats: Processes of each side after one that is not counted.

    Returns:
        Four rows, seconds on the clock and of the processor: ours, the peer's and the ratio.

    Raises:
        UserError: A side failed.
    """
    from mgdet_plugin.weights.importer import import_keras
    runs: dict[str, list[tuple[float, float]]] = dict(peer=[], start=[], start_measured=[])
    with TemporaryDirectory() as name:
        folder, base = Path(name), CONFIGS / 'mgdet_nano_stage1.py'
        import_keras(DEMO_WEIGHTS, folder / 'start.pth', config=base, classes=base,
                     source_classes=CONFIGS / 'mgdet_nano_source.py')
        imports = [*Config.fromfile(base).custom_imports.imports, __name__]
        sides = dict(peer=['-c', 'import mgdet_plugin, mmdet.models'])  # ours fills in for mmcv's compiled part
        for side, guard in (('start', 'None'), ('start_measured', '{}')):
            config = folder / f'{side}.py'
            config.write_text(_CONFIG.format(base=str(base), imports=imports, guard=guard,
                                             weights=str(folder / 'start.pth')))
            sides[side] = [str(ROOT / 'tools' / 'train.py'), str(config)]
        for _ in range(repeats + 1):
            for side, words in sides.items():
                runs[side].append(run_once(words, folder))
    rows = []
    for side in ('start', 'start_measured'):
        for index, unit in enumerate(('clock', 'processor')):
            ours, peer = (median(run[index] for run in runs[each][1:]) for each in (side, 'peer'))
            rows.append(dict(suite=f'{side}_{unit}', peer=PEER, device='cpu', threads=1, ours_s=ours, peer_s=peer,
                             ratio=ours / peer))
    return rows


def run_once(words: Sequence[str], folder: Path) -> tuple[float, float]:
    """Seconds on the clock and of the processor that Python takes for some words, child processes included."""
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(paths), 'OMP_NUM_THREADS': '1'}
    env.pop('PYTHONDONTWRITEBYTECODE', None)
    before, start = os.times(), time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - start, os.times()
    if done.returncode:
        raise UserError(f'{" ".join(words)} failed: {(done.stderr.strip() or "no output").splitlines()[-1]}')
    return seconds, after.children_user + after.children_system - before.children_user - before.children_system
