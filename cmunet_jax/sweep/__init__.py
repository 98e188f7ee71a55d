"""A study as a set of trials: what they are, who does which, what came of them.

`plan` turns a config into trials with keys and dependencies, `store` keeps everything (a folder, or
an object store such as gs://), `claims` lets one runner do a trial and no other, `records` reads
and publishes results, `worker` does one trial after another, each in a process of its own
(`child`), `view` shows it, `estimates` says what it will cost. `runners` holds what starts
workers.

    <sweep>/sweep.json  plan.json  step_times.json  test_reads.jsonl
    <sweep>/trials/<key>/trial.json   what it is, its resolved config, what a search chose for it
                        /attempts/N.json   who took it the N-th time; exists once, whoever asks
                        /claim.json        the lease of the last attempt, renewed while it lives
                        /failures/N.json   why the N-th failing attempt failed
                        /result.json       done, or failed for good; created once
                        /run/  evaluation/  reads/  log.txt
"""
