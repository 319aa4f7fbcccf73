"""The ways to fine-tune that are compared: those of the guide and against it, and those that hold on to old images."""
from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mgdet_plugin.cli.training.demo import SOURCE_CONFIG
from mgdet_plugin.common.errors import UserError

STAGED, ALL, RECOMMENDED = 'staged', 'all_1e-3', 'keep_50'
BLENDS = {STAGED: 'staged_blend', RECOMMENDED: 'keep_50_blend'}
COUNTS = (10, 50, 200)  # old images that are held on to
PHOTOGRAPHS = 128
_STRANGE = dict(recolour=True, on_new='recolour')  # of images that are not of the old domain
KEPT_LR = 2e-3  # of the ways that hold on: half of what their steps learn from is old
TODAY, KEEP, SWEEP, LABELLED = 'without keep', 'keep', 'keep, other settings (one seed)', 'old images with labels'
"""Families of ways."""


@dataclass(frozen=True)
class Way:
    """A way to fine-tune.

    Attributes:
        title: For a person, in a few words.
        family: What it belongs to.
        options: Of the config: what differs from it, with the rules of the guide that the way breaks.
    """
    title: str
    family: str
    options: Mapping[str, Any]


def ways(cfg: Config, old: Mapping[int | str, Path]) -> dict[str, Way]:
    """All ways, each as many steps as the staged one, those named 'long' twice as many.

    Args:
        cfg: The config that they change, with the guide's three stages: head, neck, full.
        old: How many -> folder of that many unlabelled old images; 'photographs' -> folder of unrelated ones.

    Returns:
        Name -> way; those of which the images are not given are left out.
    """
    head, neck, full = (dict(stage) for stage in cfg.stages)
    epochs = sum(stage['epochs'] for stage in cfg.stages)
    wild = dict(mosaic_prob=1.0, mixup_prob=0.5)

    def everything(lr: float, **fields: Any) -> dict[str, Any]:
        return {'stages': [{**full, 'name': 'all', 'epochs': epochs, 'lr': lr, **fields}],
                **({'plan.allow': ['rate']} if lr > head['lr'] else {})}

    found = {
        STAGED: Way("the guide's stages", TODAY, {}),
        'all_1e-4': Way('everything at 1e-4', TODAY, everything(1e-4)),
        ALL: Way('everything at 1e-3', TODAY, everything(1e-3)),
        'head_only': Way('head only', TODAY, {'stages': [{**head, 'epochs': epochs}]}),
        'two_to_zero': Way('stage 1, then all free', TODAY, {
            'stages': [head, {**full, 'epochs': epochs - head['epochs']}], 'plan.allow': ['skipped-level']}),
        'mosaic_frozen': Way('heavy mosaic while frozen', TODAY, {
            'stages': [{**head, **wild}, {**neck, **wild}, full], 'plan.allow': ['mixing-while-frozen']}),
        'keep_new_alone': Way('keep on the new images alone', KEEP, {
            **everything(KEPT_LR), 'keep': dict(on_new='recolour')}),
    }
    for name, folder in old.items():
        title = f'keep, {name} old images' if isinstance(name, int) else f'keep, {PHOTOGRAPHS} unrelated photographs'
        way = f'keep_{name}' if isinstance(name, int) else 'keep_photos'
        strange = not isinstance(name, int)
        found[way] = Way(title, KEEP, {**everything(KEPT_LR),
                                       'keep': dict(images=str(folder), **(_STRANGE if strange else {}))})
    longer = [head, neck, {**full, 'epochs': full['epochs'] + 20}]
    found['guide_long'] = Way("the guide's stages, 20 epochs more", SWEEP, {'stages': longer})
    if 50 in old:
        found |= _around(dict(images=str(old[50])), everything)
        found['guide_keep_50_long'] = Way("the guide's stages, 20 epochs more, keep, 50 old images, weight 3", KEEP, {
            'keep': dict(images=str(old[50]), weight=3.0), 'stages': longer})
        found['replay_50'] = Way('50 old images with labels', LABELLED, {
            **everything(1e-3), **_labelled(cfg, new=1, old=4, only=50)})
    # 150 steps an epoch of as many new as old images: seven are a twentieth more steps than the others have.
    found['joint'] = Way('both sets with labels', LABELLED, {
        **everything(1e-3, epochs=7, warmup_epochs=1), **_labelled(cfg, new=3, old=1), 'train_cfg.val_interval': 2})
    return found


def _around(keep: dict[str, Any], everything: Any) -> dict[str, Way]:
    """The guide's stages with the recommended memory, and what is near the recommended way."""
    free = everything(KEPT_LR)
    settings = {'weight_0.3': dict(weight=0.3), 'weight_3': dict(weight=3.0), 'share_third': dict(share=1 / 3)}
    rates = {'lr_1e-3': everything(1e-3), 'lr_3e-3': everything(3e-3), 'half_steps': everything(KEPT_LR, epochs=10),
             'no_mixing': everything(KEPT_LR, mosaic_prob=0.0, mixup_prob=0.0)}
    found = {f'{RECOMMENDED}_{name}': Way(name.replace('_', ' '), SWEEP, {**free, 'keep': {**keep, **each}})
             for name, each in settings.items()}
    found |= {f'{RECOMMENDED}_{name}': Way(name.replace('_', ' '), SWEEP, {**each, 'keep': keep})
              for name, each in rates.items()}
    found[f'{RECOMMENDED}_frozen_bn'] = Way('frozen BN', SWEEP, {
        **everything(KEPT_LR, freeze_level=None, freeze=['*.bn']), 'keep': keep})
    return {'guide_keep_50': Way("the guide's stages, keep, 50 old images", KEEP, {'keep': keep}), **found}


def _labelled(cfg: Config, new: int, old: int, only: int | None = None) -> dict[str, Any]:
    """Training on both domains' labels, in batches twice as large, of which half is old in the mean.

    Args:
        cfg: The config of the new domain.
        new: How often an epoch goes through the new images.
        old: How often through the old ones.
        only: Of which the first so many are used. Default: all.
    """
    own = cfg.train_dataloader
    known = dict(Config.fromfile(SOURCE_CONFIG).train_dataloader.dataset.to_dict(), pipeline=own.dataset.pipeline)
    sets = [dict(type='RepeatDataset', times=times, dataset=each) for times, each in (
        (new, own.dataset.to_dict()), (old, {**known, **({'indices': only} if only else {})}))]
    return {'train_dataloader.batch_size': 2 * own.batch_size,
            'train_dataloader.dataset': dict(_delete_=True, type='ConcatDataset', datasets=sets)}


def old_images(folder: Path, photographs: Path | None) -> tuple[dict[int | str, Path], list[str]]:
    """Folders of unlabelled images to hold on to: the first of the old domain's training images, and photographs.

    Args:
        folder: Where they are copied to.
        photographs: A folder of unrelated photographs, to any depth.

    Returns:
        Number -> folder, and 'photographs' -> folder; and what there is none of, one line each.

    Raises:
        UserError: The folder of photographs is missing or holds too few.
    """
    data = Config.fromfile(SOURCE_CONFIG).train_dataloader.dataset
    known = jpegs(Path(data.data_root) / data.data_prefix.img)
    found: dict[int | str, Path] = {count: copied(known[:count], folder / f'old_{count}') for count in COUNTS}
    if photographs is None:
        return found, [f'keep_photos was not trained: give {PHOTOGRAPHS} photographs with --photographs DIR']
    there = jpegs(photographs)
    if len(there) < PHOTOGRAPHS:
        raise UserError(f'--photographs {photographs} holds {len(there)} JPEG files; {PHOTOGRAPHS} are needed')
    return {**found, 'photographs': copied(there[:PHOTOGRAPHS], folder / 'photographs')}, []


def jpegs(folder: Path) -> list[Path]:
    """The JPEG files in a folder, to any depth, by name."""
    return sorted(folder.rglob('*.jpg'))


def copied(files: Sequence[Path], folder: Path) -> Path:
    """A folder that holds copies of files and nothing else."""
    if sorted(path.name for path in folder.glob('*')) != sorted(path.name for path in files):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in files:
            shutil.copy(path, folder)
    return folder
