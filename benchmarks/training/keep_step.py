"""What holding adds to a training step of the small model beside the images it brings, which are loaded before."""
from __future__ import annotations

from functools import partial
from typing import Any

import torch
from mmengine.optim import OptimWrapper

from benchmarks.guard_benchmark import small_model
from benchmarks.speed import in_turns
from benchmarks.training.steps import batch_of, row
from mgdet_plugin.engine.optim.step_guard import StepGuard
from mgdet_plugin.keep.holder import Holder
from mgdet_plugin.keep.teacher import Teacher
from mgdet_plugin.models.maths.grid import flatten_maps
from mgdet_plugin.plan.keeping import Keeping

NEW, OLD, SIDE = 4, 2, 192


def keep_step_rows(repeats: int = 20) -> list[dict[str, Any]]:
    """Steps of four new images and two old ones, as ``share`` 1/3 makes them, against steps of the four.

    Returns:
        A row for six new images with nothing held, the least that six can cost, one for old images whose teacher's maps
        are kept, and one for a teacher that is asked in each step.
    """
    both = batch_of(NEW + OLD, SIDE, 5)
    four = {key: values[:NEW] for key, values in both.items()}
    held = dict(both, data_samples=[sample.clone() for sample in both['data_samples']])
    for index, sample in enumerate(held['data_samples'][NEW:]):
        sample.set_metainfo(dict(kept=True, kept_index=index))
    plain, six = _guard()[1], _guard()[1]
    asking, cached = (_holding(held, cache) for cache in (None, 'memory'))
    seconds = in_turns({'four': partial(plain.step, four), 'nothing_held': partial(six.step, both),
                        'cached': partial(cached.step, held), 'asked': partial(asking.step, held)}, repeats)
    alone = seconds.pop('four')
    return [row(f'keep_step_{name}', f'nothing held, {NEW} images of {SIDE} pixels', 's', each, alone)
            for name, each in seconds.items()]


def _guard() -> tuple[Any, StepGuard]:
    """The small model with channels innermost, and what runs its steps."""
    model: Any = small_model(torch.device('cpu')).train()
    model.to(memory_format=torch.channels_last)
    return model, StepGuard(model, OptimWrapper(torch.optim.Adam(model.parameters(), lr=1e-6, eps=1e-7)))


def _holding(batch: dict[str, Any], cache: str | None) -> StepGuard:
    """Steps that hold the model to its own start."""
    model, guard = _guard()
    teacher = Teacher(model, model.state_dict())
    holder = Holder(model, teacher, Keeping(images='old', cache=cache), 'maps')
    if cache:
        old = model.data_preprocessor(batch)['inputs'][NEW:]
        holder.remember(dict(enumerate(flatten_maps(teacher.maps(old)))))
    guard.around = holder.held
    return guard
