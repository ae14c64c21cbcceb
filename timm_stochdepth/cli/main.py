"""The command `timm-stochdepth`: one module of this folder for each subcommand."""
import argparse
import errno
import os
import signal
import sys
import threading
import warnings
from typing import Any, Dict, List, NoReturn, Optional, Tuple, Type

from ..output.terminal import closest, complain, one_line, say, start_command
from ..version import __version__
from . import bench, demo, families, fold, list_models, pull, push, run, show, verify
from .arguments import HelpFormatter, Parser, UsageError

__all__ = ['create_parsers', 'main']

_COMMANDS = {
    'demo': demo,
    'list': list_models,
    'show': show,
    'families': families,
    'fold': fold,
    'push': push,
    'pull': pull,
    'verify': verify,
    'bench': bench,
    'run': run,
}


def create_parsers() -> Tuple[Parser, Dict[str, Parser]]:
    """The parser of `timm-stochdepth`, and the one of each of its commands."""
    parser = Parser(prog='timm-stochdepth', description='Stochastic depth for timm image models.')
    parser.add_argument('--version', action='version', version=__version__)
    subparsers = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    commands: Dict[str, Parser] = {}
    for name, command in _COMMANDS.items():
        summary = (command.__doc__ or '').splitlines()[0]
        commands[name] = subparsers.add_parser(
            name, help=summary, description=summary, formatter_class=HelpFormatter)
        commands[name].set_defaults(command=name)
        command.add_arguments(commands[name])
    return parser, commands


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments, without the program's name; those of the process if None.

    Returns:
        The exit status: 0; 2 after a wrong argument and 1 after another error, both told in one line; 130 after
        Ctrl-C; 141 when nobody reads the output any more.
    """
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    finally:
        start_command(None)


def _parse(argv: List[str]) -> argparse.Namespace:
    parser, commands = create_parsers()
    if not argv:
        parser.print_help(sys.stderr)
        parser.exit(2)
    if argv[0] in commands:
        return commands[argv[0]].parse_args(argv[1:])
    if not argv[0].startswith('-'):
        parser.error(f'COMMAND must be one of {", ".join(commands)}, but got {argv[0]!r}{closest(argv[0], commands)}')
    return parser.parse_args(argv)


def _run(argv: List[str]) -> int:
    args = argparse.Namespace()
    try:
        try:
            args = _parse(argv)
        except SystemExit as e:  # argparse's way to end, after --help too
            sys.stdout.flush()
            return e.code if isinstance(e.code, int) else 1
        start_command(args.command)
        if args.command == 'run':
            run.run(args)  # somebody's script, which speaks for itself
        else:
            _run_own(args)
        sys.stdout.flush()  # where the interpreter would say in its own words that it cannot
        return 0
    except KeyboardInterrupt:
        complain('interrupted')
        return 130
    except UsageError as e:
        complain(one_line(e))
        return 2
    except BrokenPipeError:  # nobody reads the output any more: an error of a connection is one of the Hub's client
        _forget_output()
        return 141  # as of a program that the signal ends
    except Exception as e:
        if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EFBIG) and e.filename is None:  # no file's: print
            _forget_output()
            complain(f'the output cannot be written: {e.strerror}.')
            return 1
        from ..hub.errors import explain  # the Hub's client is slow to import, and an error can wait
        network = getattr(args, 'network', None)
        of_hub = network.name if network is not None and network.kind == 'hub' else None
        complain(explain(e, getattr(args, 'repo_id', of_hub)))
        return 1


def _run_own(args: argparse.Namespace) -> None:
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        if args.command != 'list' or args.tags:
            _prepare_libraries(args.command)
        _COMMANDS[args.command].run(args)


def _prepare_libraries(command: str) -> None:
    if command != 'pull' and 'torch' not in sys.modules:  # which needs neither
        say('loading torch and timm')
        _import_libraries()
    if not sys.stderr.isatty():
        from huggingface_hub.utils import disable_progress_bars
        disable_progress_bars()  # which the Hub's client shows anywhere


def _import_libraries() -> None:
    """Import torch and timm. Ctrl-C ends the process at once: numpy and torch swallow an exception meanwhile."""
    usual = signal.getsignal(signal.SIGINT)
    is_ours = usual is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if is_ours:
        signal.signal(signal.SIGINT, _end_interrupted)
    try:
        import timm  # noqa: F401
        import torch  # noqa: F401
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, usual)


def _end_interrupted(*_: Any) -> NoReturn:
    complain('interrupted')
    os._exit(130)


def _show_warning(message: 'Warning | str', category: Type[Warning], *where: Any) -> None:
    if issubclass(category, UserWarning):
        complain(f'warning: {one_line(message)}')


def _forget_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes nowhere
