"""Make mmdet and mmengine whole on current torch, without importing any of them.

Ten gaps are closed, all lazily, through the import system:

* mmcv-lite has no compiled extension ``mmcv._ext``, and ``import mmdet.models`` ends there. A finder at the *end* of
  ``sys.meta_path`` answers for that one name with the operations of :mod:`mgdet_plugin.compat.mmcv_ops`. Being last,
  it is only asked when there is no compiled extension, so a real one always wins.
* ``torch.load`` refuses the checkpoints mmengine writes, mmengine runs code found in those it reads, and a process
  killed while it saves leaves half a file. Three of its modules are patched right after they are imported, by the
  functions of :mod:`mgdet_plugin.compat.checkpoint_patches`.
* Several processes cannot train without a GPU. Two modules are patched by :mod:`mgdet_plugin.compat.launch`, which
  closes the next gap, too.
* Mixed precision is refused without a GPU, and a dataloader without workers where it says how these live.
* A mistake in a config is a traceback, and ``_base_ = 'mgdet_plugin::...'`` is unknown to mmengine, which knows
  OpenMMLab's packages alone, and lays a config's text out in seconds. :mod:`mgdet_plugin.compat.config_errors` patches
  its ``Config``.
* A part of a config that cannot be built is a traceback, too: :mod:`mgdet_plugin.compat.building` makes it one line.
* A run begins with a thousand lines: :mod:`mgdet_plugin.compat.console` leaves them to the log file.
* mmdet's inferencer detects on an array as BGR and draws it as RGB.
* pycocotools compares its thresholds with those of a config, a list, which is equal to no number.
* mmdet opens whatever picture annotations name, and mmengine reads some of them by pickle:
  :mod:`mgdet_plugin.compat.dataset_patches`.
"""
from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

EXTENSION = 'mmcv._ext'

PATCHES = {
    'mmengine.logging.history_buffer': 'compat.checkpoint_patches.patch_history_buffer',
    'mmengine.logging.message_hub': 'compat.checkpoint_patches.patch_message_hub',
    'mmengine.optim.scheduler.param_scheduler': 'compat.checkpoint_patches.patch_param_scheduler',
    'mmengine.runner.checkpoint': 'compat.checkpoint_patches.patch_checkpoint_io',
    'mmengine.config.config': 'compat.config_errors.patch_config',
    'mmengine.logging.logger': 'compat.console.patch_logger',
    'mmengine.optim.optimizer.amp_optimizer_wrapper': 'compat.launch.patch_mixed_precision',
    'mmengine.dataset.base_dataset': 'compat.patch_data',
    'mmengine.fileio.backends.local_backend': 'compat.dataset_patches.patch_local_files',
    'mmengine.evaluator.evaluator': 'compat.building.patch_evaluator',
    'mmengine.registry.registry': 'compat.building.patch_registry',
    'mmengine.runner.runner': 'compat.patch_runner',
    'pycocotools.coco': 'compat.console.patch_coco',
    'pycocotools.cocoeval': 'compat.console.patch_coco',
    'mmengine.dist.utils': 'compat.launch.patch_dist_utils',
    'mmengine.model.wrappers.distributed': 'compat.launch.patch_model_wrapper',
    'mmengine.infer.infer': 'weights.model_index.patch_inferencer',
    'mmdet.apis.det_inferencer': 'compat.patch_drawing',
    'mmdet.evaluation.metrics.coco_metric': 'compat.patch_thresholds',
}
"""Module to patch after its import -> module of this package with the function that does it."""


class StandInLoader(Loader):
    """Fill the module ``mmcv._ext`` with operations written in torch."""

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its operations, and its answer to every other name."""
        ops = import_module('mgdet_plugin.compat.mmcv_ops')
        for name in ops.__all__:
            setattr(module, name, getattr(ops, name))
        vars(module)['__getattr__'] = ops.missing_op


class StandInFinder(MetaPathFinder):
    """Find ``mmcv._ext`` where nothing else did."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> (
            ModuleSpec | None):
        """Answer for the compiled extension only."""
        if fullname != EXTENSION:
            return None
        return ModuleSpec(fullname, StandInLoader(), origin='mgdet_plugin.compat.mmcv_ops')


class PatchFinder(MetaPathFinder):
    """Let the other finders find a module of ``PATCHES``, and have it patched once it has run."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> (
            ModuleSpec | None):
        """Return the module's own spec, its loader extended by the patch."""
        if fullname not in PATCHES:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            _patch_after_exec(spec.loader)
        return spec


def _patch_after_exec(loader: Loader) -> None:
    """Make one module's loader patch the module after running it."""
    run = loader.exec_module

    def run_and_patch(module: ModuleType) -> None:
        run(module)
        _patch(module)

    vars(loader)['exec_module'] = run_and_patch


def _patch(module: ModuleType) -> None:
    owner, _, function = PATCHES[module.__name__].rpartition('.')
    getattr(import_module(f'mgdet_plugin.{owner}'), function)(module)


def patch_data(module: ModuleType) -> None:
    """Patch the module of datasets and pipelines for both."""
    from mgdet_plugin.compat import building, dataset_patches
    building.patch_pipeline(module)
    dataset_patches.patch_base_dataset(module)


def patch_runner(module: ModuleType) -> None:
    """Patch the runner's module for both, dataloaders and what it builds."""
    from mgdet_plugin.compat import building, launch
    launch.patch_dataloaders(module)
    building.patch_runner(module)


_STAND_IN_FINDER = StandInFinder()
_PATCH_FINDER = PatchFinder()


def patch_drawing(module: ModuleType) -> None:
    """Let mmdet's inferencer draw an array in the colours it detects in, with configs that import this package.

    To the network an array is BGR, as a file is; the visualizer takes RGB, and only a file is turned for it. Backends
    that write a run's record need its folder: there is none, so they are left out, which mmengine warns of one by one.
    With any other config mmdet does what it does.
    """
    import numpy as np
    visualize = module.DetInferencer.visualize

    def visualize_rgb(self: Any, inputs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        if 'mgdet_plugin' in str(self.cfg.get('custom_imports')):
            inputs = [each[..., ::-1] if isinstance(each, np.ndarray) and each.ndim == 3 else each for each in inputs]
        return visualize(self, inputs, *args, **kwargs)

    build = module.DetInferencer._init_visualizer

    def build_visualizer(self: Any, cfg: Any) -> Any:
        if 'mgdet_plugin' in str(cfg.get('custom_imports')) and cfg.get('visualizer'):
            backends = [each for each in cfg.visualizer.get('vis_backends') or () if each.get('save_dir')]
            cfg.visualizer.vis_backends = backends
        return build(self, cfg)

    module.DetInferencer.visualize = visualize_rgb
    module.DetInferencer._init_visualizer = build_visualizer


def patch_thresholds(module: ModuleType) -> None:
    """Let ``CocoMetric`` measure with the ``iou_thrs`` of a config: pycocotools needs an array of them."""
    import numpy as np
    build = module.CocoMetric.__init__

    @wraps(build)
    def build_with_array(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        self.iou_thrs = np.atleast_1d(self.iou_thrs)

    module.CocoMetric.__init__ = build_with_array


def install() -> None:
    """Register both finders and patch what is imported already. A second call does nothing."""
    if _PATCH_FINDER in sys.meta_path:
        return
    sys.meta_path.insert(0, _PATCH_FINDER)
    sys.meta_path.append(_STAND_IN_FINDER)
    for name in PATCHES:
        if name in sys.modules:
            _patch(sys.modules[name])


def replace_everywhere(name: str, old: object, new: object) -> None:
    """Put a function in another's place in all modules that took it by its name; those imported later do so anyway."""
    for module in list(sys.modules.values()):
        names = getattr(module, '__dict__', {})
        if names.get(name) is old:
            names[name] = new


def has_compiled_ops() -> bool:
    """Tell whether mmcv runs on its own compiled extension rather than on the stand-in (imports mmcv)."""
    return not isinstance(import_module(EXTENSION).__loader__, StandInLoader)
