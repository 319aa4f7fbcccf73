"""What a training file says of loading, optimizing, watching and writing."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mgdet_plugin.prepare.choices import STRIDE, Scenario
from mgdet_plugin.prepare.tensorflow.account import DIFFERS, NONE, Account

_OPTIMIZERS = dict(adam='Adam', adamw='AdamW', sgd='SGD')
_RESCALE = 'training.augmentation.rescale_interval'
_SMALLEST, _LARGEST = 320, 672  # pixels; there the input is one of these sizes and those between them
_LOADING = {f'data_loader.{name}': said for names, said in (
    (('use_tf_dataset', 'use_gpu_preprocessing'), 'pictures are loaded and changed on processors, by processes'),
    (('prefetch_buffer', ), "train_dataloader.prefetch_factor, PyTorch's 2 batches a process"),
    (('num_parallel_calls', 'num_workers'), "train_dataloader.num_workers, the base's 4 processes or one a processor"),
    (('shuffle_buffer_size', ), 'every epoch is shuffled as a whole'),
    (('interleave_cycle_length', ), 'the files of a set are read in any order'),
    (('cache_images', ), 'the system keeps files that fit in memory'),
) for name in names}
_WRITING = {
    'callbacks.checkpoint.save_best_only': 'best.pth and the newest three (default_hooks.checkpoint.max_keep_ckpts)',
    'callbacks.checkpoint.monitor': 'best.pth is the best by mean AP (default_hooks.checkpoint.save_best)',
    'callbacks.checkpoint.save_dir': 'work_dirs/NAME, or train --work-dir',
    'callbacks.tensorboard.log_dir': 'work_dirs/NAME, where tensorboard is installed',
    'output.log_dir': 'work_dirs/NAME, or train --work-dir',
    'output.model_dir': 'work_dirs/NAME/best.pth',
    'output.save_frequency': 'default_hooks.checkpoint.interval=1',
}
RUNNING_KEYS = (
    *_LOADING, *_WRITING, _RESCALE, 'training.batch_size', 'training.augmentation.max_boxes_per_image',
    *(f'optimizer.{name}' for name in ('type', 'beta_1', 'beta_2', 'epsilon', 'weight_decay', 'decay', 'momentum',
                                       'nesterov')),
    'callbacks.early_stopping.monitor', 'callbacks.early_stopping.patience', 'resume.enabled',
    'environment.mixed_precision', 'environment.mixed_precision_policy')


def note_running(account: Account) -> None:
    """Account for what is another thing here, whatever its value."""
    account.note_all(DIFFERS, _LOADING)
    account.note_all(DIFFERS, _WRITING)
    account.carried('training.augmentation.max_boxes_per_image', 'not needed: a picture has as many boxes as it has')
    account.note(not account.flag('resume.enabled', False), 'resume.enabled', 'weights are loaded where they are named',
                 'weights are loaded where they are named; a run that was stopped goes on by train --resume')
    account.note_all(DIFFERS, {'environment.mixed_precision': 'train --amp', 'environment.mixed_precision_policy':
                               'train --amp: float16 on a GPU, bfloat16 on a CPU'})
    account.note_all(NONE, {'environment.': 'of TensorFlow'})


def optimizer(account: Account, scenario: Scenario) -> dict[str, Any]:
    """The config's ``optim_wrapper``, empty where it is the base's.

    Raises:
        UserError: A value is out of its range.
    """
    kind = account.text('optimizer.type', 'adam', _OPTIMIZERS)
    if scenario == 'nothing':
        account.note_all(DIFFERS, {'optimizer.': 'training from nothing has an optimizer of its own here, AdamW '
                                   '(configs/_base_/schedules/scratch.py)'})
        return {}
    account.carried('optimizer.type', f"optim_wrapper.optimizer.type='{_OPTIMIZERS[str(kind)]}'")
    if kind == 'sgd':
        return _sgd(account)
    betas = tuple(account.number(f'optimizer.beta_{each}', default, 0, 1) for each, default in ((1, 0.9), (2, 0.999)))
    eps = account.number('optimizer.epsilon', 1e-7)
    for each in (1, 2):
        account.carried(f'optimizer.beta_{each}', f'betas={betas}')
    account.carried('optimizer.epsilon', f'eps={eps:g}')
    account.note_all(NONE, {f'optimizer.{name}': 'of SGD' for name in ('momentum', 'nesterov')})
    decay = account.number('optimizer.weight_decay', 0.0005)
    account.carried('optimizer.weight_decay', f'weight_decay={decay:g}' if kind == 'adamw' else
                    'none: Adam does not use it there either')
    account.nothing('optimizer.decay', 'rates follow the stages')
    if kind == 'adamw':
        return _other(type='AdamW', betas=betas, eps=eps, weight_decay=decay)
    changed = ({} if betas == (0.9, 0.999) else dict(betas=betas)) | ({} if eps == 1e-7 else dict(eps=eps))
    return dict(optim_wrapper=dict(optimizer=changed)) if changed else {}


def _sgd(account: Account) -> dict[str, Any]:
    momentum = account.number('optimizer.momentum', 0.937, 0, 1)
    nesterov = account.flag('optimizer.nesterov', False)
    account.carried('optimizer.momentum', f'momentum={momentum:g}')
    account.carried('optimizer.nesterov', f'nesterov={nesterov}')
    account.note_all(NONE, {'optimizer.decay': 'rates follow the stages',
                            **{f'optimizer.{name}': 'not of SGD' for name in ('beta_1', 'beta_2', 'epsilon')}})
    account.nothing('optimizer.weight_decay', 'SGD does not use it there; none here either')
    return _other(type='SGD', momentum=momentum, nesterov=nesterov)


def _other(**fields: Any) -> dict[str, Any]:
    """Another optimizer than the base's, whose fields it does not take."""
    return dict(optim_wrapper=dict(optimizer=dict(_delete_=True, **fields)))


def multi_scale(account: Account) -> dict[str, Any]:
    """The part of ``model`` that trains at several input sizes, empty where the file has it off.

    Raises:
        UserError: The interval is none.
    """
    interval = int(account.number(_RESCALE, -1, -1))
    if interval < 1:
        account.carried(_RESCALE, 'one input size')
        return {}
    account.carried(_RESCALE, f"model.data_preprocessor.batch_augments: mmdet's BatchSyncRandomResize, a size from "
                    f'{_SMALLEST} to {_LARGEST} pixels every {interval} steps')
    return dict(data_preprocessor=dict(batch_augments=[dict(
        type='BatchSyncRandomResize', random_size_range=(_SMALLEST, _LARGEST), interval=interval,
        size_divisor=STRIDE)]))


def early_stopping(account: Account, scenario: Scenario) -> dict[str, Any]:
    """When the run ends early: the config's ``plan``, empty where it is the default or there is none.

    Raises:
        UserError: The patience is none.
    """
    monitor, key = 'callbacks.early_stopping.monitor', 'callbacks.early_stopping.patience'
    patience = account.whole(key, 10, 1)
    if scenario == 'nothing':
        account.note_all(DIFFERS, {'callbacks.early_stopping.': 'a run from nothing has its full length; best.pth is '
                                   'the best'})
        return {}
    account.note(account.text(monitor, 'val_loss') == 'val_loss', monitor, "plan.early_stopping.metric='val/loss'",
                 "plan.early_stopping.metric='val/loss'; a metric such as coco/bbox_mAP goes, too")
    account.carried(key, f'plan.early_stopping.patience={patience} validations, of which each epoch has one')
    if patience == 10:
        return {}
    stop: Mapping[str, Any] = dict(metric='val/loss', patience=patience)
    return dict(plan=dict(early_stopping=stop))
