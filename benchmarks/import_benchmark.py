"""The import of a full-size weights file beside Keras' own ``load_weights`` of it.

Each side runs in a process of its own and is counted after its imports: seconds, those of the processor, which other
work does not change (threads and child processes included), and memory beyond what the imports took. Ours reads,
proves, reports and writes a checkpoint; Keras builds its network and loads into it.
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
from threading import Event, Thread
from typing import Any

import torch

from mgdet_plugin.common.errors import UserError

PEER = 'Keras, network built and load_weights of the same file'


def import_rows(repeats: int = 3) -> list[dict[str, Any]]:
    """Measure both sides in turns on a file of the full network, random weights, 80 classes.

    Args:
        repeats: Runs of each side, every one in a new process.

    Returns:
        Three rows, seconds, memory and the processor's seconds, each with ours, the peer's and the ratio.

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
    for field, unit in (('seconds', 's'), ('memory', 'file sizes'), ('processor', 's')):
        ours, peer = (median(run[field] for run in runs[side]) / (size if field == 'memory' else 1) for side in runs)
        rows.append(dict(suite=f'import_{field}', peer=f'{PEER}, {size / 1e6:.0f} MB', unit=unit, device='cpu',
                         threads=torch.get_num_threads(), ours_s=ours, peer_s=peer, ratio=ours / peer))
    return rows


def make_source(folder: Path) -> Path:
    """A Keras file of the default config's model with random weights."""
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    from mgdet_plugin.weights.exporter import export_keras
    from mgdet_plugin.weights.mapping.network import load_config

    init_default_scope('mmdet')
    torch.manual_seed(0)
    checkpoint, source = folder / 'random.pth', folder / 'model5.h5'
    torch.save(dict(state_dict=MODELS.build(load_config(None).model).state_dict(), meta={}), checkpoint)
    export_keras(checkpoint, source)
    checkpoint.unlink()
    return source


def run_side(side: str, source: Path) -> dict[str, float]:
    """Run one side in a new process and return what it measured."""
    root = str(Path(__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get('PYTHONPATH')])]
    done = subprocess.run([sys.executable, '-m', __name__, side, str(source)], capture_output=True, text=True,
                          check=False, env={**os.environ, 'PYTHONPATH': os.pathsep.join(paths)})
    if done.returncode:
        raise UserError(f'the {side} side of the import benchmark failed: {done.stderr.strip().splitlines()[-1]}')
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def our_import(source: Path) -> Callable[[], object]:
    """Import what an import needs; what is left to do."""
    import mgdet_plugin.datasets
    import mgdet_plugin.engine
    import mgdet_plugin.models  # noqa: F401
    from mgdet_plugin.weights.importer import import_keras

    return lambda: import_keras(source, source.with_name('out.pth'))


def keras_load(source: Path) -> Callable[[], object]:
    """Import Keras; what is left to do."""
    from mgdet_plugin.weights.container.archive import open_weights
    from mgdet_plugin.weights.keras_model import NetworkShapes, build_keras_model, load_keras
    from mgdet_plugin.weights.mapping.layout import resolve_layers

    load_keras()
    with open_weights(source) as weights:
        layout = resolve_layers(weights)
    kernels, predictions = (tuple(layer.arrays['kernel'].shape for layer in layers)
                            for layers in (layout.convs, layout.predictions))

    def load() -> None:
        model = build_keras_model(NetworkShapes(kernels, predictions))
        start = time.perf_counter()
        model.load_weights(str(source))
        print(f'load_weights alone {time.perf_counter() - start:.2f} s', file=sys.stderr)

    return load


def peak_memory(process: str = 'self') -> int:
    """Highest resident memory of a process so far, in bytes; 0 once it has ended."""
    try:
        status = Path(f'/proc/{process}/status').read_text()
        return int(status.partition('VmHWM:')[2].split()[0]) * 1024
    except (OSError, IndexError):
        return 0


class ChildrenWatch(Thread):
    """Looks every few milliseconds for the highest memory of this process's children.

    Attributes:
        peak: Bytes.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._done = Event()

    def run(self) -> None:
        """Look until told to stop."""
        own = Path('/proc/self/cmdline').read_bytes()
        while not self._done.wait(0.005):
            for child in Path(f'/proc/self/task/{os.getpid()}/children').read_text().split():
                try:
                    started = Path(f'/proc/{child}/cmdline').read_bytes() != own  # before that it shares our memory
                except OSError:
                    continue
                self.peak = max(self.peak, peak_memory(child) if started else 0)

    def stop(self) -> int:
        """End the watch and return the peak."""
        self._done.set()
        self.join()
        return self.peak


def measure(work: Callable[[], object]) -> dict[str, float]:
    """Seconds of some work, those of the processor, and the most memory it and its children take beyond that held."""
    Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew from what is resident now
    before = peak_memory()
    watch = ChildrenWatch()
    watch.start()
    start, used = time.perf_counter(), sum(os.times()[:4])
    work()
    seconds, used = time.perf_counter() - start, sum(os.times()[:4]) - used
    return dict(seconds=seconds, processor=used, memory=peak_memory() - before + watch.stop())


SIDES: dict[str, Callable[[Path], Callable[[], object]]] = dict(ours=our_import, keras=keras_load)

if __name__ == '__main__':
    print(json.dumps(measure(SIDES[sys.argv[1]](Path(sys.argv[2])))))
