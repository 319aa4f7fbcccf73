"""The plan of a fine-tuning run: a list of stages, plain data, from which everything else is derived.

What is frozen, the rate of every group and the probability of every augmentation are pure functions of the plan and
of how far the run has come, so a resumed run needs no state of theirs. Epochs count from 0.
"""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config

from mgdet_plugin.common.errors import UserError, is_number, is_whole, require
from mgdet_plugin.common.guard_record import STARTS
from mgdet_plugin.plan.caching import TrunkCaching
from mgdet_plugin.plan.keeping import Keeping, check_weight
from mgdet_plugin.plan.until import Plateau, Until

FREEZE_LEVELS = (0, 1, 2)
SCHEDULES = ('cosine', 'constant', 'plateau')
RECIPE_WARMUP_EPOCHS = 3.0
RECIPE_WARMUP_SHARE = 0.6  # of a short stage
RECIPE_ETA_MIN = 1e-7
EARLY_STOPPING = dict(metric='val/loss', patience=10)
BASE_AUGMENTATIONS = ('PhotoMetricDistortion', 'RandomAffine', 'RandomFlip')  # what a clean stage leaves out


@dataclass(frozen=True)
class Stage:
    """One stage of a run. What is frozen is given by exactly one of ``freeze_level``, ``freeze`` and ``train``.

    Attributes:
        name: What the log calls it.
        epochs: Its length; with ``until`` the longest it may last.
        lr: Learning rate after warmup, of groups whose multiplier is 1.
        freeze_level: 2 trains only the predict convolutions, 1 freezes the backbone, 0 trains everything (Keras).
        freeze: Names or patterns of what is frozen ('backbone', 'backbone.conv_res_block[1-3]', '*.bn').
        train: Names or patterns of what trains; everything else is frozen.
        lr_mult: Name or pattern -> factor on the rate of what it matches; the longest match counts.
        schedule: After warmup and boost: 'cosine' to ``eta_min_ratio``, 'constant', or 'plateau', which falls with what
            is measured.
        plateau: When and by how much it falls, of the schedule 'plateau'.
        warmup_epochs: Linear warmup. Default: the recipe's 3, at most three fifths of the stage.
        warmup_ratio: Factor the warmup starts from.
        eta_min_ratio: Where the cosine ends, as a factor on each group's rate. Default: 1e-7 / lr.
        boost: Factor on the rate for ``boost_epochs`` after warmup.
        boost_epochs: Length of the boost.
        mosaic_prob: Share of samples that are mosaics.
        mixup_prob: Share of samples that are mixed up.
        probs: Name of a pipeline step -> probability that it is applied.
        clean: Leave out flip, photometric distortion and random affine.
        batch_size: Images a process and iteration. Default: the dataloader's.
        until: End by metric.
        restore_best: Go on from the stage's best checkpoint (by ``until``'s metric) when it ends.
        restart_ema: Start the moving average of weights anew at the stage's first iteration.
        keep_weight: Factor on the loss that holds the model to what its weights knew. Default: ``keep.weight``.

    Raises:
        UserError: A field is out of its range.
    """
    name: str
    epochs: int
    lr: float
    freeze_level: int | None = None
    freeze: tuple[str, ...] | None = None
    train: tuple[str, ...] | None = None
    lr_mult: Mapping[str, float] = field(default_factory=dict)
    schedule: str = 'cosine'
    plateau: Plateau | None = None
    warmup_epochs: float | None = None
    warmup_ratio: float = 0.01
    eta_min_ratio: float | None = None
    boost: float = 1.0
    boost_epochs: float = 0.0
    mosaic_prob: float = 0.0
    mixup_prob: float = 0.0
    probs: Mapping[str, float] = field(default_factory=dict)
    clean: bool = False
    batch_size: int | None = None
    until: Until | None = None
    restore_best: bool = False
    restart_ema: bool = False
    keep_weight: float | None = None

    @classmethod
    def build(cls, fields: Mapping[str, Any]) -> Stage:
        """Stage of a config entry.

        Raises:
            UserError: If a field is missing, unknown or out of its range.
        """
        known = {each.name for each in dataclasses.fields(cls)}
        missing, unknown = {'name', 'epochs', 'lr'} - set(fields), set(fields) - known
        if missing or unknown:
            what = f'lacks {sorted(missing)}' if missing else f'has no field {sorted(unknown)}'
            raise UserError(f'a stage {what}; it takes {sorted(known)}, got {dict(fields)}')
        values = dict(fields)
        for key in ('freeze', 'train'):
            if values.get(key) is not None:
                values[key] = (values[key], ) if isinstance(values[key], str) else tuple(values[key])
        for key in ('lr_mult', 'probs'):
            values[key] = dict(values.get(key) or {})
        if values.get('until') is not None:
            values['until'] = Until.build(f"stage '{fields['name']}': until", values['until'])
        if values.get('plateau') is not None or values.get('schedule') == 'plateau':
            values['plateau'] = Plateau.build(f"stage '{fields['name']}': plateau", values.get('plateau') or {})
        return cls(**values)

    def __post_init__(self) -> None:
        where = f"stage '{self.name}'"
        require(is_whole(self.epochs, 1), f'{where}: epochs must be a whole number of at least 1', self.epochs)
        require(is_number(self.lr) and 0 < self.lr < math.inf, f'{where}: lr must be a positive number', self.lr)
        given = [key for key in ('freeze_level', 'freeze', 'train') if getattr(self, key) is not None]
        if len(given) != 1:
            raise UserError(f'{where}: give exactly one of freeze_level, freeze and train, got {given or "none"}')
        require(self.freeze_level in (None, *FREEZE_LEVELS) and not isinstance(self.freeze_level, bool),
                f'{where}: freeze_level must be one of {FREEZE_LEVELS}', self.freeze_level)
        if self.train == ():
            raise UserError(f'{where}: train is empty, so nothing would train; name what trains')
        self._check_rates(where)
        for key, value in self.step_probs().items():
            require(is_number(value) and 0 <= value <= 1, f'{where}: the probability of {key} must be from 0 to 1',
                    value)
        require(self.batch_size is None or is_whole(self.batch_size, 1),
                f'{where}: batch_size must be a whole number of at least 1', self.batch_size)
        if self.keep_weight is not None:
            check_weight(f'{where}: keep_weight', self.keep_weight)
        if self.restore_best and self.until is None:
            raise UserError(f'{where}: restore_best needs until=dict(metric=..., patience=...) to say what is best')

    def _check_rates(self, where: str) -> None:
        """Check what the rate is made of."""
        require(self.schedule in SCHEDULES, f'{where}: schedule must be one of {SCHEDULES}', self.schedule)
        if (self.plateau is not None) != (self.schedule == 'plateau'):
            raise UserError(f"{where}: plateau is of schedule='plateau', got schedule={self.schedule!r}; set that, or "
                            'take plateau out')
        if self.plateau is not None and self.plateau.min_lr >= self.lr:
            raise UserError(f'{where}: plateau.min_lr {self.plateau.min_lr:g} is not below lr {self.lr:g}, so the rate '
                            'could not fall; lower it')
        for key, value in self.lr_mult.items():
            if not is_number(value) or not 0 < value < math.inf:
                raise UserError(f"{where}: lr_mult['{key}'] must be a positive number, got {value!r}; to hold a part "
                                'still freeze it: a rate of 0 lets its running statistics drift')
        for key in ('warmup_ratio', 'eta_min_ratio', 'warmup_epochs', 'boost_epochs', 'boost'):
            value = getattr(self, key)
            require(value is None or (is_number(value) and 0 <= value < math.inf),
                    f'{where}: {key} must be a number of at least 0', value)
        if self.boost <= 0 or self.warmup_ratio > 1 or self.eta_ratio > 1:
            raise UserError(f'{where}: boost must be above 0, warmup_ratio and eta_min_ratio at most 1, got '
                            f'{self.boost}, {self.warmup_ratio} and {self.eta_ratio}')
        if self.warmup + self.boost_epochs > self.epochs:
            raise UserError(f'{where}: warmup_epochs {self.warmup:g} and boost_epochs {self.boost_epochs:g} are longer '
                            f'than its {self.epochs} epochs')

    @property
    def warmup(self) -> float:
        """Epochs of warmup."""
        if self.warmup_epochs is not None:
            return self.warmup_epochs
        left = self.epochs - self.boost_epochs
        return max(0.0, min(RECIPE_WARMUP_EPOCHS, RECIPE_WARMUP_SHARE * left))

    @property
    def eta_ratio(self) -> float:
        """Factor at the end of the cosine."""
        return min(1.0, RECIPE_ETA_MIN / self.lr) if self.eta_min_ratio is None else self.eta_min_ratio

    @property
    def peak_boost(self) -> float:
        """The largest factor on the rate over the stage."""
        return max(1.0, self.boost) if self.boost_epochs > 0 else 1.0

    def step_probs(self) -> dict[str, float]:
        """Name of a pipeline step -> probability, all that the stage says."""
        clean = dict.fromkeys(BASE_AUGMENTATIONS, 0.0) if self.clean else {}
        return {**clean, 'mosaic': self.mosaic_prob, 'mixup': self.mixup_prob, **self.probs}

    def factor(self, done: float) -> float:
        """Factor on the stage's rate after ``done`` of its epochs, fractions for iterations.

        Linear from ``warmup_ratio``, then ``boost``, then 1 or the cosine, whose last value stays. What a plateau has
        lowered is a factor beside it, see :class:`mgdet_plugin.plan.progress.Progress`.
        """
        begin = self.warmup + self.boost_epochs
        peak = self.boost if self.boost_epochs > 0 else 1.0
        if done < self.warmup:
            return (self.warmup_ratio + (1 - self.warmup_ratio) * done / self.warmup) * peak
        if done < begin:
            return self.boost
        if self.schedule != 'cosine':
            return 1.0
        share = min(1.0, (done - begin) / (self.epochs - begin)) if self.epochs > begin else 1.0
        return self.eta_ratio + (1 - self.eta_ratio) * 0.5 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True)
class Plan:
    """A whole plan.

    Attributes:
        stages: In order.
        start: 'full' (all weights are pretrained), 'backbone' (only its weights are) or 'nothing'.
        allow: Names of rules a person has switched off.
        early_stopping: When the run ends before its last epoch, where the last stage has no ``until`` of its own.
        keep: What the model is held to; None: nothing.
        trunk_cache: How the outputs of what is frozen are kept; None: they are computed each time.
        answers: What the rules of the guide say of it, see :func:`mgdet_plugin.plan.rules.check_rules`.
    """
    stages: tuple[Stage, ...]
    start: str = 'full'
    allow: frozenset[str] = frozenset()
    early_stopping: Until | None = None
    keep: Keeping | None = None
    trunk_cache: TrunkCaching | None = None
    answers: dict[str, list[Any]] = field(default_factory=dict, init=False, compare=False, repr=False)

    @classmethod
    def from_cfg(cls, cfg: Config) -> Plan:
        """The plan of a config: ``stages`` and, in ``plan``, ``start``, ``allow`` and ``early_stopping``.

        Without ``start`` it follows from what the config loads: 'full' with ``load_from``, 'backbone' with a
        pretrained backbone, else 'nothing'. Without ``early_stopping`` it is ten validations without a lower
        ``val/loss``, where the validation loop measures that; None switches it off.

        A config is parsed once a process: equal ones give one object, which all that carries the plan out shares.

        Raises:
            UserError: If a stage or option is wrong.
        """
        said = repr([cfg.get('stages'), cfg.get('plan'), cfg.get('load_from'), cfg.get('resume'), cfg.get('val_cfg'),
                     cfg.get('keep'), cfg.get('trunk_cache'),
                     ((cfg.get('model') or {}).get('backbone') or {}).get('init_cfg')])
        if said not in _PARSED:
            _PARSED[said] = cls._parse(cfg)
        return _PARSED[said]

    @classmethod
    def _parse(cls, cfg: Config) -> Plan:
        stages = build_plan(cfg.get('stages') or ())
        options = dict(cfg.get('plan') or {})
        options.pop('start', None)
        start, allow = start_of(cfg), options.pop('allow', ())
        stopping = _early_stopping(options.pop('early_stopping', {}), cfg)
        if options:
            raise UserError(f"plan has no option {sorted(options)}; it takes 'start', 'allow' and 'early_stopping'")
        require(start in STARTS, f'plan.start must be one of {STARTS}', start)
        keep, caching = cfg.get('keep'), cfg.get('trunk_cache')
        if keep is not None and start == 'nothing' and not cfg.get('resume'):  # a checkpoint tells what it began with
            raise UserError('keep holds a model to what the weights it starts from knew, and this run starts from '
                            'nothing: set load_from, or take keep out')
        return cls(stages, start, frozenset([allow] if isinstance(allow, str) else allow), stopping,
                   None if keep is None else Keeping.build(keep),
                   None if caching is None else TrunkCaching.build(caching))

    def with_start(self, start: str) -> Plan:
        """The same plan from another start: on resume what is loaded does not tell it."""
        if start == self.start:
            return self
        twin = dataclasses.replace(self, start=start)
        object.__setattr__(twin, 'answers', self.answers)  # one memory for both
        return twin

    def until(self, index: int) -> Until | None:
        """When a stage ends before its last epoch."""
        own = self.stages[index].until
        return self.early_stopping if own is None and index == len(self.stages) - 1 else own

    def keep_weight(self, index: int) -> float:
        """The factor on the loss of holding in a stage; 0 where nothing is held."""
        if self.keep is None:
            return 0.0
        own = self.stages[index].keep_weight
        return self.keep.weight if own is None else own

    @property
    def epochs(self) -> int:
        """Length of the plan, each stage at its longest."""
        return sum(stage.epochs for stage in self.stages)

    def first_epochs(self) -> tuple[int, ...]:
        """First epoch of each stage, each at its longest."""
        return tuple(sum(stage.epochs for stage in self.stages[:index]) for index in range(len(self.stages)))


_PARSED: dict[str, Plan] = {}


def build_plan(stages: Sequence[Mapping[str, Any]]) -> tuple[Stage, ...]:
    """Stages of a config, checked.

    Raises:
        UserError: If there is none, one is wrong, or two have the same name.
    """
    if not stages or isinstance(stages, Mapping):
        raise UserError(f'stages must be a list of at least one stage, got {stages or "none"}')
    for entry in stages:
        require(isinstance(entry, Mapping), 'a stage must be a dict', entry)
    plan = tuple(Stage.build(entry) for entry in stages)
    names = [stage.name for stage in plan]
    if len(set(names)) != len(names):
        raise UserError(f'stages must have different names, got {names}')
    return plan


def _early_stopping(fields: Mapping[str, Any] | None, cfg: Config) -> Until | None:
    """The condition of ``plan.early_stopping``, which has defaults; they need a loop that measures the loss."""
    if fields is None or (not fields and (cfg.get('val_cfg') or {}).get('type') != 'LossValLoop'):
        return None
    given = {**EARLY_STOPPING, **fields} if isinstance(fields, Mapping) else fields
    return Until.build('plan.early_stopping', given)


def start_of(cfg: Config) -> str:
    """What weights a config starts from, as it says or by what it loads; a checkpoint to resume from tells nothing."""
    given = (cfg.get('plan') or {}).get('start')
    if given:
        return str(given)
    if cfg.get('load_from') and not cfg.get('resume'):
        return 'full'
    init = (cfg.get('model') or {}).get('backbone', {}).get('init_cfg') or {}
    return 'backbone' if isinstance(init, Mapping) and init.get('type') == 'Pretrained' else 'nothing'
