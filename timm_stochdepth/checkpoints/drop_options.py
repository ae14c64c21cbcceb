"""Options of the launcher: how the drop paths of a script's networks drop, at the rate of its own --drop-path."""
import shlex
from dataclasses import dataclass, fields, replace
from typing import Any, Dict, Optional

from ..settings import DISTRIBUTIONS, Settings, check_choice

__all__ = ['DropOptions', 'LauncherError']


class LauncherError(ValueError):
    """What the launcher refuses, in a sentence that stands without a traceback."""


@dataclass(frozen=True)
class DropOptions:
    """How a script's networks drop.

    Attributes:
        settings: All but the rate.
        drop_distribution: How the rate of the script's --drop-path is spread over the blocks; None for the rates that
            timm gives them by itself.
    """
    settings: Settings
    drop_distribution: Optional[str] = None

    def at_rate(self, drop_path_rate: Optional[float]) -> Settings:
        """The settings of a network that is made with that rate."""
        if self.drop_distribution is None:
            return self.settings
        return replace(self.settings, drop_rate=drop_path_rate, drop_distribution=self.drop_distribution)

    def as_args(self) -> Dict[str, Any]:
        """As plain values, for args.yaml and the arguments in a checkpoint."""
        args = {'stochastic_method': self.settings.stochastic_method, 'drop_schedule': None}
        args.update(self.settings.model_args(), drop_distribution=self.drop_distribution)
        del args['drop_path_rate']  # an argument of the script's own
        return args

    @classmethod
    def from_args(cls, args: Any) -> 'DropOptions':
        """Read what `as_args` has written; a LauncherError if it is something else."""
        names = {field.name for field in fields(Settings)} - {'drop_rate'}
        try:
            if not isinstance(args, dict) or not set(args) <= names or args.get('scale_by_keep') is not True:
                raise ValueError(f'must have {", ".join(sorted(names))} alone, scale_by_keep as true.')
            distribution = args.get('drop_distribution')
            if distribution is not None:
                check_choice('drop_distribution', distribution, DISTRIBUTIONS)
            return cls(Settings(**{**args, 'drop_rate': None, 'drop_distribution': 'linear'}), distribution)
        except (TypeError, ValueError) as e:
            raise LauncherError(
                'stochastic_depth among the arguments of a run must be what the launcher has noted there, but got'
                f' {args!r}: {e}') from e

    def on_command_line(self) -> str:
        """What is typed for them, before the script."""
        given, method = self._given(), self.settings.stochastic_method
        words = [] if given and method == 'sample' else ['--stochastic-depth', method]
        for name, value in given.items():
            words.append(f'--{name.replace("_", "-")}')
            if isinstance(value, tuple):
                words.append(','.join(f'{progress:.10g}:{share:.10g}' for progress, share in value))
            elif value is not True:
                words.append(str(value))
        return shlex.join(words)

    def as_model_kwargs(self, stochastic_method: str) -> str:
        """What is typed after the script for a network of this package, whose name is its method."""
        given = self._given()
        if stochastic_method == 'block':  # skips what it drops anyway
            given.pop('skip_dropped', None)
        words = [f'{name}={value}'.replace(' ', '') for name, value in given.items()]
        return shlex.join(['--model-kwargs', *words]) if words else ''

    def _given(self) -> Dict[str, Any]:
        given = dict(
            skip_dropped=self.settings.skip_dropped,
            round_up=self.settings.round_up,
            draw=self.settings.draw if self.settings.draw != 'independent' else None,
            drop_distribution=self.drop_distribution,
            drop_warmup=self.settings.drop_warmup,
            drop_schedule=self.settings.drop_schedule,
        )
        return {name: value for name, value in given.items() if value}
