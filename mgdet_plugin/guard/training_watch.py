"""What the guard sees in training: losses that stand out or rise, and steps that were skipped."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.dist import all_gather_object, is_distributed, is_main_process
from torch import Tensor
from torch.utils.data import DataLoader

from mgdet_plugin.common.guard_record import StageStart
from mgdet_plugin.common.records import append_line, ratio
from mgdet_plugin.engine.optim.step_guard import Fault, file_names, is_finite
from mgdet_plugin.guard.baselines import FULL, measure_subset
from mgdet_plugin.guard.guard_actions import TRAINING, GuardActions, times
from mgdet_plugin.guard.guard_options import MISMATCH, NAN, ROLLBACK, STOP
from mgdet_plugin.guard.loss_watch import DIVERGENCE, DRIFT, SPIKE, LossBlock, LossWatch, Sign
from mgdet_plugin.models.multigrid_loss import MultiGridLoss
from mgdet_plugin.plan.freezing import unwrap

BAD_BATCHES = 'bad_batches.jsonl'


class TrainingWatch:
    """Watches the losses of a run's iterations; its guard does something about what is seen.

    Args:
        guard: The actions.
        losses: What is known of the losses so far.
        subset: Validation images on which a drift is measured; None where there is no band to leave.
    """

    def __init__(self, guard: GuardActions, losses: LossWatch, subset: DataLoader | None) -> None:
        self.guard, self.losses, self.subset = guard, losses, subset
        self.block = LossBlock()

    def begin_stage(self) -> None:
        """Begin to watch anew where a stage begins."""
        record, run = self.guard.record, self.guard.run
        progress = run.progress
        if record.stages and record.stages[-1].index == progress.stage:
            return
        self.losses, self.block = LossWatch(), LossBlock()
        record.stages.append(StageStart(index=progress.stage, name=run.stage.name,
                                        first_epoch=progress.first_epoch, first_iter=progress.first_iter))
        self.guard.write()

    def add(self, outputs: Mapping[str, Any]) -> None:
        """Take what an iteration gave; one with a loss that is not finite tells nothing."""
        if outputs and all(is_finite(value) for value in outputs.values()):
            self.guard.record.bad_in_row = 0
            self.block.add({name: float(value.detach() if isinstance(value, Tensor) else value)
                            for name, value in outputs.items() if 'loss' in name})

    def look(self) -> None:
        """Take what the block holds, and see to its signs."""
        if not self.block.count:
            return
        options, record, count = self.guard.options, self.guard.record, self.block.count
        means, peak = self.block.over_processes(next(unwrap(self.guard.runner.model).parameters()).device)
        self.block = LossBlock()
        spike = self.losses.spike(peak, options.spike_factor)
        self.losses.take(means, count, options.window)
        self._compare_with_validation()
        guarded = record.guarded if self.subset is not None else ()
        signs = list(self.losses.signs(options.divergence_factor, record.limit, guarded))
        for sign in (*([spike] if spike else []), *signs):
            if self._heed(sign):
                break

    def _compare_with_validation(self) -> None:
        """Hold a run's first training losses against those of validation images, once.

        Both are of the loaded weights and of images of one kind. Far apart they mean that the training labels are not
        those the weights know, or that the loss is another one.
        """
        record, reference = self.guard.record, self.losses.reference
        if record.compared or not reference or record.start != FULL or not record.pretrained:
            return
        record.compared = True
        losses = [each for each in unwrap(self.guard.runner.model).modules() if isinstance(each, MultiGridLoss)]
        if any(each.normalizers != ('batch', ) for each in losses):
            return  # then the two are not the same quantity
        ratios = {name: reference[name] / record.pretrained[f'val/{name}'] for name in record.guarded
                  if record.pretrained.get(f'val/{name}') and name in reference}
        if any(ratio > self.guard.options.mismatch_factor for ratio in ratios.values()):
            self.guard.trouble(
                MISMATCH, TRAINING, ratios, f'the first training losses are {times(ratios)} times those of validation '
                'images: labels in another order than the weights have them, images without their boxes, or loss '
                'scales and normaliser that are not theirs')

    def _heed(self, sign: Sign) -> bool:
        """See to a sign; returns whether the weights were put back or the run ends."""
        values, text = sign.values, f'{times(sign.values)} times its smoothed value'
        if sign.kind == DIVERGENCE:
            text = f'smoothed {times(values)} times its lowest of the stage'
        elif sign.kind == DRIFT:
            values, text = self._measured_drift()
            if not any(map(self.guard.is_over, values.values())):
                self.guard.runner.logger.info(
                    f"guard: training losses are {times(sign.values)} times those of the stage's first iterations; "
                    f'measured they are in the band: {text}')
                self.losses.accept()
                return False
        taken = self.guard.trouble(sign.kind, TRAINING, values, text)
        if ROLLBACK in taken:
            self.losses.forget()
        elif sign.kind != SPIKE:
            self.losses.accept()
        return ROLLBACK in taken or STOP in taken

    def _measured_drift(self) -> tuple[dict[str, float], str]:
        """The losses on the subset over those of the loaded weights, and that in words."""
        assert self.subset is not None
        record, now = self.guard.record, measure_subset(self.guard.runner, self.subset)
        values = {name: ratio(now[f'val/{name}'], record.subset[f'val/{name}']) for name in record.guarded}
        return values, (f"{times(values, record.limit)} times the loaded weights' on "
                        f'{len(self.subset.dataset)} validation images')  # type: ignore[arg-type]

    def count_fault(self, fault: Fault, batch: Any) -> None:
        """Write down a skipped step, and act when there are too many in a row."""
        record, runner = self.guard.record, self.guard.runner
        record.bad_steps += 1
        record.bad_in_row += 1
        files = file_names(batch.get('data_samples') or ()) if isinstance(batch, Mapping) else ()
        seen: list[Any] = [(fault.names, files)]
        if is_distributed():
            seen = all_gather_object(seen[0])
        where = dict(epoch=runner.epoch + 1, iter=runner.iter + 1, kind=fault.kind)
        if is_main_process():
            for rank, (names, paths) in enumerate(seen):
                append_line(runner.work_dir, BAD_BATCHES, dict(where, rank=rank, names=names, files=paths))
        names = next((names for names, _ in seen if names), ())
        text = f'the {fault.kind} is not finite ({", ".join(names[:3]) or "in no named place"}): the step is skipped'
        if record.bad_in_row < self.guard.options.nan_patience:
            self.guard.note(NAN, TRAINING, {}, ['skip'], f'{text}; files of the batch are in {BAD_BATCHES}')
            return
        count, record.bad_in_row = record.bad_in_row, 0
        if ROLLBACK in self.guard.trouble(NAN, TRAINING, {}, f'{text}, {count} in a row'):
            self.losses.forget()
            self.block = LossBlock()
