"""Training on a machine without a GPU, in several processes or one, and with dataloaders without workers.

mmengine 0.10.7 chooses a GPU for every process (``torch.cuda.set_device``), joins them by nccl unless the config says
otherwise, and wraps the model for the GPU whose number is the local rank. Without a GPU each of the three fails.
:mod:`mgdet_plugin.compat` applies the ``patch_*`` functions to mmengine's modules; with a GPU or another accelerator
only :func:`patch_dataloaders` changes anything.
"""
from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, wraps
from types import ModuleType
from typing import Any

import torch

from mgdet_plugin.common.errors import require
from mgdet_plugin.common.folder_lock import let_go

OF_WORKERS = ('persistent_workers', 'prefetch_factor', 'multiprocessing_context')  # of torch's DataLoader
LAUNCHERS = ('_init_dist_pytorch', '_init_dist_slurm', '_init_dist_mpi')


def has_accelerator() -> bool:
    """Tell whether mmengine trains on anything but the CPU here."""
    from mmengine.device import get_device
    return get_device() != 'cpu'


def has_bfloat16(device: str | torch.device) -> bool:
    """Whether a device has units for bfloat16: AVX-512 BF16 or AMX of a processor."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def patch_dist_utils(module: ModuleType) -> None:
    """Let processes find each other without choosing a GPU, by gloo where the config says nccl."""
    for name in LAUNCHERS:
        setattr(module, name, _without_gpu(getattr(module, name)))


def _without_gpu(init: Callable[..., None]) -> Callable[..., None]:

    @wraps(init)
    def init_on_cpu(backend: str, *args: Any, **kwargs: Any) -> None:
        if has_accelerator():
            init(backend, *args, **kwargs)
            return
        with _no_gpu_to_choose():
            init('gloo' if backend == 'nccl' else backend, *args, **kwargs)
        if backend == 'nccl' and torch.distributed.get_rank() == 0:
            print('there is no GPU here: the processes exchange gradients by gloo instead of nccl', file=sys.stderr)

    return init_on_cpu


@contextmanager
def _no_gpu_to_choose() -> Iterator[None]:
    """Make ``torch.cuda.set_device``, which fails without a GPU, do nothing in the block."""
    set_device = torch.cuda.set_device
    torch.cuda.set_device = lambda device: None  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.cuda.set_device = set_device


def end_launched_process() -> None:
    """Leave the process group when all is done; without one nothing happens.

    gloo's threads, left to the interpreter's end, sometimes abort a process whose work is done, and the launcher takes
    that for a failure: such a process ends here, at once and with 0, after all have come this far.
    """
    group = torch.distributed
    if not group.is_available() or not group.is_initialized():
        return
    if group.get_backend() != 'gloo':
        group.destroy_process_group()
        return
    group.barrier()
    let_go()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def patch_model_wrapper(module: ModuleType) -> None:
    """Let the distributed model wrapper take a model on the CPU, which has no device number."""
    wrapper = module.MMDistributedDataParallel
    init = wrapper.__init__

    @wraps(init)
    def init_on_cpu(self: Any, *args: Any, **kwargs: Any) -> None:
        if 'device_ids' in kwargs and not has_accelerator():
            kwargs['device_ids'] = None
        init(self, *args, **kwargs)

    wrapper.__init__ = init_on_cpu


def patch_mixed_precision(module: ModuleType) -> None:
    """Let mixed precision run on the CPU: in bfloat16, which has the range of single precision and needs no scaling."""
    if has_accelerator():
        return
    init = module.AmpOptimWrapper.__init__

    @wraps(init)
    def init_on_cpu(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        require(self.cast_dtype in (None, torch.bfloat16),
                'optim_wrapper.dtype must be bfloat16 or left out on a CPU', self.cast_dtype)

    module.AmpOptimWrapper.__init__ = init_on_cpu
    vars(module).update(is_cuda_available=lambda: True,  # one accelerator is asserted
                        GradScaler=partial(torch.amp.GradScaler, 'cpu', enabled=False))
    module.AmpOptimWrapper.state_dict = module.OptimWrapper.state_dict  # a scaler's that is empty cannot be loaded


def patch_dataloaders(module: ModuleType) -> None:
    """Let a dataloader's config say how workers live where it has none, and more workers than there are processors.

    As many as those load its samples then, as torch advises; not where the number of a worker decides about what is
    drawn at random: a dataset that is shuffled, and not by a plan.
    """
    build = module.Runner.build_dataloader

    @wraps(build)
    def build_dataloader(dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(dataloader, Mapping):
            workers = dataloader.get('num_workers')
            if not workers:
                dataloader = {key: value for key, value in dataloader.items() if key not in OF_WORKERS}
            elif not _draws_by_worker(dataloader):
                dataloader = dict(dataloader, num_workers=min(workers, _processors()))
        return build(dataloader, *args, **kwargs)

    module.Runner.build_dataloader = staticmethod(build_dataloader)


def _draws_by_worker(dataloader: Mapping[str, Any]) -> bool:
    """Whether samples depend on which worker loads them, as far as the config of a dataloader tells."""
    dataset, sampler = (dataloader.get(key) for key in ('dataset', 'sampler'))
    staged = isinstance(dataset, Mapping) and dataset.get('type') == 'StagedDataset'
    return not (staged or (isinstance(sampler, Mapping) and sampler.get('shuffle') is False))


def _processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
