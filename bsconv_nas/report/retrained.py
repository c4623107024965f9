"""What retraining found: mean and spread of each network over its seeds."""

from __future__ import annotations

import pandas as pd

from bsconv_nas.report.hover import hover_text
from bsconv_nas.report.quantities import percent
from bsconv_nas.report.view import View

__all__ = ["MEASURES", "SHORT", "retrained_info"]

# The measures a retraining may have, the most trustworthy first, and what they are called.
MEASURES = {
    "test_accuracy": "test accuracy",
    "report_accuracy": "accuracy on the report part",
    "val_accuracy": "validation accuracy",
}
SHORT = {"test_accuracy": "test", "report_accuracy": "report part", "val_accuracy": "validation"}


def retrained_info(view: View) -> pd.DataFrame:
    """Return a row a retrained network, cheapest first, of the best measure that is there.

    Columns: number (of the first seed's trial), key, kind (baseline or search), measure, seeds, mean and std [%] (NaN
    with one seed), hover, and the cost columns.
    """
    done = view.trials[(view.trials["kind"] == "retrain") & (view.trials["state"] == "complete")]
    measure = next((m for m in MEASURES if m in done and done[m].notna().any()), "val_accuracy")
    kinds = dict(zip(view.candidates["key"], view.candidates["kind"], strict=True))
    rows = []
    for key, group in done.dropna(subset=[measure]).groupby("key", sort=False):
        values = 100 * group[measure].astype(float)
        first = group.iloc[0].to_dict()
        mean, std = float(values.mean()), float(values.std(ddof=1))
        label = f"<br>{MEASURES[measure]}, {len(group)} seeds: {percent(mean / 100)} ± {percent(std / 100)}"
        rows.append(
            {
                **{column: first[column] for column in ("number", "key", *view.costs)},
                "kind": kinds.get(key, "search"),
                "measure": measure,
                "seeds": len(group),
                "mean": mean,
                "std": std,
                "hover": hover_text(view, first) + label,
            }
        )
    columns = ["number", "key", *view.costs, "kind", "measure", "seeds", "mean", "std", "hover"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values(view.costs[0], kind="stable") if rows else frame.astype({"mean": float, "std": float})
