import math

import pytest

from bsconv_nas.report import summary
from bsconv_nas.report.quantities import MISSING
from bsconv_nas.search.record import Objective


def test_the_lead_says_what_was_searched(view):
    assert summary.lead(view) == (
        "Searched: 5 decompositions (regular, dsc, bsconv_u, bsconv_s:p=1/8, bsconv_s) at 18 places, the channels of "
        "3 groups and the depth of 3 stages, about 10¹³ distinct networks. Data: cifar10, "
        "3\N{MULTIPLICATION SIGN}32\N{MULTIPLICATION SIGN}32 images in 10 classes."
    )


@pytest.fixture
def against(writer, network):
    """Return a view of one baseline and two search trials, the best so many points above it."""

    def make(gap, **changes):
        writer.trial("baseline", network("bsconv_u"), 0.80)
        writer.trial("baseline", network("regular"), 0.99)
        writer.trial("search", network("bsconv_u", depth_layer1=1), 0.80 + gap)
        writer.trial("search", network("bsconv_u", depth_layer1=2), 0.50)
        return writer.view(**changes)

    return make


def test_best_is_compared_with_best_inside_the_budget(against):
    found = summary.comparison(against(0.0031))
    assert (found.baseline, found.baseline_value, found.searched) == ("bsconv_u", 0.80, 2)
    assert (found.gap, found.limit, found.tie) == (pytest.approx(0.0031), 0.004, True)


def test_a_small_difference_is_called_a_tie(against):
    compared, caveat = summary.sentences(against(-0.0031))
    assert compared.endswith("the best uniform one, bsconv_u, 80.00 % at 7.5 M, both inside the budget (macs ≤ 20 M).")
    assert caveat.startswith("\N{MINUS SIGN}0.31 points is a tie: with one seed each, differences below about 0.4 poin")


def test_a_large_difference_comes_with_the_winners_curse(against):
    caveat = summary.sentences(against(0.012))[1]
    assert caveat == (
        "That is 1.20 points ahead, from a single seed each; the winner is the highest of 2 noisy values, so expect "
        "less of it when both are trained again (bsconv-nas retrain)."
    )


def test_a_search_that_lost_is_behind(against):
    assert summary.sentences(against(-0.012))[1].startswith("That is 1.20 points behind")


def test_few_images_tell_less_apart(against):
    found = summary.comparison(against(0.012, selection_images=180))
    assert found.limit == pytest.approx(1.96 * math.sqrt(0.8 * 0.2 / 180))
    assert found.tie


def test_a_verdict_takes_the_place_of_single_seeds(against):
    verdict = ("At 20 M MACs mixing gains 0.4 ± 0.2 points.",)
    assert summary.sentences(against(0.012, verdict=verdict)) == verdict


def test_without_baselines_nothing_is_claimed(writer, network):
    assert summary.sentences(writer.view()) == ("No trial is complete yet, so there is nothing to compare.",)
    writer.trial("search", network("bsconv_u"), 0.80)
    (sentence,) = summary.sentences(writer.view())
    assert sentence.endswith(
        "reached 80.00 %; without a complete uniform baseline inside the budget there is nothing to compare it with."
    )


def test_states_count_by_kind(view):
    assert summary.states(view) == {
        "baseline": {"complete": 6},
        "search": {"complete": 30, "stopped": 10, "failed": 1, "running": 1},
        "retrain": {"complete": 9},
    }


def test_facts_are_the_leaves_of_the_settings(view):
    facts = summary.facts(view)
    assert list(facts) == ["data", "recipe", "search", "environment"]
    assert facts["recipe"] == {"epochs": "6", "learning_rate": "0.1", "milestones": "0.5, 0.75", "ema": MISSING}
    assert facts["environment"]["versions.torch"] == "2.15.0"


def test_notes_name_objectives_that_are_not_shown_and_trials_without_accuracy(writer, network):
    writer.trial("search", network("bsconv_u"), 0.80, f1=0.5)
    writer.trial("search", network("dsc"), math.nan, epochs=0, f1=0.5)
    objectives = (Objective("f1", "max"), Objective("latency_ms", "min"))
    assert summary.notes(writer.view(objectives=objectives)) == (
        "No trial has reported latency_ms yet, so there is no front.",
        "The run also optimises f1, latency_ms: the table of the front follows all objectives, the figures show "
        "validation accuracy over cost.",
        "1 complete trial without a finite accuracy: at the foot of the figure.",
    )


def test_best_is_the_highest_complete_accuracy_of_a_kind(writer, network):
    writer.trial("search", network("bsconv_u"), 0.80)
    writer.trial("search", network("dsc"), 0.90, state="stopped")
    assert summary.best(writer.view(), "search") == 0.80
    assert math.isnan(summary.best(writer.view(), "baseline"))
