"""Training steps that leave no trace when a number in them is not finite.

Running statistics move in the forward pass, before a bad loss is known, so they are kept and put back. In several
processes one bad number anywhere makes all skip the step.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.dist import all_reduce, is_distributed
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mgdet_plugin.plan.freezing import unwrap

IMAGE, LABEL, LOSS, GRADIENT = 'image', 'label', 'loss', 'gradient'
_OVERFLOWS_IN_A_ROW = 20  # of a loss scaler, which lowers its scale at each


@dataclass(frozen=True)
class Fault:
    """What was not finite in a step.

    Attributes:
        kind: 'image', 'label', 'loss' or 'gradient'.
        names: Of the files, terms or parameters, as far as this process knows; empty where another process saw it.
    """
    kind: str
    names: tuple[str, ...] = ()


class StepGuard:
    """Runs training steps of a detector, wrapped or not, and undoes what a bad one has changed.

    Attributes:
        around: Makes the context in which a step is done.
    """

    def __init__(self, model: nn.Module, optim_wrapper: OptimWrapper) -> None:
        self.around: Callable[[], AbstractContextManager] = nullcontext
        self.model: Any = model
        self.optim = CheckedOptim(optim_wrapper, unwrap(model))
        self.buffers = [buffer for buffer in unwrap(model).buffers() if buffer.numel()]
        self.kept = [buffer.clone() for buffer in self.buffers]

    def step(self, batch: Any) -> tuple[dict[str, Any], Fault | None]:
        """One training step: what ``train_step`` returns, empty after a fault; and the fault, if there was one."""
        fault = self.optim.agree(bad_input(batch))
        if fault is not None:
            self.optim.skip()
            return {}, fault
        torch._foreach_copy_(self.kept, self.buffers)
        self.optim.fault = None
        with self.around():
            outputs = self.model.train_step(batch, optim_wrapper=self.optim)
        fault = self.optim.fault
        if fault is None:
            return outputs, None
        torch._foreach_copy_(self.buffers, self.kept)
        if fault.kind == LOSS and not fault.names:
            fault = Fault(LOSS, tuple(name for name, value in outputs.items() if not is_finite(value)))
        return {}, fault


class CheckedOptim:
    """An optimizer wrapper whose ``update_params`` steps only with a finite loss and finite gradients.

    A bad iteration takes its whole group of accumulated iterations with it. Everything else is the wrapper's own.

    Attributes:
        fault: Of the last call of ``update_params``.
        poisoned: Whether the group of accumulated iterations will make no step.
    """

    def __init__(self, inner: OptimWrapper, model: nn.Module) -> None:
        self.inner = inner
        self.model = model
        self.device = next(model.parameters()).device
        self.fault: Fault | None = None
        self.poisoned = False
        self._overflows = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def update_params(self, loss: Tensor, step_kwargs: dict | None = None, zero_kwargs: dict | None = None) -> None:
        """Do what ``OptimWrapper.update_params`` does, or drop the step and say why in ``fault``."""
        self.fault = self.agree(None if is_finite(loss) else Fault(LOSS))
        if self.fault is not None:
            self.skip(zero_kwargs)
            return
        self.inner.backward(self.inner.scale_loss(loss))
        if not self.inner.should_update():
            return
        if not self.poisoned:
            self.fault = self._gradient_fault()
        if not self.poisoned and self.fault is None:
            self.inner.step(**(step_kwargs or {}))
        self._close_group(zero_kwargs)

    def skip(self, zero_kwargs: dict | None = None) -> None:
        """Count an iteration that gives no gradient; its group of accumulated iterations makes no step."""
        self.poisoned = True
        self.inner._inner_count += 1
        if self.inner.should_update():
            self._close_group(zero_kwargs)

    def agree(self, fault: Fault | None) -> Fault | None:
        """The fault of any process: its own, or one of the same kind without names."""
        if not is_distributed():
            return fault
        kinds = (None, IMAGE, LABEL, LOSS, GRADIENT)
        seen = torch.tensor(kinds.index(fault and fault.kind), device=self.device)
        all_reduce(seen, 'max')
        worst = kinds[int(seen)]
        return fault if fault is not None or worst is None else Fault(worst)

    def _close_group(self, zero_kwargs: dict | None) -> None:
        self.inner.zero_grad(**(zero_kwargs or {}))
        self.poisoned = False

    def _gradient_fault(self) -> Fault | None:
        """The gradients that are not finite; DDP has made them the same in all processes.

        With a loss scaler an overflow is no fault: the scaler skips the step and lowers its scale, unless that does
        not help.
        """
        parameters = [parameter for group in self.inner.param_groups for parameter in group['params']
                      if parameter.grad is not None]
        if are_finite([parameter.grad for parameter in parameters]):
            self._overflows = 0
            return None
        if isinstance(self.inner, AmpOptimWrapper) and self.inner.loss_scaler.is_enabled():
            self._overflows += 1
            if self.inner.loss_scaler.get_scale() > 1 and self._overflows < _OVERFLOWS_IN_A_ROW:
                return None  # the scaler's step changes nothing but its scale
        return Fault(GRADIENT, tuple(name for name, each in self.model.named_parameters()
                                     if each.grad is not None and not are_finite([each.grad])))


def bad_input(batch: Any) -> Fault | None:
    """What is not finite in the images or boxes of a batch, with the names of the files.

    Args:
        batch: ``inputs`` (images, stacked or in a list) and ``data_samples``, as mmdet collates them.
    """
    if not isinstance(batch, Mapping):
        return None
    samples = batch.get('data_samples') or []
    images = batch.get('inputs')
    bad = [index for index, image in enumerate(images if images is not None else ())
           if isinstance(image, Tensor) and image.is_floating_point() and not bool(torch.isfinite(image).all())]
    if bad:
        return Fault(IMAGE, file_names([samples[index] for index in bad if index < len(samples)]))
    wrong = [sample for sample in samples if not _has_good_boxes(sample)]
    return Fault(LABEL, file_names(wrong)) if wrong else None


def file_names(samples: Sequence[Any]) -> tuple[str, ...]:
    """Paths of the images of data samples."""
    metas = [getattr(sample, 'metainfo', {}) for sample in samples]
    return tuple(str(meta.get('img_path', meta.get('img_id', 'unknown'))) for meta in metas)


def are_finite(tensors: Sequence[Tensor | None]) -> bool:
    """Whether all numbers of some tensors are finite; one synchronisation a device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        if tensor is not None and tensor.numel():
            by_device.setdefault(tensor.device, []).append(tensor)
    # The Euclidean norm is ten times faster than the largest number, and overflows before that does.
    return all(_have_finite_norms(group, 2) or _have_finite_norms(group, float('inf')) for group in by_device.values())


def _have_finite_norms(tensors: Sequence[Tensor], order: float) -> bool:
    norms = torch.stack([each.float() for each in torch._foreach_norm(list(tensors), order)])
    return bool(torch.isfinite(norms).all())


def _has_good_boxes(sample: Any) -> bool:
    objects = getattr(sample, 'gt_instances', None)
    boxes = getattr(objects, 'bboxes', None) if isinstance(objects, BaseDataElement) else None
    boxes = getattr(boxes, 'tensor', boxes)
    return not isinstance(boxes, Tensor) or bool(torch.isfinite(boxes).all())


def is_finite(value: Any) -> bool:
    """Whether a loss is finite; what is no tensor is not asked."""
    return bool(torch.isfinite(value).all()) if isinstance(value, Tensor) else True
