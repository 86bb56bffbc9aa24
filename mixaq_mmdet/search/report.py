"""What a search leaves behind: a JSON, the front as CSV and picture, a table, a config file that is ready to test."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mixaq_mmdet.reporting.figures import COLOURS, save_figure
from mixaq_mmdet.reporting.files import write_whole
from mixaq_mmdet.reporting.markdown import markdown_table

from .history import Scores
from .space import Candidate
from .study import Study

LABELS = {
    'map': 'box AP',
    'mask_map': 'mask AP',
    'proxy': 'feature error',
    'bops': 'relative BOPs',
    'mean_activation_bits': 'mean act. bits',
    'latency': 'predicted ms',
}
RATIOS, DENSE = 'low ratios | prune ratios', 'every window high'


def rows(study: Study) -> list[dict[str, Any]]:
    """The front, cheapest first, as plain JSON."""
    return [row(candidate, scores) for candidate, scores in study.front()]


def row(candidate: Candidate, scores: Scores) -> dict[str, Any]:
    """One candidate as plain JSON."""
    return {'low_ratios': list(candidate.low_ratios), 'prune_ratios': list(candidate.prune_ratios), **scores}


def front_table(front: Sequence[tuple[Candidate, Scores]], chosen: Candidate | None, dense: Scores | None) -> Any:
    """A rich table: the front, the chosen point marked, every-window-high as the last line."""
    from rich.table import Table

    names, lines = _front_lines(front, chosen, dense)
    table = Table(title='front on the search images')
    table.add_column('')
    for name in names:
        table.add_column(name, justify='right')
    table.add_column(RATIOS)
    for line in lines:
        table.add_row(*line, style='bold' if line[0] else 'dim' if line[-1] == DENSE else None)
    return table


def _front_lines(
    front: Sequence[tuple[Candidate, Scores]], chosen: Candidate | None, dense: Scores | None
) -> tuple[list[str], list[list[str]]]:
    """Names of the scores, and for each point a mark, its scores and its ratios."""
    shown = [*front, *([(None, dense)] if dense else [])]
    names = [name for name in LABELS if any(name in scores for _, scores in shown)]
    lines = []
    for candidate, scores in shown:
        mark = '*' if candidate is not None and candidate == chosen else ''
        label = DENSE if candidate is None else str(candidate)
        lines.append([mark, *(_number(name, scores.get(name)) for name in names), label])
    return [LABELS[name] for name in names], lines


def _number(name: str, value: float | None) -> str:
    if value is None:
        return ''
    return f'{value:.3f}' if name == 'bops' else f'{value:.3g}' if name == 'proxy' else f'{value:.2f}'


def write_json(path: Path, content: dict[str, Any]) -> None:
    """The whole result."""
    write_whole(path, json.dumps(content, indent=1) + '\n')


def write_markdown(path: Path, study: Study, chosen: Candidate, content: Mapping[str, Any]) -> None:
    """What was searched and the front as a table; ``content`` is that of the JSON."""
    names, lines = _front_lines(study.front(), chosen, content['every_window_high'])
    made = [', '.join(f'{name} {value}' for name, value in content[key].items()) for key in ('versions', 'device')]
    write_whole(
        path,
        f"""# Search: {content['config']}

Chosen (*) for {content['budget']}: `{chosen}` ({content['chosen']['config']}).
{content['algorithm']} over {', '.join(content['objectives'])}: {content['candidates']} candidates on
{len(content['image_ids'])} images, seed {content['seed']}.
All candidates and the ids of the images: {path.stem}.json.

{markdown_table(['', *names, RATIOS], lines)}

Made with {made[0]}; {made[1]}.
""",
    )


def write_csv(path: Path, front: list[dict[str, Any]]) -> None:
    """The front, a line for each point; ratios are separated by blanks."""
    stream = io.StringIO()
    names = list(dict.fromkeys(name for entry in front for name in entry))
    writer = csv.DictWriter(stream, names, lineterminator='\n')
    writer.writeheader()
    for entry in front:
        writer.writerow(
            {name: ' '.join(map(str, value)) if isinstance(value, list) else value for name, value in entry.items()}
        )
    write_whole(path, stream.getvalue())


def write_plot(path: Path, study: Study, chosen: Candidate, dense: Scores | None) -> None:
    """Everything evaluated, the front and the chosen point."""
    save_figure(path, partial(_draw_front, study, chosen, dense), dpi=150, figsize=(6.4, 4.2), layout='constrained')


def _draw_front(study: Study, chosen: Candidate, dense: Scores | None, figure: Any) -> None:
    quality, cost = study.objectives
    axes = figure.subplots()
    asked = list(study.asked.values())
    axes.scatter([s[cost] for s in asked], [s[quality] for s in asked], s=12, color='0.7', label='evaluated')
    front = [scores for _, scores in study.front()]
    axes.plot([s[cost] for s in front], [s[quality] for s in front], 'o-', color=COLOURS[0], ms=4, label='front')
    best = study.asked[chosen]
    axes.plot([best[cost]], [best[quality]], '*', color=COLOURS[1], ms=14, label='chosen')
    if dense:
        axes.axhline(dense[quality], color='black', linewidth=0.8, linestyle='--', label='every window high')
    axes.set(xlabel=LABELS[cost], ylabel=LABELS[quality], title='search images')
    axes.legend(frameon=False, fontsize=8)


def write_config(
    path: Path, cfg: Config, config: Path, checkpoint: Path, chosen: Candidate, edited: bool, remark: str
) -> None:
    """A config with the chosen ratios that tools/test.py runs with the same checkpoint.

    Args:
        path: file to write.
        cfg: the config of the search, with its edits.
        config: its file, which the new one is based on.
        checkpoint: the searched weights; becomes ``load_from``.
        chosen: the ratios.
        edited: ``cfg`` differs from its file (--cfg-options); then everything is spelled out.
        remark: first line.
    """
    ratios = {'low_ratios': list(chosen.low_ratios), 'prune_ratios': list(chosen.prune_ratios)}
    if edited:
        whole = Config(cfg.to_dict())
        whole.merge_from_dict({f'model.backbone.{name}': values for name, values in ratios.items()})
        write_spelled_out(path, whole, checkpoint, remark)
        return
    base = os.path.relpath(config.absolute(), path.absolute().parent)
    backbone = ', '.join(f'{name}={values}' for name, values in ratios.items())
    write_whole(
        path,
        f'# {remark}\n_base_ = [{base!r}]\n\nload_from = {str(checkpoint)!r}\n'
        f'model = dict(backbone=dict({backbone}))\n',
    )


def write_spelled_out(path: Path, whole: Config, checkpoint: str | Path, remark: str) -> None:
    """A config without a base, for edits that its file does not hold."""
    whole.load_from = str(checkpoint)
    for key in ('launcher', 'work_dir', 'model_wrapper_cfg'):
        whole.pop(key, None)
    write_whole(path, f'# {remark}\n{whole.pretty_text}\n')
