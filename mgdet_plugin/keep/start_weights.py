"""The weights a run starts from: kept in one file of its folder, so that a resumed run knows them too."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from weakref import WeakSet

import torch
from mmengine.runner import Runner
from torch import Tensor, nn

from mgdet_plugin.common.checkpoints import load_checkpoint, save_whole, to_plain
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.processes import on_first_rank
from mgdet_plugin.plan.freezing import unwrap

START = 'start.pth'
_SAVED: WeakSet[Runner] = WeakSet()  # runs of this process whose file is written


def save_start(runner: Runner) -> None:
    """Write the weights a run starts from to ``<work_dir>/start.pth``, before its first step.

    A file an earlier run left there is replaced. Called again, for the same run or for a resumed one, it does nothing,
    so that each hook that needs the file may ask for it. Every process calls this; the first one writes.

    Raises:
        UserError: In every process, if the file cannot be written.
    """
    if runner in _SAVED or runner.iter > 0:
        return
    metainfo = getattr(runner.train_dataloader.dataset, 'metainfo', None)
    meta = dict(run=run_name(runner), **(dict(dataset_meta=metainfo) if metainfo else {}))
    state = {key: value.detach().cpu() for key, value in unwrap(runner.model).state_dict().items()}
    on_first_rank(lambda: save_whole(dict(meta=to_plain(meta), state_dict=state), Path(runner.work_dir) / START))
    _SAVED.add(runner)


def load_start(runner: Runner) -> dict[str, Tensor]:
    """The weights a run started from: name -> tensor on the CPU, everything in the model's state dict.

    Every process calls this; the first one reads the file and sends the others what it holds.

    Raises:
        UserError: In every process, if the file is missing, damaged, of another run or of another model.
    """
    def read() -> dict[str, Tensor]:
        path = Path(runner.work_dir) / START
        way_out = 'copy it from the folder the run began in, or start a new run without --resume'
        if not path.is_file():
            raise UserError(f'{path} is not there: it holds the weights this resumed run started from; {way_out}')
        state, content = load_checkpoint(path)
        meta = content.get('meta')
        run, ours = meta.get('run') if isinstance(meta, Mapping) else None, run_name(runner)
        if run and ours and run != ours:
            raise UserError(f'{path} is of the run {run}, and the resumed one is {ours}; {way_out}')
        wanted = unwrap(runner.model).state_dict()
        other = [key for key in {**wanted, **state} if key not in state or key not in wanted
                 or state[key].shape != wanted[key].shape]
        if other:
            raise UserError(f'{path} is of another model: {len(other)} tensors differ ({", ".join(other[:3])}); '
                            f'{way_out}')
        return dict(state)

    state: dict[str, Tensor] = on_first_rank(read)
    return state


def start_state(runner: Runner) -> dict[str, Tensor]:
    """The weights a run starts from, on the CPU: a new run's own, without reading back what was just written.

    Raises:
        UserError: As :func:`load_start`, for a run that was trained before.
    """
    if runner.iter > 0:
        return load_start(runner)
    return {key: value.detach().cpu().clone() for key, value in unwrap(runner.model).state_dict().items()}


def run_name(runner: Runner) -> str | None:
    """What checkpoints call a run, the same before and after it was resumed; None before its plan was read."""
    names = (getattr(getattr(hook, 'progress', None), 'run', None) for hook in runner.hooks)
    return next((str(name) for name in names if name), None)


@torch.no_grad()
def distances(model: nn.Module, start: Mapping[str, Tensor]) -> dict[str, float]:
    """How far a model has moved: part -> ||w - w0|| / ||w0|| over the part's parameters, 0.0 where nothing moved.

    ``start`` has every parameter of the model by name, on any device.
    """
    parts: dict[str, list[str]] = {}
    parameters = dict(unwrap(model).named_parameters())
    for name in parameters:
        parts.setdefault(name.split('.')[0], []).append(name)
    found = {}
    for part, names in parts.items():
        begun = [start[name].to(parameters[name]) for name in names]
        moved = torch._foreach_sub([parameters[name] for name in names], begun)
        far, size = _norm(moved), _norm(begun)
        found[part] = far / size if size else (float('inf') if far else 0.0)
    return found


def _norm(tensors: Sequence[Tensor]) -> float:
    """The Euclidean norm of many tensors as one; in float64, as a small step's square has no float32."""
    norms = torch._foreach_norm(list(tensors), 2, torch.float64)
    return float(torch.linalg.vector_norm(torch.stack(list(norms))))
