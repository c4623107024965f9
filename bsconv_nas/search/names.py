"""Are the names in an experiment known: who trains, who proposes, who stops, where the data lie."""

from __future__ import annotations

from bsconv_nas.search.experiment import Experiment
from bsconv_nas.search.own_trial import own_trial
from bsconv_nas.search.samplers import sampler
from bsconv_nas.search.scheduler import scheduler
from bsconv_nas.training.spec import locate

__all__ = ["check_names"]


def check_names(experiment: Experiment) -> None:
    """Refuse at once what needs no torch of ours.

    Raises:
        BsconvNasError: an unknown name, or parameters that it does not take.
    """
    search = experiment.search
    scheduler(search.scheduler.name, search.scheduler.params, experiment.recipe.epochs)
    if experiment.images is not None:
        locate(experiment.images)
    own_trial(search)
    sampler(search.sampler.name, search.sampler.params)
