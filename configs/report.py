"""Reports a study: one page, tables, a model card and a checklist, from the files of sweeps.

    python -m cmunet_jax.main --config configs/report.py --config.sweep=runs/sweep
    python -m cmunet_jax.main --config configs/report.py \
        --config.sweep=runs/fair,runs/paper,runs/defects --workdir runs/report

Reads only result files, so it can be written anywhere and again, also while a sweep is running;
what is missing is named. Writes report.html (self-contained), tables/*.csv, tables/*.tex,
tables/provenance.json (the files behind each number), model_card.md and claim.md. Under a minute;
its last line is the path of the page.
"""

import ml_collections

from configs import common


def get_config(arg=None):
    """Returns the config of a report."""
    common.parse_arg(arg)
    config = ml_collections.ConfigDict()
    config.stage = "report"
    config.sweep = "runs/sweep"  # workdirs of sweeps: DIR[,DIR]
    config.title = ""  # '': that of the first sweep
    config.resamples = 10_000  # bootstrap replicates of each interval
    return config
