"""The validation loop: metrics and every loss term from one pass, of one domain or several."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.registry import LOOPS
from mmengine.dist import is_distributed
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner, ValLoop
from torch.utils.data import DataLoader

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.interruption import ASKED, Interrupted
from mgdet_plugin.engine.loops.validation import (
    LossMeter,
    measure,
    measured_step,
    own_images,
    truth_is_scaled,
)
from mgdet_plugin.models.one_pass import is_one_pass
from mgdet_plugin.plan.freezing import unwrap

PREFIX = 'val'


@LOOPS.register_module()
class LossValLoop(ValLoop):
    """mmengine's validation loop that also gives the losses: ``val/loss``, ``val/loss_obj``, ...

    They are means over images of the recipe's loss (its scales, normaliser 'batch', no class weights), from the same
    forward pass as the predictions for detectors with a dense head (others need a second pass, which is said once), and
    may be the metric of ``CheckpointHook(save_best=...)``, of a stage's ``until`` and of early stopping.

    Args:
        runner: The runner.
        dataloader: As in ``ValLoop``; its pipeline loads boxes.
        evaluator: As in ``ValLoop``.
        fp16: As in ``ValLoop``.
        others: Name -> dict(dataloader=..., evaluator=...) of further validation sets, such as the domain the weights
            come from: ``others=dict(old=...)`` adds ``old/loss``, ``old/coco/bbox_mAP``, ....

    Raises:
        UserError: If an entry of ``others`` is not of this form.
    """

    def __init__(self, runner: Runner, dataloader: DataLoader | dict[str, Any],
                 evaluator: Evaluator | dict[str, Any] | list, fp16: bool = False,
                 others: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        super().__init__(runner, dataloader, evaluator, fp16)
        own = runner.visualizer.dataset_meta
        self.others: dict[str, ValLoop] = {}
        for name, each in (others or {}).items():
            check_other(name, each)
            self.others[name] = ValLoop(runner, each['dataloader'], each['evaluator'], fp16)
        runner.visualizer.dataset_meta = own  # the last loop built had set its own
        self.meter = LossMeter()
        self.images: int | None = None
        self.scaled = True
        if not is_one_pass(unwrap(runner.model)):
            runner.logger.warning(f'{type(unwrap(runner.model)).__name__}: losses and predictions do not come out of '
                                  'one pass here, so validation makes two')

    def run(self) -> dict[str, float]:
        """Validate; hooks get the metrics of all domains."""
        self.runner.call_hook('before_val')
        self.runner.call_hook('before_val_epoch')
        self.runner.model.eval()
        self.meter, self.images = LossMeter(), own_images(self.dataloader)
        self.scaled = truth_is_scaled(self.dataloader.dataset)
        for index, batch in enumerate(self.dataloader):
            self.run_iter(index, batch)
        metrics = dict(self.evaluator.evaluate(len(self.dataloader.dataset)))
        metrics.update(_named(PREFIX, self.meter.means(next(unwrap(self.runner.model).parameters()).device)))
        metrics.update(self._measure_others())
        self.runner.call_hook('after_val_epoch', metrics=metrics)
        self.runner.call_hook('after_val')
        return metrics

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: Sequence[dict]) -> None:
        """Predict on a batch and measure its losses.

        Raises:
            Interrupted: A signal has asked a training in one process to end; several end after the validation.
        """
        if ASKED.number is not None and not is_distributed():
            raise Interrupted
        self.runner.call_hook('before_val_iter', batch_idx=idx, data_batch=data_batch)
        outputs = measured_step(self.runner.model, data_batch, self.meter, self.images, self.fp16,
                                scaled=self.scaled)
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        self.runner.call_hook('after_val_iter', batch_idx=idx, data_batch=data_batch, outputs=outputs)

    def measure(self) -> dict[str, float]:
        """What :meth:`run` would give the hooks, without any hook; leaves the model in evaluation mode."""
        found = measure(self.runner.model, self.dataloader, self.evaluator, self.fp16)
        own = {f'{PREFIX}/{name}' if '/' not in name and name.startswith('loss') else name: value
               for name, value in found.items()}
        return {**own, **self._measure_others()}

    def _measure_others(self) -> dict[str, float]:
        """Metrics and losses of the other validation sets, under their names."""
        found: dict[str, float] = {}
        for name, loop in self.others.items():
            found.update(_named(name, measure(self.runner.model, loop.dataloader, loop.evaluator, self.fp16)))
        return found


def _named(domain: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f'{domain}/{name}': value for name, value in values.items()}


def check_other(name: str, entry: Any) -> None:
    """Refuse a further validation set that is not fully given.

    Raises:
        UserError: With what is missing.
    """
    if not isinstance(entry, Mapping) or set(entry) != {'dataloader', 'evaluator'}:
        raise UserError(f"val_cfg.others['{name}'] must be dict(dataloader=..., evaluator=...), got "
                        f'{sorted(entry) if isinstance(entry, Mapping) else entry!r}')
    if name in (PREFIX, 'train', 'test', 'drift', 'weights') or not name.isidentifier():
        raise UserError(f"val_cfg.others: '{name}' cannot name a validation set; take a word such as 'old'")
