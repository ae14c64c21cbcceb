"""The README and the pages of docs/, and what is in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / 'README.md'
PAGES = [README, *sorted((ROOT / 'docs').glob('*.md'))]
TRAINERS = ROOT / 'docs' / 'trainers.md'  # its blocks need other environments: trainers/test_page.py


def code_blocks(page, language):
    return re.findall(rf'^```{language}\n(.*?)^```', page.read_text(), flags=re.M | re.S)


def scripts_by_heading(page):
    """The Python blocks of a page, one a heading, by the heading that they stand under."""
    scripts, heading = {}, ''
    for title, script in re.findall(r'^#+ ([^\n]*)|^```python\n(.*?)^```', page.read_text(), re.M | re.S):
        heading = title or heading
        if script:
            scripts[heading] = script
    return scripts


def command_lines(page):
    """The lines of a page's bash blocks, without their comments."""
    lines = ''.join(code_blocks(page, 'bash')).replace('\\\n', '').splitlines()
    return [line.partition(' #')[0].strip() for line in lines if line.strip()]


def inline_commands(page):
    """What stands between backticks in a page's text, and is a call of `timm-stochdepth`."""
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
    return [' '.join(command.split()) for command in re.findall(r'`(timm-stochdepth [^`]+)`', text)]


def slug(heading):
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')


def anchors(page):
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
    return {slug(heading) for heading in re.findall(r'^#+ (.*)$', text, re.M)}


def links(page):
    """Files and anchors that a page's relative links lead to."""
    for target in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
        if not target.startswith(('http://', 'https://')):
            name, _, anchor = target.partition('#')
            yield (page.parent / name).resolve() if name else page, anchor
