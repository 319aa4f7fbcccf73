"""The training loop of a plan."""
from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from mmdet.engine.hooks import CheckInvalidLossHook
from mmdet.registry import LOOPS
from mmengine.dataset import ConcatDataset
from mmengine.dist import all_reduce, get_comm_device, is_distributed
from mmengine.hooks import EMAHook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.interruption import ASKED, Interrupted
from mgdet_plugin.datasets.old_images import OldImages, image_paths, old_pipeline, pipeline_of
from mgdet_plugin.datasets.staged.staged_batch_sampler import StagedBatchSampler
from mgdet_plugin.engine.hooks.channels_last_hook import lay_out_mixed_precision
from mgdet_plugin.engine.hooks.keep_hook import KeepHook
from mgdet_plugin.engine.hooks.random_state_hook import random_state, set_random_state
from mgdet_plugin.engine.hooks.staged_unfreeze_hook import StagedUnfreezeHook
from mgdet_plugin.engine.hooks.trunk_cache_hook import TrunkCacheHook
from mgdet_plugin.engine.optim.moving_average import ema_hooks
from mgdet_plugin.engine.optim.staged_optim_wrapper_constructor import StagedOptimWrapperConstructor
from mgdet_plugin.engine.optim.step_guard import Fault, StepGuard
from mgdet_plugin.engine.staged_run import StagedRun
from mgdet_plugin.engine.transitions import save_interrupted
from mgdet_plugin.plan.keeping import Keeping
from mgdet_plugin.plan.plan import Plan, build_plan
from mgdet_plugin.plan.rates import CONSTRUCTOR
from mgdet_plugin.plan.wiring import config_steps, stage_probs


@LOOPS.register_module()
class StagedTrainLoop(EpochBasedTrainLoop):
    """mmengine's loop over epochs, derived from the config's ``stages``.

    Beyond ``EpochBasedTrainLoop``: its length is the plan's; the training set is wrapped so that augmentation follows
    the plan and is a function of (seed, epoch, sample); a run resumed in the middle of an epoch goes on with the next
    batch; a validation that an interruption left out is made up for; asked to end by a signal it saves where it is in
    ``interrupted.pth``, which the next checkpoint replaces; a step with a number that is not finite changes
    nothing, see :class:`StepGuard`.

    Args:
        runner: The runner; its config holds the plan.
        dataloader: Config of the training dataloader, with any dataset and sampler of mmdet.
        max_epochs: Ends the plan early. Default: all of it.
        end_epoch: Epochs of the run after which its last stage ends, later than planned. A run that has taken it
            up keeps it in its checkpoints.
        **kwargs: ``val_begin``, ``val_interval``, ``dynamic_intervals`` of ``EpochBasedTrainLoop``.

    Raises:
        UserError: If the plan is wrong or the hook that carries it out is not registered.
    """

    def __init__(self, runner: Runner, dataloader: DataLoader | dict[str, Any], max_epochs: int | None = None,
                 end_epoch: int | None = None, **kwargs: Any) -> None:
        self.cap, self.end_epoch = max_epochs, end_epoch
        plan = _the_plan(runner)
        runner.optim_wrapper = _with_plan(runner, plan)
        super().__init__(runner, staged_dataloader(dataloader, plan, runner.cfg.get('val_dataloader')),
                         min(plan.epochs, max_epochs or plan.epochs), **kwargs)
        self.staged = StagedRun(runner, self, plan)
        lay_out_mixed_precision(runner)
        if plan.keep is not None:
            runner.register_hook(KeepHook(plan.keep))
        if plan.trunk_cache is not None:
            runner.register_hook(TrunkCacheHook(plan.trunk_cache))
        self.skip = 0  # batches of the coming epoch that were trained on before an interruption
        self.fault: Fault | None = None  # of the iteration just done
        self.stop_reason: str | None = None
        self.stopping = False  # a signal has asked for the end: the state is saved after this iteration

    @property
    def batch_sampler(self) -> StagedBatchSampler | None:
        """The sampler that knows the stage; None where a built dataloader was given."""
        sampler = self.dataloader.batch_sampler
        return sampler if isinstance(sampler, StagedBatchSampler) else None

    def steps(self, stage: int) -> int:
        """Iterations an epoch in a stage."""
        return self.batch_sampler.batches_of(stage) if self.batch_sampler is not None else len(self.dataloader)

    @cached_property
    def step_guard(self) -> StepGuard:
        """What runs the training steps; made when the model and its optimizer are final."""
        return StepGuard(self.runner.model, self.runner.optim_wrapper)

    def stop(self, reason: str) -> None:
        """End the run after this iteration or validation, as a failed one; ``reason`` says why and what to do."""
        self.stop_training, self.stop_reason = True, reason

    def run(self) -> nn.Module:
        """Train to the end of the plan.

        Raises:
            UserError: If the run was stopped.
            Interrupted: A signal asked for its end.
        """
        self.runner.call_hook('before_train')
        with ASKED.after_step():
            self._run_epochs()
        if self.stop_reason is not None:
            raise UserError(self.stop_reason)
        return self.runner.model

    def _run_epochs(self) -> None:
        hub = self.runner.message_hub
        if self._iter:  # until the next step the hub tells the last one, as when nothing was interrupted
            hub.update_info('iter', self._iter - 1)
        if self.staged.is_validation_missing() and self._is_validated_epoch():
            hub.update_info('epoch', self._epoch - 1)
            self._validate()
        if self.end_epoch is not None:
            self.staged.extend(self.end_epoch)
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            if not self.stop_training and self._is_validated_epoch():
                self._validate()
        self.runner.call_hook('after_train')

    def _validate(self) -> None:
        """Validate; asked to end meanwhile, save the state before it, and a resumed run makes up for it."""
        before = random_state()
        try:
            self.runner.val_loop.run()
        except Interrupted:
            set_random_state(before)
            for hook in ema_hooks(self.runner):
                hook._swap_ema_parameters()
            self._save_and_end()

    def _save_and_end(self) -> None:
        """Save where the run is and end it."""
        raise Interrupted(f'after iteration {self._iter} of {self._max_iters}, which {save_interrupted(self.runner)} '
                          'holds')

    def run_epoch(self) -> None:
        """Iterate over an epoch, or what is left of it."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for index, data_batch in enumerate(self.dataloader, start=self.skip):
            self.run_iter(index, data_batch)
            if self.stop_reason is not None:  # in the middle of an epoch: no checkpoint of an epoch, no validation
                return
            if self.stopping:
                self._save_and_end()
        self.skip = 0
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """One step; after a bad one, which changed nothing, no moving average of the weights moves either."""
        self.runner.call_hook('before_train_iter', batch_idx=idx, data_batch=data_batch)
        outputs, self.fault = self.step_guard.step(data_batch)
        self.stopping = is_asked_anywhere()
        for hook in list(self.runner.hooks):
            if self.fault is None or not isinstance(hook, (EMAHook, CheckInvalidLossHook)):
                hook.after_train_iter(self.runner, batch_idx=idx, data_batch=data_batch, outputs=outputs)
        self._iter += 1

    def _is_validated_epoch(self) -> bool:
        """Whether a validation follows the epoch just done."""
        self._decide_current_val_interval()
        return bool(self.runner.val_loop is not None and self._epoch >= self.val_begin
                    and (self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs))


def is_asked_anywhere() -> bool:
    """Whether a signal has asked any of the processes to end; they must all end after the same iteration."""
    if not is_distributed():
        return ASKED.number is not None
    asked = torch.tensor(float(ASKED.number is not None), device=get_comm_device())
    all_reduce(asked, 'max')
    return bool(asked)


def _the_plan(runner: Runner) -> Plan:
    """The plan of the runner's config; stages given to the hook are put there."""
    hook, stages = _the_hook(runner), runner.cfg.get('stages')
    if hook.stages is not None and stages and build_plan(hook.stages) != build_plan(stages):
        raise UserError('the config has stages, and StagedUnfreezeHook has others; give them once, in the config')
    if not stages:
        if hook.stages is None:
            raise UserError('StagedUnfreezeHook found no stages; set stages=[dict(name=..., epochs=..., lr=..., '
                            'freeze_level=...)] in the config')
        runner.cfg.stages = [dict(stage) for stage in hook.stages]
    return Plan.from_cfg(runner.cfg)


def _with_plan(runner: Runner, plan: Plan) -> Any:
    """The optimizer's wrapper over groups by part, which depend on the plan; any other config as it is."""
    cfg = runner.optim_wrapper
    if not isinstance(cfg, Mapping) or cfg.get('constructor') != CONSTRUCTOR:
        return cfg
    fields = {key: value for key, value in cfg.items() if key not in ('constructor', 'paramwise_cfg')}
    return StagedOptimWrapperConstructor(fields, cfg.get('paramwise_cfg'), plan)(runner.model)


def _the_hook(runner: Runner) -> StagedUnfreezeHook:
    """The hook that carries out the plan; one with stages of its own takes the place of the default one."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, StagedUnfreezeHook)]
    own = [hook for hook in hooks if hook.stages is not None]
    if len(own) == 1:
        runner._hooks = [hook for hook in runner.hooks if hook not in hooks or hook in own]
        hooks = own
    if not hooks:
        raise UserError('StagedTrainLoop found no StagedUnfreezeHook, so nothing would be frozen; add '
                        "default_hooks=dict(staged_unfreeze=dict(type='StagedUnfreezeHook'))")
    if len(hooks) > 1:
        raise UserError(f'StagedTrainLoop needs one StagedUnfreezeHook, found {len(hooks)}; it is a default hook '
                        'already, so take it out of custom_hooks')
    return hooks[0]


def staged_dataloader(dataloader: DataLoader | dict[str, Any], plan: Plan,
                      validation: Mapping[str, Any] | None = None) -> DataLoader | dict[str, Any]:
    """A dataloader's config with dataset and batch sampler wrapped so that they follow the plan.

    Args:
        dataloader: Of the training set.
        plan: The plan.
        validation: Config of the validation dataloader, whose pipeline prepares old images that are not augmented.

    Raises:
        UserError: A built dataloader cannot follow a plan that mixes images, changes probabilities or adds old images.
    """
    probs = stage_probs(plan, config_steps(dataloader['dataset']) if isinstance(dataloader, Mapping) else ())
    sizes = tuple(stage.batch_size for stage in plan.stages)
    if not isinstance(dataloader, Mapping):
        if any(probs) or any(sizes) or plan.keep is not None:
            raise UserError('the training dataloader is built already, so it cannot follow the augmentation and batch '
                            'sizes of the plan; give its config')
        return dataloader
    sampler = dict(type='StagedBatchSampler', inner=dataloader.get('batch_sampler'), batch_sizes=sizes,
                   drop_last=dataloader.get('drop_last', False))
    dataset = dict(type='StagedDataset', dataset=dataloader['dataset'], stage_probs=probs)
    if plan.keep is not None and plan.keep.holds_images:
        for size in sizes:
            plan.keep.beside(size or dataloader['batch_size'])  # refuses a share that leaves no room
        sampler['beside'] = plan.keep.beside
        dataset['old'] = _old_images(plan.keep, dataloader, validation)
    kept = {key: value for key, value in dataloader.items() if key != 'drop_last'}
    return dict(kept, batch_sampler=sampler, dataset=dataset)


def _old_images(keep: Keeping, dataloader: Mapping[str, Any], validation: Mapping[str, Any] | None) -> Any:
    """The old images: augmented as the new ones or, where the teacher's view of them is cached, not at all.

    Copies of new ones are a dataset of their own behind them, so that none is mixed with those.
    """
    steps, new = old_pipeline(pipeline_of(dataloader['dataset'])), image_paths(dataloader['dataset'])
    recoloured = [*steps[:-1], dict(type='Recolour'), *steps[-1:]]  # before the sample is packed
    parts = []
    if keep.images is not None:
        old = OldImages(keep.images, pipeline=recoloured if keep.recolour else steps, serialize_data=False)
        old.leave_out(new)
        parts.append(old.seen_by(pipeline_of(validation['dataset'])) if keep.cache and validation else old)
    if keep.holds_copies:
        parts.append(OldImages(new, pipeline=recoloured, serialize_data=False))
    return parts[0] if len(parts) == 1 else ConcatDataset(parts)
