"""What ``--hours`` and ``--batch`` make of a config: lengths of the stages and a batch size, as entries of the config.

The config keeps what was fitted as ``fitted``, a run's checkpoints likewise, so that a resumed run goes on with it.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from mgdet_plugin.common.checkpoints import load_checkpoint
from mgdet_plugin.common.errors import UserError, is_number, is_whole
from mgdet_plugin.engine.fit.probe import measured
from mgdet_plugin.engine.fit.stage_lengths import fit_hours
from mgdet_plugin.plan.progress import RECORD

AUTO = 'auto'
_SIZES = tuple(2**power for power in range(1, 15))  # batches that are tried
_TRIES = 4  # to confirm the largest


class Batch(NamedTuple):
    """What ``--batch`` was given.

    Attributes:
        images: A number, or None for the largest that fits.
        share: Of the memory that is free, then; None for the usual one.
    """
    images: int | None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> Batch:
        """Out of ``N``, ``auto`` or ``auto:SHARE``.

        Raises:
            UserError: It is none of these.
        """
        kind, colon, share = text.partition(':')
        try:
            if text.isdecimal() and int(text) > 0:
                return cls(int(text))
            if kind == AUTO and (not colon or 0 < float(share) <= 1):
                return cls(None, float(share) if colon else None)
        except ValueError:
            pass
        raise UserError(f'--batch takes a whole number of at least 1, {AUTO}, or {AUTO}:SHARE with a share of the '
                        f'memory that is free above 0 and at most 1, as in {AUTO}:0.6, got {text!r}')


class Wish(NamedTuple):
    """What a run is to be fitted to.

    Attributes:
        batch: Of ``--batch``; None without.
        hours: Of ``--hours``; None without.
        begun: Of ``time.monotonic``: when the command began.
    """
    batch: Batch | None = None
    hours: float | None = None
    begun: float = 0.0

    def check(self, cfg: Config) -> None:
        """Refuse what cannot be measured.

        Raises:
            UserError: In several processes, or hours without stages.
        """
        asked = '--hours' if self.hours is not None else f'--batch {AUTO}' if self.measures_batch else None
        if asked is not None and cfg.launcher != 'none':
            raise UserError(f'{asked} measures in one process and this is one of several: measure without --launcher, '
                            'then give what was found to all (--batch N, stages.0.epochs=N)')
        if self.hours is not None and not cfg.get('stages'):
            raise UserError('--hours fits the stages of a plan, and the config has none; set train_cfg.max_epochs')

    @property
    def measures_batch(self) -> bool:
        """Whether a batch size is to be found."""
        return self.batch is not None and self.batch.images is None


def parse_hours(text: str) -> float:
    """What ``--hours`` was given.

    Raises:
        UserError: It is no number above 0.
    """
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not 0 < hours < math.inf:
        raise UserError(f'--hours takes a number above 0, got {text!r}')
    return hours


def given_entries(cfg: Config, wish: Wish, resumed: bool) -> dict[str, Any]:
    """Entries of a config that need no measuring: of a batch size given, and of what a resumed run was fitted to."""
    entries = resumed_entries(cfg) if resumed else {}
    return entries | (batch_entries(cfg, wish.batch.images) if wish.batch is not None and wish.batch.images else {})


def measured_entries(cfg: Config, wish: Wish) -> tuple[dict[str, Any], list[str]]:
    """Entries of a config, whose datasets and weights are there, that follow from steps of the run; what to say of it.

    Raises:
        UserError: Nothing fits.
    """
    entries, said = {}, []
    if wish.batch is not None and wish.measures_batch:
        batch_entries(cfg, 1)  # refuses before it takes time
        images, line = fit_batch(cfg, wish.batch.share)
        entries.update(batch_entries(cfg, images))
        cfg.merge_from_dict(dict(entries))
        said.append(line)
    if wish.hours is not None:
        epochs, line = fit_hours(cfg, wish.hours, wish.begun)
        entries.update(epoch_entries(cfg, epochs), **{'fitted.hours': wish.hours})
        cfg.merge_from_dict(dict(entries))
        said.append(line)
    return entries, said


def as_words(entries: Mapping[str, Any]) -> list[str]:
    """Entries as a command line of mmdet's script."""
    words = [f'{key}={str(value).replace(" ", "")}' for key, value in entries.items()]
    return ['--cfg-options', *words] if words else []


def batch_entries(cfg: Config, batch: int) -> dict[str, Any]:
    """Entries of a config for a batch size; rates follow it where the config knows what batch they are for.

    Raises:
        UserError: A stage has a batch size of its own.
    """
    own = [stage['name'] for stage in cfg.get('stages') or () if stage.get('batch_size')]
    if own:
        raise UserError(f"--batch: stage '{own[0]}' has a batch_size of its own; take it out of the stage, or leave "
                        '--batch out')
    scaling = {'auto_scale_lr.enable': True} if (cfg.get('auto_scale_lr') or {}).get('base_batch_size') else {}
    return {'train_dataloader.batch_size': batch, **scaling, 'fitted.batch': batch}


def epoch_entries(cfg: Config, epochs: Sequence[int]) -> dict[str, Any]:
    """Entries of a config for stages of so many epochs: warmup and boost keep their share of a stage, and a stage that
    waits for a validation sees one.

    Raises:
        UserError: There are as many stages no longer.
    """
    if len(epochs) != len(cfg.get('stages') or ()):
        raise UserError(f'the run was fitted as one of {len(epochs)} stages, and the config has '
                        f'{len(cfg.get("stages") or ())}; resume with the config it was made with')
    entries: dict[str, Any] = {}
    for index, (stage, length) in enumerate(zip(cfg.stages, epochs)):
        entries[f'stages.{index}.epochs'] = length
        for key in ('warmup_epochs', 'boost_epochs'):
            if stage.get(key):
                entries[f'stages.{index}.{key}'] = stage[key] * length / stage['epochs']
    interval = (cfg.get('train_cfg') or {}).get('val_interval', 1)
    if interval > min(epochs):
        entries['train_cfg.val_interval'] = min(epochs)
    return {**entries, 'fitted.epochs': list(epochs)}


def resumed_entries(cfg: Config) -> dict[str, Any]:
    """Entries of what was fitted for the run of the checkpoint that ``cfg.load_from`` names; none where nothing was.

    Raises:
        UserError: The record is no such one, or does not fit the config.
    """
    record = load_checkpoint(Path(cfg.load_from), mmap=True)[1].get(RECORD)
    fitted = record.get('fitted') if isinstance(record, Mapping) else None
    if not fitted:
        return {}
    epochs, batch, hours = (fitted.get(key) for key in ('epochs', 'batch', 'hours'))
    if not (all(is_whole(each, 1) for each in epochs or ()) and (batch is None or is_whole(batch, 1)) and (
            hours is None or is_number(hours))):
        raise UserError(f'{cfg.load_from} says that its run was fitted to {dict(fitted)}, which cannot be')
    return {**(batch_entries(cfg, batch) if batch else {}), **(epoch_entries(cfg, epochs) if epochs else {}),
            **({'fitted.hours': hours} if hours else {})}


def fit_batch(cfg: Config, share: float | None) -> tuple[int, str]:
    """The largest batch that fits, measured: sizes that double, a line through the last two, and the size it gives.

    Args:
        cfg: The whole config.
        share: Of the memory that is free; None: the usual one.

    Returns:
        Images a batch, and what to say of it.

    Raises:
        UserError: Not even the smallest fits.
    """
    found = measured(cfg, dict(sizes=list(_SIZES), share=share))
    fits = [each for each in found if each['peak'] <= each['limit']]
    if not fits:
        raise UserError(f'--batch {AUTO}: a batch of {_SIZES[0]} takes {_gib(found[0]["peak"])}, more than the '
                        f'{_gib(found[0]["limit"])} it may; give a larger share, or a smaller model or input')
    best, limit = fits[-1], fits[-1]['limit']
    ended = best['iterations'] == 1 or len(fits) < 2
    images = int(best['batch'])
    if not ended:
        low, high = fits[-2], best
        slope = max((high['peak'] - low['peak']) / (high['batch'] - low['batch']), 1.0)
        wanted = min(int(high['batch'] + (limit - high['peak']) / slope), 2 * int(high['batch']))
        for _ in range(_TRIES):
            if wanted <= images:
                break
            tried = measured(cfg, dict(sizes=[wanted], share=share))
            if tried and tried[0]['peak'] <= limit:
                best, images = tried[0], wanted
                break
            wanted = int(images + (wanted - images) * 0.7)
    return images, (f'--batch {AUTO}: {images} images a step take {_gib(best["peak"])} of the {_gib(limit)} they '
                         f'may; measured: {", ".join(_in_words(each) for each in found)}')


def _in_words(each: Mapping[str, float]) -> str:
    return f'{each["batch"]:.0f}: {_gib(each["peak"])}'


def _gib(size: float) -> str:
    return f'{size / 2**30:.2f} GiB' if math.isfinite(size) else 'more than there is'
