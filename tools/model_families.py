"""The registered models by the modules of timm, as Markdown. `python tools/model_families.py` writes docs/models.md."""

from pathlib import Path

import timm

import timm_stochdepth  # noqa: F401  which registers the models
from timm_stochdepth.zoo.exceptions import can_scale_at_inference, methods_of, why_only_masked
from timm_stochdepth.zoo.names import timm_modules
from timm_stochdepth.zoo.rates import DEFAULT_RATES, default_rate

PAGE = Path(__file__).parents[1] / 'docs' / 'models.md'


def of_some(found, names):
    """What a column says of a property that some of the names have."""
    return 'yes' if len(found) == len(names) else 'no' if not found else f'{len(found)} names'


def format_families():
    modules = {name: module for name, module in timm_modules().items() if methods_of(name, module)}
    lines = [
        f'timm {timm.__version__}: {len(modules):,} names `_sd_sample`, and'
        f' {sum("block" in methods_of(*item) for item in modules.items()):,} names `_sd_block`.',
        '',
        '| module of timm | `_sd_sample` | `_sd_block` | default rates | `scale_by_keep=False` |',
        '| --- | --- | --- | --- | --- |',
    ]
    for module in sorted(set(modules.values())):
        names = [name for name, other in modules.items() if other == module]
        blocks = [name for name in names if not why_only_masked(name, module)]
        scaled = [name for name in names if can_scale_at_inference(name, module)]
        rates = sorted({default_rate(name, m).rate for name in names for m in methods_of(name, module)})
        lines.append(
            f'| {module.rpartition(".")[2]} | {len(names)} | {len(blocks)} | {", ".join(map(str, rates))}'
            f' | {of_some(scaled, names)} |'
        )
    return '\n'.join(lines)


def format_rates():
    lines = ['| rate | networks | source |', '| --- | --- | --- |']
    for rate, patterns, source in DEFAULT_RATES:
        lines.append(f'| {rate} | {", ".join(f"`{p}`" for p in patterns.split())} | {source} |')
    return '\n'.join(lines)


def with_tables(page):
    """The page, with the tables between their marks."""
    for name, table in (('families', format_families()), ('rates', format_rates())):
        start, end = f'<!-- {name} -->', f'<!-- end of {name} -->'
        before, _, rest = page.partition(start)
        page = f'{before}{start}\n{table}\n{end}{rest.partition(end)[2]}'
    return page


if __name__ == '__main__':
    PAGE.write_text(with_tables(PAGE.read_text()))
