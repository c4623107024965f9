import math
import statistics

import pytest

from bsconv_nas.report.retrained import retrained_info


def test_mean_and_spread_over_seeds(writer, network):
    writer.trial("baseline", network("regular"), 0.8)
    writer.trial("search", network("bsconv_u"), 0.8)
    for kind, accuracies in {"regular": (0.90, 0.92, 0.93), "bsconv_u": (0.91,)}.items():
        for seed, accuracy in enumerate(accuracies):
            writer.trial("retrain", network(kind), 0.99, seed=seed, test_accuracy=accuracy, report_accuracy=0.5)
    frame = retrained_info(writer.view())
    assert frame[["kind", "seeds", "measure"]].values.tolist() == [
        ["search", 1, "test_accuracy"],
        ["baseline", 3, "test_accuracy"],
    ]
    assert frame["mean"].tolist() == pytest.approx([91, 275 / 3])
    assert frame["std"].iloc[1] == pytest.approx(statistics.stdev([90, 92, 93]))
    assert math.isnan(frame["std"].iloc[0])
    assert frame["hover"].iloc[1].endswith("<br>test accuracy, 3 seeds: 91.67 % ± 1.53 %")


def test_failed_retrainings_do_not_count(writer, network):
    writer.trial("retrain", network("regular"), 0.9, state="failed", test_accuracy=0.9)
    assert retrained_info(writer.view()).empty


def test_the_report_half_stands_in_for_an_absent_test_split(writer, network):
    writer.trial("retrain", network("regular"), 0.9, report_accuracy=0.7)
    frame = retrained_info(writer.view())
    assert (frame["measure"].item(), frame["mean"].item()) == ("report_accuracy", pytest.approx(70))
