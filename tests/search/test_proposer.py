import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial
from small_search import quality, small_space

from bsconv_nas.cost.budget import Budget
from bsconv_nas.errors import ExperimentError
from bsconv_nas.search.proposer import Proposer
from bsconv_nas.search.record import Ended, Objective, Record, Started
from bsconv_nas.search.samplers import SAMPLERS, sampler
from bsconv_nas.space.sampling import FeasibleSet
from bsconv_nas.space.table import Architecture

ACCURACY = Objective("val_accuracy", "max")
TRADE_OFF = (ACCURACY, Objective("macs", "min"))
SMALL_START = {"gp": {"n_startup_trials": 3}, "nsga2": {"population_size": 6}, "nsga3": {"population_size": 6}}


TRIALS = {"gp": 7}  # seconds a proposal, so few of them


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # the gp sampler's


def feasible_set(macs: str = "60K", **choices: object) -> FeasibleSet:
    return small_space(**choices).feasible(Budget(macs=macs))  # type: ignore[arg-type]


def proposer(
    feasible: FeasibleSet, name: str, objectives: tuple[Objective, ...] = TRADE_OFF, seed: int = 0
) -> Proposer:
    return Proposer(feasible, sampler(name, SMALL_START.get(name, {})), objectives, seed)


def outcome(feasible: FeasibleSet, architecture: Architecture) -> dict[str, float]:
    macs = float(feasible.model.cost(architecture).macs)
    return {"val_accuracy": quality(architecture.indices), "macs": macs}


def play(
    proposer: Proposer, feasible: FeasibleSet, numbers: range, objectives: tuple[Objective, ...] = TRADE_OFF
) -> tuple[list[Architecture], list[Started | Ended]]:
    """Propose and tell; every fifth trial is stopped and every seventh fails. Return networks and events."""
    found, events = [], []
    for number in numbers:
        proposal = proposer.propose(number)
        assert proposal is not None
        architecture = proposal.architecture
        values = outcome(feasible, architecture)
        state = "stopped" if number % 5 == 3 else "failed" if number % 7 == 5 else "complete"
        proposer.tell(number, state, [values[o.name] for o in objectives])
        costs = {"macs": int(values["macs"])}
        events.append(Started(number, "search", architecture.key, architecture.indices, costs, 0, proposal.attributes))
        metrics = {"val_accuracy": values["val_accuracy"]} if state == "complete" else {}
        events.append(Ended(number, state, 1, metrics, 1.0))
        found.append(architecture)
    return found, events


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_proposals_keep_the_budget_and_never_repeat(name: str) -> None:
    feasible = feasible_set()
    trials = TRIALS.get(name, 30)
    found, _ = play(proposer(feasible, name), feasible, range(trials))
    macs = [feasible.model.cost(architecture).macs for architecture in found]
    assert max(macs) <= 60_000
    assert len({architecture.key for architecture in found}) == trials
    assert all(feasible.table.architecture(a.indices) == a for a in found)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_proposals_follow_from_the_seed(name: str) -> None:
    feasible = feasible_set()
    numbers = range(TRIALS.get(name, 20))
    runs = [play(proposer(feasible, name, seed=seed), feasible, numbers)[0] for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_study_rebuilt_from_its_record_goes_on_alike(name: str) -> None:
    feasible = feasible_set()
    whole = proposer(feasible, name)
    trials = TRIALS.get(name, 20)
    _, events = play(whole, feasible, range(trials))
    rebuilt = proposer(feasible, name)
    rebuilt.replay(Record(events))
    later = range(trials, trials + trials // 3)
    assert play(rebuilt, feasible, later) == play(whole, feasible, later)


@pytest.mark.parametrize("name", ["nsga2", "tpe"])
def test_a_running_trial_survives_the_rebuild(name: str) -> None:
    feasible = feasible_set()
    whole = proposer(feasible, name)
    _, events = play(whole, feasible, range(16))
    open_trial = whole.propose(16)
    assert open_trial is not None
    network = open_trial.architecture
    rebuilt = proposer(feasible, name)
    rebuilt.replay(Record([*events, Started(16, "search", network.key, network.indices, {}, 0, open_trial.attributes)]))
    for one in (whole, rebuilt):
        one.tell(16, "complete", [0.5, 5e4])
    assert rebuilt.propose(17) == whole.propose(17)


def test_nsga_learns_from_baselines_too() -> None:
    feasible = feasible_set()
    one = proposer(feasible, "nsga2")
    for number, architecture in enumerate(feasible.baselines(6)):
        taken = one.take(number, architecture)
        assert taken.architecture == architecture
        assert taken.attributes["trial"] == {"NSGAIISampler:generation": 0}
        one.tell(number, "complete", [0.5, 5e4])
    first = one.propose(6)
    assert first is not None
    assert first.attributes["trial"] == {"NSGAIISampler:generation": 1}


def test_a_taken_network_is_not_proposed_again() -> None:
    feasible = feasible_set(scope="network", widths=(1.0,), depths="fixed", macs="1M")
    everything = feasible.sample(100, np.random.default_rng(0))
    one = proposer(feasible, "random")
    one.take(0, everything[0])
    proposed = {
        proposal.architecture.key for n in range(1, len(everything)) if (proposal := one.propose(n)) is not None
    }
    assert proposed == {architecture.key for architecture in everything[1:]}


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_an_exhausted_space_ends_the_proposals(name: str) -> None:
    feasible = feasible_set(scope="network", widths=(1.0,), macs="1M")
    size = len(feasible.sample(1000, np.random.default_rng(0)))
    one = proposer(feasible, name)
    play(one, feasible, range(size))
    assert one.propose(size) is None
    assert one.propose(size + 1) is None


def test_repairs_and_duplicates_are_told() -> None:
    tight = feasible_set(macs="25K")
    one = proposer(tight, "tpe", (ACCURACY,))
    proposals = [one.propose(0)]
    for number in range(1, 40):
        last = proposals[-1]
        assert last is not None
        one.tell(number - 1, "complete", [quality(last.architecture.indices)])
        proposals.append(one.propose(number))
    assert any(proposal is not None and proposal.repaired for proposal in proposals)
    assert any(proposal is not None and proposal.duplicate for proposal in proposals)


def test_tpe_learns_better_than_random() -> None:
    feasible = small_space().feasible(Budget())

    def best(name: str, seed: int) -> float:
        one = Proposer(feasible, sampler(name, {}), (ACCURACY,), seed)
        scores = []
        for number in range(60):
            proposal = one.propose(number)
            assert proposal is not None
            scores.append(sum(proposal.architecture.indices))
            one.tell(number, "complete", [scores[-1]])
        return float(np.mean(scores[30:]))

    assert np.mean([best("tpe", s) - best("random", s) for s in range(3)]) > 2


def test_a_stopped_trial_has_no_value() -> None:
    feasible = feasible_set()
    one = proposer(feasible, "tpe")
    one.propose(0)
    one.tell(0, "stopped", [0.9, 1e5])
    (trial,) = one._study.get_trials(deepcopy=False)
    assert trial.state.name == "PRUNED"
    assert trial.values is None


def test_optuna_stays_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    feasible = feasible_set()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        play(proposer(feasible, "gp"), feasible, range(8))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("tpee", {}, "Unknown search.sampler 'tpee': valid are .*did you mean 'tpe'"),
        (
            "tpe",
            {"n_startup": 3},
            "Unknown parameter 'n_startup' of search.sampler 'tpe': valid are .*'n_startup_trials'",
        ),
        ("nsga2", {"population_size": 1}, "of search.sampler 'nsga2' do not hold: .+"),
        (
            "tpe",
            {"n_startup_trials": "a"},
            r"'n_startup_trials': 'a'} of search.sampler 'tpe' do not hold: .+\.$",
        ),
        ("tpe", {"n_ei_candidates": "a"}, "of search.sampler 'tpe' do not hold: "),
        ("gp", {"n_startup_trials": "a"}, "of search.sampler 'gp' do not hold: "),
        ("nsga2", {"population_size": "a"}, "of search.sampler 'nsga2' do not hold: "),
        (
            "tpe",
            {"gamma": 3},
            r"'gamma': 3} of search.sampler 'tpe' do not hold: .+\.$",
        ),
        ("tpe", {"prior_weight": 0.5}, r"'prior_weight': 0\.5} of search.sampler 'tpe' do not hold: .+\.$"),
        ("random", {"x": 1}, "Unknown parameter 'x' of search.sampler 'random': it takes none"),
    ],
)
def test_wrong_samplers_are_refused(name: str, params: dict[str, object], said: str) -> None:
    with pytest.raises(ExperimentError, match=said):
        sampler(name, params)


class Last(BaseSampler):
    """A user's own: the last option of every dimension, from a seed on."""

    def __init__(self, feasible: FeasibleSet, least: int = 0, seed: int = 0) -> None:
        assert feasible.table.dimensions
        self._heard = seed >= least

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Study, trial: FrozenTrial, space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Study, trial: FrozenTrial, name: str, choice: BaseDistribution) -> Any:
        assert isinstance(choice, CategoricalDistribution)
        return choice.choices[-1 if self._heard else 0]


def test_a_sampler_of_the_users_own_is_heard_after_the_start() -> None:
    feasible = small_space().feasible()
    asked = sampler(f"{__name__}:Last", {"startup": 2, "least": 0})
    assert asked.startup == 2
    assert not asked.joint
    one = Proposer(feasible, asked, TRADE_OFF, 0)
    found, _ = play(one, feasible, range(6))
    last = feasible.table.named([size - 1 for size in feasible.table.sizes])
    assert found[2] == last
    assert last not in found[:2]
    assert len({architecture.key for architecture in found}) == 6  # an untried one instead of what is known


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent:Mine", "'absent:Mine' must name an importable module, but No module named 'absent': install it or"),
        ("torn:Mine", "'torn:Mine' must name an importable module, but RuntimeError: no licence: mend it.$"),
        (f"{__name__}:Lasst", "must be a class derived from optuna's BaseSampler: valid are .*'Last'.*you mean 'Last'"),
        (f"{__name__}:play", "must be a class derived from optuna's BaseSampler: valid are "),
        ("small_search:Mine", "must be a class derived from optuna's BaseSampler: the module has none"),
        ("optuna.samplers:BaseSampler", "must be a class derived from optuna's BaseSampler: valid are "),
    ],
)
def test_a_class_that_cannot_be_had_is_refused(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torn.py").write_text("raise RuntimeError('no licence.\\nAsk for one.')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ExperimentError, match=said) as caught:
        sampler(name, {})
    assert str(caught.value).startswith(f"search.sampler {name!r} must ")
