"""Which checkpoint a run goes on from: the newest that is whole and fits, whatever ``last_checkpoint`` says."""
from __future__ import annotations

import ast
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

from mgdet_plugin.common.checkpoint_content import check_finite
from mgdet_plugin.common.checkpoints import WRITTEN_BY, check_checksums, load_checkpoint, run_of
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import LONGEST_PATH, is_below
from mgdet_plugin.common.guard_record import FILE, GuardRecord
from mgdet_plugin.common.resources import command
from mgdet_plugin.engine.checkpoint_check import check_same_tensors
from mgdet_plugin.engine.transitions import INTERRUPTED, LAST
from mgdet_plugin.plan.plan import Plan
from mgdet_plugin.plan.progress import RECORD, Progress

PATTERNS = ('epoch_*.pth', 'iter_*.pth', INTERRUPTED)


class Saved(NamedTuple):
    """A checkpoint that a run can go on from; a later one is greater."""
    epoch: int
    iteration: int
    time: float  # of the file
    path: Path
    run: str | None  # which run saved it, where it says
    has_optimizer: bool  # which best.pth has not


class Resumer:
    """Finds checkpoints that a run of a config can go on from. It writes nothing, so every rank may have one.

    Args:
        cfg: A whole config with its ``work_dir``.
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg

    def newest(self, folder: Path) -> tuple[Path | None, list[str]]:
        """The newest checkpoint in a folder that can be resumed from.

        Names and file times say nothing certain after a crash or a copy; the epoch and iteration in the files do.

        Returns:
            Its path, ``None`` if there is none; and why each other one cannot be used, as far as that is known.
        """
        readable: list[Saved] = []
        problems: list[str] = []
        for path in self.candidates(folder):
            try:
                readable.append(self.read(path))
            except UserError as error:
                problems.append(str(error).removesuffix(f'; {WRITTEN_BY}'))
        run = self._current_run(folder)
        for saved in sorted((each for each in readable if run is None or each.run in (None, run)), reverse=True):
            try:
                check_checksums(saved.path)
            except UserError as error:
                problems.append(str(error))
            else:
                return saved.path, problems
        return None, problems

    def candidates(self, folder: Path) -> list[Path]:
        """The files in a folder that ``CheckpointHook`` wrote to go on from, and the one ``last_checkpoint`` names."""
        own = self._checkpoint_hook.get('filename_tmpl')
        patterns = [*PATTERNS, own.replace('{}', '*')] if own else PATTERNS
        found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
        named = self._last_named(folder)
        if named is not None and not any(path.samefile(named) for path in found):
            found.add(named)
        return sorted(found)

    def read(self, path: Path) -> Saved:
        """What a run needs to know of a checkpoint to go on from it.

        Raises:
            UserError: It cannot be loaded, holds weights alone, or does not fit the model.
        """
        state, content = load_checkpoint(path, mmap=True)
        meta = content.get('meta')
        epoch, iteration = (meta.get(key) if isinstance(meta, Mapping) else None for key in ('epoch', 'iter'))
        if epoch is None or iteration is None or content.get('message_hub') is None:
            raise UserError(f'{path} holds no state of a training run; to start from its weights give '
                            f'--cfg-options load_from={path} without --resume')
        found = {key.removeprefix('module.'): value for key, value in state.items()}  # of a distributed wrapper
        check_same_tensors(str(path), found, self._wanted, self.cfg)
        averages = {key.removeprefix('module.'): value for key, value in (content.get('ema_state_dict') or {}).items()
                    if key.startswith('module.')}
        if averages:
            check_same_tensors(f'ema_state_dict of {path}', averages, self._wanted, self.cfg)
        check_finite(content, path)
        return Saved(epoch, iteration, path.stat().st_mtime, path, run_of(content), 'optimizer' in content)

    def check(self, path: Path) -> None:
        """Refuse a checkpoint that a person named and that cannot be resumed from, naming one that can.

        Raises:
            UserError: It is missing, damaged, holds weights alone or does not fit the model.
        """
        try:
            if not path.exists():
                raise UserError(f'the checkpoint {path} to resume from is not there')
            self.read(path)
            check_checksums(path)
        except UserError as error:
            folder = path if path.is_dir() else path.parent
            good, _ = self.newest(folder)
            advice = f'the newest good one there is {good}' if good else f'there is no good one in {folder} either'
            raise UserError(f'cannot resume: {error}; {advice}') from None

    def has_all(self, path: Path) -> bool:
        """Tell whether a file can be resumed from and has the optimizer's state."""
        try:
            return self.read(path).has_optimizer
        except UserError:
            return False

    @property
    def _checkpoint_hook(self) -> Mapping[str, Any]:
        """The config of what saves checkpoints."""
        return self.cfg.get('default_hooks', {}).get('checkpoint') or {}

    def _last_named(self, folder: Path) -> Path | None:
        """The file that ``last_checkpoint`` names, if it is there.

        It is one of the folder, or of ``CheckpointHook.out_dir``; a path to anywhere else, as in a folder that was
        copied, means the file of this name in the folder.
        """
        last = folder / LAST
        if not last.is_file():
            return None
        with last.open(errors='replace') as stream:
            named = Path(stream.read(LONGEST_PATH).strip())
        if not is_below(named, filter(None, [folder, self._checkpoint_hook.get('out_dir')])):
            named = folder / named.name
        return named if os.path.isfile(named) else None

    def _current_run(self, folder: Path) -> str | None:
        """The run that last saved a checkpoint in a folder; started anew there, it leaves older files behind."""
        named = self._last_named(folder)
        try:
            return run_of(load_checkpoint(named, mmap=True)[1]) if named is not None else None
        except UserError:  # damaged
            return None

    @cached_property
    def _wanted(self) -> Mapping[str, Tensor]:
        """The state dict of the config's model."""
        init_default_scope(self.cfg.get('default_scope', 'mmdet'))
        return MODELS.build(self.cfg.model).state_dict()


def is_finished(cfg: Config) -> bool:
    """Whether the newest checkpoint of a run, which ``cfg.load_from`` names, is the end of its plan.

    The last epoch's checkpoint comes before its validation; that this was done, too, says the guard's record.

    Raises:
        UserError: The checkpoint lies behind the end of the run: nothing would be trained.
    """
    if not cfg.get('stages'):
        return False
    folder, path = Path(cfg.work_dir), Path(cfg.load_from)
    epoch, length, in_last = _position(cfg)
    if path.resolve().parent == folder.resolve() and (folder / FILE).is_file():
        ended = GuardRecord.read(folder / FILE).ended
        if (ended == 'early_stopping' and in_last) or (ended == 'plan' and epoch >= length):
            return True
    if epoch > length and not (cfg.get('train_cfg') or {}).get('end_epoch'):
        raise UserError(f'cannot resume: {path} says that {epoch:,} epochs lie behind it, and the run ends after '
                        f'{length:,}; give an earlier checkpoint or raise train_cfg.max_epochs, or start from its '
                        'weights (load_from) in another --work-dir, without --resume')
    return False


def _position(cfg: Config) -> tuple[int, int, bool]:
    """Epochs that the checkpoint ``cfg.load_from`` has behind it, those of its whole run as far as is known, and
    whether it is in the last stage: a person may have added one since.
    """
    content = load_checkpoint(Path(cfg.load_from), mmap=True)[1]
    plan, record, epoch = Plan.from_cfg(cfg), content.get(RECORD), content['meta']['epoch']
    progress = Progress.from_plain(record, plan) if isinstance(record, Mapping) else Progress.at(plan, epoch, 0)
    planned = progress.last_epoch(plan, epoch)
    length = min(planned, (cfg.get('train_cfg') or {}).get('max_epochs') or planned)
    return epoch, length, progress.stage + 1 == len(plan.stages)


def extended_end(cfg: Config, more: int) -> int:
    """Epochs of the run that ended with the checkpoint ``cfg.load_from``, when so many more are done.

    Raises:
        UserError: The run has not ended, or the guard has ended it.
    """
    epoch, planned, in_last = _position(cfg)
    record = Path(cfg.work_dir) / FILE
    ended = GuardRecord.read(record).ended if record.is_file() else None
    if ended == 'guard':
        raise UserError(f'--more-epochs {more}: the guard has stopped the run in {cfg.work_dir} after {epoch} epochs; '
                        f'{command("check_run", cfg.work_dir)} says why')
    if epoch < planned and not (ended == 'early_stopping' and in_last):
        raise UserError(f'--more-epochs {more} goes on after the end of a run, and the one in {cfg.work_dir} has done '
                        f'{epoch} of its {planned} epochs; --resume goes on with it')
    return epoch + more


def added_epochs(cfg: Config) -> tuple[int, int]:
    """How many epochs were added to the run that ``cfg.load_from`` is of, of which that knows nothing, and its end.

    A run that is killed in the first of them has saved no checkpoint since; the config it left knows. (0, 0) else.
    """
    folder, path = Path(cfg.work_dir), Path(cfg.load_from)
    if not cfg.get('stages') or path.resolve().parent != folder.resolve():
        return 0, 0
    source, end = _last_start(folder / Path(cfg.filename).name)
    planned = _position(cfg)[1] if source == path.name else end
    return (end - planned, end) if end > planned else (0, 0)


def _last_start(path: Path) -> tuple[str, int]:
    """The checkpoint that a run resumed from when it last began, by the config it left, and the ``end_epoch`` it was
    given; ('', 0) without. It is read as data, not run.
    """
    try:
        tree = ast.parse(path.read_text(encoding='utf-8'))
    except (ValueError, SyntaxError, RecursionError, OSError):
        return '', 0
    values = {target.id: each.value for each in tree.body if isinstance(each, ast.Assign)
              for target in each.targets if isinstance(target, ast.Name)}
    loop = values.get('train_cfg')
    given = {each.arg: each.value for each in loop.keywords} if isinstance(loop, ast.Call) else {}
    source, resume, end = (each.value if isinstance(each, ast.Constant) else None for each in (
        values.get('load_from'), values.get('resume'), given.get('end_epoch')))
    return (Path(source).name, end) if resume is True and isinstance(source, str) and type(end) is int else ('', 0)


def without_resume(arguments: list[str]) -> list[str]:
    """Take ``--resume`` and its value out of a command line, in every way argparse reads it."""
    kept: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        flag, equals, _ = argument.partition('=')
        if not (flag.startswith('--r') and '--resume'.startswith(flag)):
            kept.append(argument)
        elif not equals and left and not left[0].startswith('-'):
            left.pop(0)
    return kept


def resolve_resume(arguments: list[str], asked: str | None, cfg: Config) -> tuple[list[str], list[str]]:
    """Settle what a run starts from, so that mmdet's script has nothing left to choose.

    mmdet's own ``--resume`` believes ``last_checkpoint``, reads half a file as far as it goes, and without a
    checkpoint starts from nothing, not from ``load_from``.

    Args:
        arguments: The command line without the program's name.
        asked: The value of ``--resume``, ``'auto'`` where it has none, ``None`` where it is absent.
        cfg: The config with its options merged and its ``work_dir``; the choice sets ``load_from`` and ``resume``.

    Returns:
        The command line to hand on, and what to tell the person.

    Raises:
        UserError: If the checkpoint named, or every one found, is damaged or does not fit.
    """
    resumer = Resumer(cfg)
    start = cfg.get('load_from')
    if asked is None and cfg.get('resume'):  # load_from names what to go on from, unless it is where a run starts
        asked = str(start) if start and ('://' in str(start) or resumer.has_all(Path(start))) else 'auto'
    if asked is None or '://' in asked:
        return arguments, []
    if asked == 'auto':
        choice, problems = resumer.newest(Path(cfg.work_dir))
        if problems and choice is None:
            raise UserError(f'cannot resume: no checkpoint in {cfg.work_dir} can be used: {"; ".join(problems)}; '
                            'without --resume, and best in another --work-dir, the run starts anew')
        said = [f'{"; ".join(problems)}: resuming from {choice}'] if problems else []
    else:
        resumer.check(Path(asked))
        choice, said = Path(asked), []
    if choice is None:
        said = [f'no checkpoint in {cfg.work_dir} to resume from: starting from {start or "nothing"}']
        cfg.resume = False
        return [*without_resume(arguments), '--cfg-options', 'resume=False'], said
    if not resumer.read(choice).has_optimizer:
        said.append(f"{choice} holds no optimizer state: the optimizer's momentum starts from nothing")
    cfg.load_from, cfg.resume = str(choice), True
    return [*without_resume(arguments), f'--resume={choice}'], said
