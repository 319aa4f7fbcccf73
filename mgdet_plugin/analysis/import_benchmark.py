"""The import of a full-size weights file beside Keras' own ``load_weights`` of it.

Each side runs in a process of its own and is counted after its imports: seconds, and memory beyond what the imports
took. Ours reads, proves, reports and writes a checkpoint; Keras builds its network (not counted) and loads.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mgdet_plugin.errors import UserError

PEER = 'Keras load_weights of the same file'


def import_rows(repeats: int = 3) -> list[dict[str, Any]]:
    """Measure both sides in turns on a file of the full network, random weights, 80 classes.

    Args:
        repeats: Runs of each side, every one in a new process.

    Returns:
        Two rows, seconds and memory, each with ours, the peer's and the ratio.

    Raises:
        UserError: Keras is not installed.
    """
    runs: dict[str, list[dict[str, float]]] = dict(ours=[], keras=[])
    with TemporaryDirectory() as folder:
        source = make_source(Path(folder))
        size = source.stat().st_size
        for _ in range(repeats):
            for side, measured in runs.items():
                measured.append(run_side(side, source))
    rows = []
    for field, unit in (('seconds', 's'), ('memory', 'file sizes')):
        ours, peer = (median(run[field] for run in runs[side]) / (1 if field == 'seconds' else size) for side in runs)
        rows.append(dict(suite=f'import_{field}', peer=f'{PEER}, {size / 1e6:.0f} MB; {unit}', device='cpu',
                         threads=torch.get_num_threads(), ours_s=ours, peer_s=peer, ratio=ours / peer))
    return rows


def make_source(folder: Path) -> Path:
    """A Keras file of the default config's model with random weights."""
    from mmdet.registry import MODELS

    from mgdet_plugin.keras_io.exporter import export_keras
    from mgdet_plugin.keras_io.network import load_config

    torch.manual_seed(0)
    checkpoint, source = folder / 'random.pth', folder / 'model5.h5'
    torch.save(dict(state_dict=MODELS.build(load_config(None).model).state_dict(), meta={}), checkpoint)
    export_keras(checkpoint, source)
    checkpoint.unlink()
    return source


def run_side(side: str, source: Path) -> dict[str, float]:
    """Run one side in a new process and return what it measured."""
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get('PYTHONPATH')])]
    done = subprocess.run([sys.executable, '-m', __name__, side, str(source)], capture_output=True, text=True,
                          check=False, env={**os.environ, 'PYTHONPATH': os.pathsep.join(paths)})
    if done.returncode:
        raise UserError(f'the {side} side of the import benchmark failed: {done.stderr.strip()[-300:]}')
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def our_import(source: Path) -> Callable[[], object]:
    """Import what an import needs; what is left to do."""
    import mgdet_plugin.datasets
    import mgdet_plugin.engine
    import mgdet_plugin.models  # noqa: F401
    from mgdet_plugin.keras_io.importer import import_keras

    return lambda: import_keras(source, source.with_name('out.pth'))


def keras_load(source: Path) -> Callable[[], object]:
    """Import Keras and build its network; what is left to do."""
    from mgdet_plugin.keras_io.archive import open_weights
    from mgdet_plugin.keras_io.keras_model import build_keras_model, shapes_of
    from mgdet_plugin.keras_io.layout import resolve

    with open_weights(source) as weights:
        model = build_keras_model(shapes_of(resolve(weights)))
    return lambda: model.load_weights(str(source))


def peak_memory() -> int:
    """Highest resident memory of this process so far, in bytes."""
    status = Path('/proc/self/status').read_text()
    return int(status.partition('VmHWM:')[2].split()[0]) * 1024


def measure(work: Callable[[], object]) -> dict[str, float]:
    """Seconds of some work, and the memory it takes at its highest beyond what is held before it."""
    Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew from what is resident now
    before = peak_memory()
    start = time.perf_counter()
    work()
    return dict(seconds=time.perf_counter() - start, memory=peak_memory() - before)


SIDES: dict[str, Callable[[Path], Callable[[], object]]] = dict(ours=our_import, keras=keras_load)

if __name__ == '__main__':
    print(json.dumps(measure(SIDES[sys.argv[1]](Path(sys.argv[2])))))
