"""Which choices matter: functional ANOVA of the run's measure (Hutter et al., ICML 2014), by Optuna."""

from __future__ import annotations

import math
from dataclasses import dataclass

import optuna
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from bsconv_nas.report.theme import INK, MUTED, layout, plain
from bsconv_nas.report.view import View

__all__ = ["ImportanceInfo", "importance_figure", "importance_info"]

MIN_TRIALS = 10
MAX_TRIALS = 200  # a forest over more takes minutes and ranks the same choices first
MAX_SHOWN = 20
KINDS = {
    "conv": "decomposition",
    "width": "channels",
    "expand": "expansion",
    "kernel": "kernel",
    "depth": "blocks kept",
}


@dataclass(frozen=True, slots=True)
class ImportanceInfo:
    """Share of the measure's variance by dimension, the greatest first; `trials` is what it is estimated from."""

    label: str
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    shares: tuple[float, ...]
    trials: int


def importance_info(view: View) -> ImportanceInfo | None:
    """Return the importance of each dimension, estimated from at most `MAX_TRIALS` complete trials drawn evenly.

    None below ten complete trials or without any variation.
    """
    finished = view.finished.iloc[:: math.ceil(len(view.finished) / MAX_TRIALS) or 1]
    values = finished[view.measure.name]
    if len(finished) < MIN_TRIALS or values.nunique() < 2:
        return None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    choices: dict[str, BaseDistribution] = {
        dimension.name: CategoricalDistribution(list(range(len(dimension.options))))
        for dimension in view.table.dimensions
        if len(dimension.options) > 1
    }
    for number, value in zip(finished["number"], values, strict=True):
        chosen = dict(zip(view.table.names, view.indices(number), strict=True))
        params = {name: chosen[name] for name in choices}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=choices, value=float(value)))
    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(n_trees=32, max_depth=16, seed=0))
    kinds = {dimension.name: dimension.kind for dimension in view.table.dimensions}
    shown = list(found.items())[:MAX_SHOWN]
    return ImportanceInfo(
        view.measure.label,
        tuple(name for name, _ in shown),
        tuple(KINDS[kinds[name]] for name, _ in shown),
        tuple(share for _, share in shown),
        len(finished),
    )


def importance_figure(info: ImportanceInfo) -> go.Figure:
    """Draw a bar a dimension, coloured by its kind."""
    colors = dict(zip(KINDS.values(), (INK, MUTED, "#7b8794", "#3e4c59", "#cbd2d9"), strict=True))
    figure = go.Figure()
    for kind in dict.fromkeys(info.kinds):
        bars = [(n, s) for n, k, s in zip(info.names, info.kinds, info.shares, strict=True) if k == kind]
        figure.add_bar(
            name=kind,
            orientation="h",
            y=[plain(name) for name, _ in bars],
            x=[100 * share for _, share in bars],
            marker={"color": colors[kind]},
            hovertemplate="%{y}: %{x:.1f} %<extra></extra>",
        )
    figure.update_layout(
        layout(
            height=140 + 22 * len(info.names),
            xaxis={"title": {"text": f"share of the variance of {plain(info.label)} [%], {info.trials} trials"}},
            yaxis={
                "categoryorder": "array",
                "categoryarray": [plain(name) for name in info.names],
                "autorange": "reversed",
                "showgrid": False,
            },
        )
    )
    return figure
