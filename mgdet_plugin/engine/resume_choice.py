"""Which checkpoint a run goes on from: the newest that is whole and fits, whatever ``last_checkpoint`` says."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

from mgdet_plugin.common.checkpoints import WRITTEN_BY, check_checksums, load_checkpoint
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.engine.checkpoint_check import compare
from mgdet_plugin.plan.progress import RECORD

PATTERNS = ('epoch_*.pth', 'iter_*.pth')


@dataclass
class Resumer:
    """Finds checkpoints that a run of a config can go on from. It writes nothing, so every rank may have one.

    Args:
        cfg: A whole config with its ``work_dir``.
    """
    cfg: Config
    _model_state: Mapping[str, Tensor] | None = field(default=None, init=False)

    def newest(self, folder: Path) -> tuple[Path | None, list[str]]:
        """The newest checkpoint in a folder that can be resumed from.

        Names and file times say nothing certain after a crash or a copy; the epoch and iteration in the files do.

        Args:
            folder: Where the checkpoints lie.

        Returns:
            Its path, ``None`` if there is none; and why each other one cannot be used, as far as that is known.
        """
        readable: list[tuple[tuple[int, int], float, Path]] = []
        problems: list[str] = []
        for path in self.candidates(folder):
            try:
                readable.append((self.progress(path), path.stat().st_mtime, path))
            except UserError as error:
                problems.append(str(error).removesuffix(f'; {WRITTEN_BY}'))
        run = self.current_run(folder)
        mine = [entry for entry in readable if run is None or run_of(entry[-1]) in (None, run)]
        for *_, path in sorted(mine, reverse=True):
            try:
                check_checksums(path)
            except UserError as error:
                problems.append(str(error))
            else:
                return path, problems
        return None, problems

    def candidates(self, folder: Path) -> list[Path]:
        """The files in a folder that ``CheckpointHook`` wrote to go on from, and the one ``last_checkpoint`` names."""
        hook = self.cfg.get('default_hooks', {}).get('checkpoint') or {}
        own = hook.get('filename_tmpl')
        patterns = [*PATTERNS, own.replace('{}', '*')] if own else PATTERNS
        found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
        last = folder / 'last_checkpoint'
        if last.is_file() and (named := last.read_text(errors='replace').strip()):
            elsewhere = Path(named)  # CheckpointHook.out_dir
            if elsewhere.is_file() and not any(path.samefile(elsewhere) for path in found):
                found.add(elsewhere)
        return sorted(found)

    def current_run(self, folder: Path) -> str | None:
        """The run that last saved a checkpoint in a folder; started anew there, it leaves older files behind."""
        last = folder / 'last_checkpoint'
        named = Path(last.read_text(errors='replace').strip()) if last.is_file() else None
        try:
            return run_of(named) if named is not None and named.is_file() else None
        except UserError:  # damaged
            return None

    def progress(self, path: Path) -> tuple[int, int]:
        """Epoch and iteration a checkpoint was saved at, if a run can go on from it.

        Raises:
            UserError: It cannot be loaded, holds weights alone, or does not fit the model.
        """
        state, content = load_checkpoint(path, mmap=True)
        meta = content.get('meta')
        steps = [meta.get(key) if isinstance(meta, Mapping) else None for key in ('epoch', 'iter')]
        if not all(isinstance(step, int) for step in steps) or 'message_hub' not in content:
            raise UserError(f'{path} holds no state of a training run; to start from its weights give '
                            f'--cfg-options load_from={path} without --resume')
        found = {key.removeprefix('module.'): value for key, value in state.items()}  # of a distributed wrapper
        compare(str(path), found, self._wanted(), self.cfg)
        epoch, iteration = map(int, steps)  # type: ignore[arg-type]
        return epoch, iteration

    def check(self, path: Path) -> None:
        """Refuse a checkpoint that a person named and that cannot be resumed from, naming one that can.

        Raises:
            UserError: It is missing, damaged, holds weights alone or does not fit the model.
        """
        try:
            if not path.exists():
                raise UserError(f'the checkpoint {path} to resume from is not there')
            self.progress(path)
            check_checksums(path)
        except UserError as error:
            folder = path if path.is_dir() else path.parent
            good, _ = self.newest(folder)
            advice = f'the newest good one there is {good}' if good else f'there is no good one in {folder} either'
            raise UserError(f'cannot resume: {error}; {advice}') from None

    def has_all(self, path: Path) -> bool:
        """Tell whether a file can be resumed from and has the optimizer's state, which ``best.pth`` has not."""
        try:
            self.progress(path)
            return has_optimizer(path)
        except UserError:
            return False

    def _wanted(self) -> Mapping[str, Tensor]:
        """The state dict of the config's model."""
        if self._model_state is None:
            init_default_scope(self.cfg.get('default_scope', 'mmdet'))
            self._model_state = MODELS.build(self.cfg.model).state_dict()
        return self._model_state


def run_of(path: Path) -> str | None:
    """Which run saved a checkpoint; None where it does not say."""
    record = load_checkpoint(path, mmap=True)[1].get(RECORD)
    run = record.get('run') if isinstance(record, Mapping) else None
    return run if isinstance(run, str) else None


def has_optimizer(path: Path) -> bool:
    """Tell whether a checkpoint holds the optimizer's state."""
    return 'optimizer' in load_checkpoint(path, mmap=True)[1]


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
        cfg: The config with its options merged and its ``work_dir``; ``load_from`` is set to the choice.

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
        choice, said = _choose(resumer, Path(cfg.work_dir))
    else:
        resumer.check(Path(asked))
        choice, said = Path(asked), []
    if choice is None:
        said = [f'no checkpoint in {cfg.work_dir} to resume from: starting from {start or "nothing"}']
        return [*without_resume(arguments), '--cfg-options', 'resume=False'], said
    if not has_optimizer(choice):
        said.append(f"{choice} holds no optimizer state: the optimizer's momentum starts from nothing")
    cfg.load_from, cfg.resume = str(choice), True
    return [*without_resume(arguments), f'--resume={choice}'], said


def _choose(resumer: Resumer, folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint in a folder that can be used, and a line on those that cannot."""
    good, problems = resumer.newest(folder)
    if problems and good is None:
        raise UserError(f'cannot resume: no checkpoint in {folder} can be used: {"; ".join(problems)}; without '
                        '--resume, and best in another --work-dir, the run starts anew')
    return good, [f'{"; ".join(problems)}: resuming from {good}'] if problems else []
