"""The search: experiment, record, proposals, schedule, trials."""
