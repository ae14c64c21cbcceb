"""Every command and option, as Markdown. `python tools/command_reference.py` writes them into docs/commands.md."""

import argparse
from pathlib import Path

from timm_stochdepth.cli.main import create_parsers

PAGE = Path(__file__).parents[1] / 'docs' / 'commands.md'


def format_argument(action):
    value = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    value = '' if action.nargs == 0 else f'{value} ...' if action.nargs in ('+', '*', '...') else value
    return ', '.join(f'`{f"{name} {value}".strip()}`' for name in action.option_strings or [''])


def format_default(action):
    if action.default is None or action.nargs == 0:
        return ''
    values = action.default if isinstance(action.default, (list, tuple)) else [action.default]
    return f'`{" ".join(map(str, values))}`' if values else ''


def format_command(name, parser):
    expand_help = argparse.HelpFormatter(parser.prog)._expand_help
    lines = [f'## {name}', '', parser.description, '', '| argument | meaning | default |', '| --- | --- | --- |']
    for action in parser._actions:
        if '--help' not in action.option_strings:
            lines.append(f'| {format_argument(action)} | {expand_help(action)} | {format_default(action)} |')
    return '\n'.join(lines) + '\n'


def with_reference(page):
    """The page's own text, and below it what the parsers say."""
    own_text = page.partition('\n## ')[0].rstrip('\n')
    return '\n\n'.join([own_text, *(format_command(*item).rstrip('\n') for item in create_parsers()[1].items())]) + '\n'


if __name__ == '__main__':
    PAGE.write_text(with_reference(PAGE.read_text()))
