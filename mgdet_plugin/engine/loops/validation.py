"""Validation with losses: every loss term of the images that are predicted on, in the same forward pass."""
from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmdet.models.utils import unpack_gt_instances
from mmdet.structures import SampleList
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size
from mmengine.evaluator import Evaluator
from mmengine.runner.amp import autocast
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.staged.sample_index import sample_randomness
from mgdet_plugin.models.maths.letterbox import LetterboxScale
from mgdet_plugin.models.multigrid_head import MultiGridHead
from mgdet_plugin.models.multigrid_loss import MultiGridLoss
from mgdet_plugin.models.one_pass import head_outputs, images_of, is_one_pass
from mgdet_plugin.models.truth import truth_in_input, truth_in_original
from mgdet_plugin.plan.freezing import unwrap

TOTAL = 'loss'


class LossMeter:
    """Means of loss terms over the images of a dataset, over all processes."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.images = 0

    def update(self, terms: Mapping[str, Tensor], images: int) -> None:
        """Add means over so many images of a batch; over 0 to take note of the names alone."""
        self.images += images
        for name, value in terms.items():
            total = self.sums.setdefault(name, torch.zeros((), dtype=torch.float64, device=value.device))
            if images:  # NaN times 0 is NaN
                total += value.detach().double() * images

    def means(self, device: torch.device) -> dict[str, float]:
        """Name -> mean over all images, the total first; empty where nothing was measured.

        The processes exchange their numbers from ``device``.
        """
        names = max(all_gather_object(list(self.sums)), key=len)  # a process without images knows none
        zero = torch.zeros((), dtype=torch.float64, device=device)
        sums = torch.stack([zero + self.images, *(self.sums.get(name, zero).to(device) for name in names)])
        all_reduce(sums, 'sum')
        images, *totals = sums.tolist()
        means = {name: total / images for name, total in zip(names, totals)} if images else {}
        return {TOTAL: sum(means.values()), **means} if means else {}


@torch.no_grad()
def measure(model: nn.Module, dataloader: DataLoader, evaluator: Evaluator | None = None,
            fp16: bool = False) -> dict[str, float]:
    """Losses and, with an evaluator, metrics of a dataset in one pass; the model is left in evaluation mode.

    Args:
        model: A detector of mmdet, wrapped or not.
        dataloader: Its dataset's pipeline loads boxes, before it scales the picture or after, and keeps the order.
        evaluator: Takes the predictions.
        fp16: Mixed precision.

    Returns:
        'loss' and every term, means over images of the recipe's loss, and the evaluator's metrics.

    Raises:
        UserError: The pipeline loads no boxes.
    """
    model.eval()
    meter = LossMeter()
    own, scaled = own_images(dataloader), truth_is_scaled(dataloader.dataset)
    for batch in dataloader:
        samples = measured_step(model, batch, meter, own, fp16, evaluator is not None, scaled)
        if evaluator is not None:
            evaluator.process(data_samples=samples, data_batch=batch)
    metrics = dict(evaluator.evaluate(len(dataloader.dataset))) if evaluator is not None else {}  # type: ignore
    return {**metrics, **meter.means(next(unwrap(model).parameters()).device)}


def measured_step(model: nn.Module, batch: Any, meter: LossMeter, own: int | None = None, fp16: bool = False,
                  predict: bool = True, scaled: bool = True) -> SampleList:
    """Predict on a batch as ``val_step`` does and add its losses to a meter.

    Args:
        model: A detector, wrapped or not, in evaluation mode.
        batch: What the dataloader gives.
        meter: Takes the terms.
        own: Images that this process measures, repetitions of the sampler left out. Default: all.
        fp16: Mixed precision.
        predict: Whether the data samples returned should have predictions.
        scaled: See :func:`truth_is_scaled`.

    Returns:
        The samples, all boxes in pixels of the original picture.

    Raises:
        UserError: They have no boxes, or the detector cannot take boxes out of their letterbox.
    """
    inner: Any = with_recipe_loss(unwrap(model))
    with autocast(enabled=fp16):
        data = inner.data_preprocessor(batch, False)
        given = data['data_samples']
        kept = len(given) if own is None else max(0, min(len(given), own - meter.images))
        labelled = given[:kept or 1]  # a sampler's repetitions go last
        if not all('gt_instances' in sample and 'bboxes' in sample.gt_instances for sample in labelled):
            raise UserError("the validation set's pipeline loads no boxes, so there is no validation loss; put "
                            "dict(type='LoadAnnotations', with_bbox=True) after the Letterbox, or set "
                            "val_cfg=dict(_delete_=True, type='ValLoop')")
        labelled = [truth_in_input(sample, scaled) for sample in labelled]
        if predict:
            check_letterbox(inner, given)
            given = data['data_samples'] = [truth_in_original(sample, scaled) for sample in given]
        if is_one_pass(inner):
            terms, samples = _one_pass(inner, data['inputs'], given, labelled, predict)
        else:
            terms = inner(data['inputs'][:len(labelled)], labelled, mode='loss')
            samples = inner(**data, mode='predict') if predict else given
    meter.update(loss_terms(terms), kept)
    return samples


def with_recipe_loss(module: nn.Module) -> nn.Module:
    """The module itself or, if a ``MultiGridLoss`` is in it, a twin that shares all else and has the recipe's loss.

    The run's own loss, which may have other scales, is not touched.
    """
    if isinstance(module, MultiGridLoss):
        return module.recipe()
    children = {name: child and with_recipe_loss(child) for name, child in module._modules.items()}
    if all(child is module._modules[name] for name, child in children.items()):
        return module
    twin = copy.copy(module)
    vars(twin)['_modules'] = children
    return twin


def truth_is_scaled(dataset: Any) -> bool:
    """Whether the pipelines of a dataset load boxes before they scale the picture, so that boxes are scaled with it.

    Both orders are in use, and out of mmdet's steps no sample says which it went through. So the first image of each
    dataset within the wrappers is taken up to the step that scales it.

    Raises:
        UserError: One does and another does not.
    """
    orders = {order for leaf in _leaves(dataset) if (order := _scales_boxes(leaf)) is not None}
    if len(orders) > 1:
        raise UserError('of the validation sets joined, one pipeline loads boxes before it scales the picture and '
                        'another after; put LoadAnnotations on the same side of the Letterbox or Resize in all of them')
    return orders != {False}


def _leaves(dataset: Any) -> Iterator[Any]:
    """The datasets with a pipeline of their own inside wrappers of mmengine and torch."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if hasattr(dataset, 'pipeline') or inner == [None]:
        yield dataset
    else:
        for each in inner:
            yield from _leaves(each)


def _scales_boxes(leaf: Any) -> bool | None:
    """The order of a dataset's pipeline; None where its samples say it themselves, or nothing is scaled."""
    steps = getattr(getattr(leaf, 'pipeline', None), 'transforms', [])
    results = leaf.get_data_info(0) if steps and len(leaf) else None
    with sample_randomness(0):
        for step in steps:
            if results is None:
                break
            results = step(results)
            scale = (results or {}).get('scale_factor')
            if scale is not None:
                return None if isinstance(scale, LetterboxScale) else 'gt_bboxes' in results
    return None


def check_letterbox(model: Any, samples: SampleList) -> None:
    """Refuse to predict on letterboxed samples with a head that would leave the boxes shifted.

    Raises:
        UserError: What to do instead.
    """
    scales = [sample.metainfo.get('scale_factor') for sample in samples]
    if not isinstance(getattr(model, 'bbox_head', None), MultiGridHead) and any(
            isinstance(each, LetterboxScale) and any(each.pad_param) for each in scales):
        raise UserError(f'{type(model).__name__} cannot take boxes out of a letterbox, only MultiGridHead can: they '
                        "would be shifted by its border; put dict(type='Resize', scale=..., keep_ratio=True) and "
                        "dict(type='Pad', size_divisor=32) in place of the Letterbox")


def _one_pass(model: Any, inputs: Tensor, samples: SampleList, labelled: SampleList,
              predict: bool) -> tuple[Mapping[str, Any], SampleList]:
    """Losses of the labelled first samples and predictions of all, from one forward pass."""
    head = model.bbox_head
    outs = head_outputs(model, model.extract_feat(inputs))
    ours = outs if len(labelled) == len(samples) else images_of(outs, slice(len(labelled)))
    gt, ignored, metas = unpack_gt_instances(labelled)
    terms = head.loss_by_feat(*ours, gt, metas, ignored)
    if predict:
        found = head.predict_by_feat(*outs, batch_img_metas=[sample.metainfo for sample in samples], rescale=True)
        samples = model.add_pred_to_datasample(samples, found)
    return terms, samples


def loss_terms(losses: Mapping[str, Any]) -> dict[str, Tensor]:
    """The terms that are summed to the total, each one number, as ``BaseModel.parse_losses`` takes them."""
    return {name: value.mean() if isinstance(value, Tensor) else sum(each.mean() for each in value)
            for name, value in losses.items() if 'loss' in name}


def own_images(dataloader: DataLoader) -> int | None:
    """Images of this process's share, without those a sampler repeats to make the shares equal."""
    if get_world_size() == 1:
        return None
    return len(range(get_rank(), len(dataloader.dataset), get_world_size()))  # type: ignore[arg-type]
