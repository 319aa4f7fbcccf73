"""Class weights from the training set."""
from __future__ import annotations

from collections import Counter

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mgdet_plugin.datasets.staged.staged_dataset import locate_sample
from mgdet_plugin.models.multigrid_loss import MultiGridLoss
from mgdet_plugin.plan.freezing import unwrap


@HOOKS.register_module()
class ClassWeightsHook(Hook):
    """Give every ``MultiGridLoss`` whose ``class_weights`` are to be counted the class counts of the training set.

    A pure function of the dataset, so nothing is stored in checkpoints.
    """
    priority = 'HIGH'

    def before_train(self, runner: Runner) -> None:
        """Count the objects of each class and set the weights."""
        losses = [module for module in unwrap(runner.model).modules()
                  if isinstance(module, MultiGridLoss) and module.counted]
        if not losses:
            return
        dataset = runner.train_dataloader.dataset
        counts: Counter[int] = Counter()
        for index in range(len(dataset)):
            if hasattr(dataset, 'get_cat_ids'):
                counts.update(dataset.get_cat_ids(index))
            else:  # a ConcatDataset cannot tell labels
                leaf, place = locate_sample(dataset, index)
                counts.update(leaf.get_cat_ids(place))
        num_classes = len(dataset.metainfo['classes'])
        weights, *_ = [loss.set_class_counts([counts[label] for label in range(num_classes)]) for loss in losses]
        runner.logger.info(f'{losses[0].counted} class weights of {sum(counts.values()):,} objects: '
                           f'{weights.min():.2f} to {weights.max():.2f}')
